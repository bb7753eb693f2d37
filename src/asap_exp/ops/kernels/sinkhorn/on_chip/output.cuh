// The output: the plan times the values, over the sums of its rows.

struct Problem : Inputs {
  const u16* v;
  u16* out;
  const float* start;
  float *rows, *cols;
  i64 v_b, v_h, v_n, out_b, out_h, out_n;
};

// Scale the values in place by b and a power of two, in float16, and return the inverse of the latter.
DEVICE float scale_values(const Lane& l, int& maxima_number, u32 values) {
  const OwnPieces own = own_pieces(values);
  u32 top = 0;
#pragma unroll
  for (int i = 0; i < OwnPieces::COUNT; i++) {
    const uint4 raw = load_u32x4(own.at(i));  // copied by this thread
    const u32 x = larger_u16x2(raw.x & 0x7fff7fff, raw.y & 0x7fff7fff);
    const u32 y = larger_u16x2(raw.z & 0x7fff7fff, raw.w & 0x7fff7fff);
    top = larger_u16x2(top, larger_u16x2(x, y));
  }
  float largest[1] = {low_half(larger_u16x2(top, top >> 16) & 0xffff)};
  maxima<false>(l, maxima_number, largest);
  // Values below 2^5 leave room for scalings of up to 2^10.
  const int exponent = (int)(float_to_bits(largest[0]) >> 23);
  int biased = exponent == 255 ? 127 : 258 - exponent;
  biased = biased > 247 ? 247 : biased;
  const float unit = bits_to_float((u32)biased << 23);
  const u32 scalings = l.shared + COL_SCALING + scaling_place(own.row, 0);
#pragma unroll
  for (int i = 0; i < OwnPieces::COUNT; i++) {
    const u32 scaling = scalings + i * OwnPieces::ROWS * 4;  // its second part is 64 bytes on
    const float b = (from_f16(load_u16(scaling)) + from_f16(load_u16(scaling + 64))) * unit;
    const u32 at = own.at(i);
    uint4 raw = load_u32x4(at);
    raw.x = to_f16x2(low_half(raw.x) * b, high_half(raw.x) * b);
    raw.y = to_f16x2(low_half(raw.y) * b, high_half(raw.y) * b);
    raw.z = to_f16x2(low_half(raw.z) * b, high_half(raw.z) * b);
    raw.w = to_f16x2(low_half(raw.w) * b, high_half(raw.w) * b);
    store_u32x4(at, raw);
  }
  block_barrier();
  return bits_to_float((u32)(254 - biased) << 23);
}

// E times the scaled values, PASS_WIDTH channels from `first_piece` on.
DEVICE void plan_times_values(const Lane& l, const u32 e[TILES][2], u32 values, int first_piece,
                              float o[PASS_PIECES][4]) {
#pragma unroll
  for (int d = 0; d < PASS_PIECES; d++) o[d][0] = o[d][1] = o[d][2] = o[d][3] = 0.f;
#pragma unroll
  for (int k = 0; k < SIDE / 16; k++) {
#pragma unroll
    for (int d = 0; d < PASS_PIECES; d += 2) {
      u32 b[4];
      load_matrices_transposed(
          b, values + k * 16 * TOKEN_BYTES + token_place(l.lane & 15, first_piece + d + (l.lane >> 4)));
      multiply_add_f16(o[d], e[2 * k][0], e[2 * k][1], e[2 * k + 1][0], e[2 * k + 1][1], b[0], b[1]);
      multiply_add_f16(o[d + 1], e[2 * k][0], e[2 * k][1], e[2 * k + 1][0], e[2 * k + 1][1], b[2], b[3]);
    }
  }
}

// Write the warp's 16 queries; `out` points to the first query of the block.
DEVICE void store_output(const Problem& p, const Lane& l, u16* out, int first_query,
                         const float o[PASS_PIECES][4]) {
  const u32 rows = l.shared + PLAN;
#pragma unroll
  for (int d = 0; d < PASS_PIECES; d += 2)
    store_matrices(rows + plan_place(l.warp * 16 + (l.lane & 15), d + (l.lane >> 4)),
                   to_halves(o[d][0], o[d][1]), to_halves(o[d][2], o[d][3]),
                   to_halves(o[d + 1][0], o[d + 1][1]), to_halves(o[d + 1][2], o[d + 1][3]));
  warp_barrier();
#pragma unroll
  for (int x = l.lane; x < 16 * PASS_PIECES; x += 32) {
    const int row = l.warp * 16 + x / PASS_PIECES, piece = x % PASS_PIECES;
    if (first_query + row < p.n)
      store_global_u32x4(out + row * p.out_n + piece * 8, load_u32x4(rows + plan_place(row, piece)));
  }
  warp_barrier();
}

// Add up the parts of a row of blocks, each for some of its queries, and write them. The places of the
// plans hold the parts `[GRID_COLS, OWNER_WARPS * 16, PASS_WIDTH]`.
DEVICE void store_summed_output(const Problem& p, const Lane& l, u16* out, int first_query,
                                const float o[PASS_PIECES][4]) {
  const int owner = l.warp / OWNER_WARPS;
  const u32 part =
      in_block(l.shared + PLAN + (l.grid_col * OWNER_WARPS + l.warp % OWNER_WARPS) * 16 * SUM_ROW_BYTES,
               l.grid_row * GRID_COLS + owner);
  cluster_barrier();  // no block reads its plan, or sums before, any more
#pragma unroll
  for (int d = 0; d < PASS_PIECES; d++) {
    store_remote_f32x2(part + l.eighth * SUM_ROW_BYTES + d * 32 + l.pair * 8, o[d][0], o[d][1]);
    store_remote_f32x2(part + (l.eighth + 8) * SUM_ROW_BYTES + d * 32 + l.pair * 8, o[d][2], o[d][3]);
  }
  cluster_barrier();
  for (int x = thread(); x < OWNER_WARPS * 16 * PASS_PIECES; x += THREADS) {
    const int row = x / PASS_PIECES, piece = x % PASS_PIECES, query = l.grid_col * OWNER_WARPS * 16 + row;
    if (query >= SIDE || first_query + query >= p.n) continue;
    float4 left = {0.f, 0.f, 0.f, 0.f}, right = left;
#pragma unroll
    for (int from = 0; from < GRID_COLS; from++) {
      const u32 at = l.shared + PLAN + (from * OWNER_WARPS * 16 + row) * SUM_ROW_BYTES + piece * 32;
      const float4 x0 = load_f32x4(at), x1 = load_f32x4(at + 16);
      left.x += x0.x;
      left.y += x0.y;
      left.z += x0.z;
      left.w += x0.w;
      right.x += x1.x;
      right.y += x1.y;
      right.z += x1.z;
      right.w += x1.w;
    }
    uint4 packed;
    packed.x = to_halves(left.x, left.y);
    packed.y = to_halves(left.z, left.w);
    packed.z = to_halves(right.x, right.y);
    packed.w = to_halves(right.z, right.w);
    store_global_u32x4(out + query * p.out_n + piece * 8, packed);
  }
}
