// The plan of a tile, made from queries and keys, and its sums weighted by scalings.

// 16 tokens of a warp, as the first factor of products.
struct Tokens {
  u32 at[K_STEPS][4];
};

DEVICE Tokens load_queries(const Lane& l, const u16* q, i64 stride, bool valid0, bool valid1) {
  Tokens queries;
  const u16* first = q + (l.warp * 16 + l.eighth) * stride + l.pair * 2;
#pragma unroll
  for (int s = 0; s < K_STEPS; s++) {
    queries.at[s][0] = valid0 ? load_global_u32(first + s * 16) : 0;
    queries.at[s][1] = valid1 ? load_global_u32(first + s * 16 + 8 * stride) : 0;
    queries.at[s][2] = valid0 ? load_global_u32(first + s * 16 + 8) : 0;
    queries.at[s][3] = valid1 ? load_global_u32(first + s * 16 + 8 + 8 * stride) : 0;
  }
  return queries;
}

// <x, y> of the warp's tokens and 8 others in shared memory.
DEVICE void products(const Lane& l, const Tokens& x, u32 others, int tile, float c[4]) {
  c[0] = c[1] = c[2] = c[3] = 0.f;
#pragma unroll
  for (int h = 0; h < K_STEPS / 2; h++) {
    u32 b[4];
    load_matrices(
        b, l.shared + others + tile * 8 * TOKEN_BYTES + token_place(l.lane & 7, (l.lane >> 3) + 4 * h));
    multiply_add(c, x.at[2 * h], b[0], b[1]);
    multiply_add(c, x.at[2 * h + 1], b[2], b[3]);
  }
}

// By how much the largest logit has risen, up to where nothing of float16 is left of smaller ones.
DEVICE u32 rise(float from, float to) {
  const float by = to - from;
  return by < (float)MOST_RISE ? (u32)by : MOST_RISE;
}
DEVICE float lowering(u32 rise) { return bits_to_float((127 - (rise & 255)) << 23); }

// Two entries of E, and their products: float16, or bfloat16 in a wide plan.
template <bool WIDE>
DEVICE u32 to_entries(float first, float second) {
  return WIDE ? to_bf16x2(first, second) : to_f16x2(first, second);
}
template <bool WIDE>
DEVICE u32 multiply_entries(u32 a, u32 b) {
  return WIDE ? multiply_bf16x2(a, b) : multiply_f16x2(a, b);
}

// E = exp2(S + g - shift) in 16 bits, in registers and in shared memory, from the keys in TOKENS and g in
// COL_DUAL. The shifts are the largest logits of the rows, rounded up to whole numbers, less TOP, so that
// chunks of keys may be made with the largest logits so far, and rescaled at the end without an error.
template <bool WIDE>
DEVICE void make_plan(const Inputs& p, const Lane& l, const u16* q, int& row_number, u32 e[TILES][2],
                      float& shift0, float& shift1, bool valid0, bool valid1) {
  const Tokens queries = load_queries(l, q, p.q_n, valid0, valid1);
  float so_far0 = NONE, so_far1 = NONE;
  u32 rises[CHUNKS / 2] = {};  // of both rows, with each chunk, in bytes
#pragma unroll
  for (int s = 0; s < CHUNKS; s++) {
    float x[CHUNK_TILES][4];
    float top0 = NONE, top1 = NONE;
#pragma unroll
    for (int t = 0; t < CHUNK_TILES; t++) {
      const int tile = s * CHUNK_TILES + t;
      products(l, queries, TOKENS, tile, x[t]);
      const float2 g = load_f32x2(l.shared + COL_DUAL + tile * 32 + l.pair * 8);
      x[t][0] = fused(x[t][0], p.to_log2, g.x);
      x[t][1] = fused(x[t][1], p.to_log2, g.y);
      x[t][2] = fused(x[t][2], p.to_log2, g.x);
      x[t][3] = fused(x[t][3], p.to_log2, g.y);
      top0 = larger(top0, larger(x[t][0], x[t][1]));
      top1 = larger(top1, larger(x[t][2], x[t][3]));
    }
    top0 = larger(so_far0, round_up(top0) - TOP);
    top1 = larger(so_far1, round_up(top1) - TOP);
    rises[s / 2] |= (rise(so_far0, top0) | rise(so_far1, top1) << 8) << 16 * (s % 2);
    so_far0 = top0;
    so_far1 = top1;
#pragma unroll
    for (int t = 0; t < CHUNK_TILES; t++) {
      x[t][0] = exp2_of(x[t][0] - top0);
      x[t][1] = exp2_of(x[t][1] - top0);
      x[t][2] = exp2_of(x[t][2] - top1);
      x[t][3] = exp2_of(x[t][3] - top1);
    }
#pragma unroll
    for (int t = 0; t < CHUNK_TILES; t++) {
      e[s * CHUNK_TILES + t][0] = to_entries<WIDE>(x[t][0], x[t][1]);
      e[s * CHUNK_TILES + t][1] = to_entries<WIDE>(x[t][2], x[t][3]);
    }
  }
  shift0 = so_far0;
  shift1 = so_far1;
#pragma unroll
  for (int mask = 1; mask < 4; mask *= 2) {
    shift0 = larger(shift0, from_lane_xor(shift0, mask));
    shift1 = larger(shift1, from_lane_xor(shift1, mask));
  }
  combine_over_keys<true>(l, row_number, shift0, shift1);
  float factor0 = exp2_of(so_far0 - shift0), factor1 = exp2_of(so_far1 - shift1);
  const u32 plan = l.shared + PLAN + (l.warp * 16 + (l.lane & 15)) * PLAN_ROW_BYTES;
#pragma unroll
  for (int s = CHUNKS - 1; s >= 0; s--) {
    const u32 both0 = to_entries<WIDE>(factor0, factor0), both1 = to_entries<WIDE>(factor1, factor1);
#pragma unroll
    for (int t = s * CHUNK_TILES; t < (s + 1) * CHUNK_TILES; t++) {
      e[t][0] = multiply_entries<WIDE>(e[t][0], both0);
      e[t][1] = multiply_entries<WIDE>(e[t][1], both1);
    }
#pragma unroll
    for (int t = s * CHUNK_TILES; t < (s + 1) * CHUNK_TILES; t += 2)
      store_matrices(plan + (((t + (l.lane >> 4)) ^ (l.lane & 7)) << 4), e[t][0], e[t][1], e[t + 1][0],
                     e[t + 1][1]);
    factor0 *= lowering(rises[s / 2] >> 16 * (s % 2));
    factor1 *= lowering(rises[s / 2] >> (16 * (s % 2) + 8));
  }
}

// Largest S + f^0 of every key over all queries, for keys whose sums of the first column step are too
// small for float16; `start` is f^0 of the own query, or minus infinity. The plan is not needed any more,
// and its place holds the queries: a warp takes 16 keys, whose maxima then are those of its rows.
DEVICE void column_maxima(const Inputs& p, const Lane& l, int number, int& col_number, float start, float& top0,
                          float& top1) {
  const int sample = number / p.heads;
  load_tokens(p, l, PLAN, p.q + sample * p.q_b + number % p.heads * p.q_h, p.q_n, sample, l.grid_row * SIDE,
              p.n);
  close_copy_group();
  if (!l.part) store_f32(l.shared + ROW_SCALING + l.own * 4, start);
  Tokens keys;
#pragma unroll
  for (int s = 0; s < K_STEPS; s++)
    load_matrices(keys.at[s],
                  l.shared + TOKENS + token_place(l.warp * 16 + (l.lane & 15), 2 * s + (l.lane >> 4)));
  wait_for_copies<0>();
  block_barrier();
  top0 = top1 = NONE;
#pragma unroll 2
  for (int tile = 0; tile < TILES; tile++) {
    float x[4];
    products(l, keys, PLAN, tile, x);
    const float2 f = load_f32x2(l.shared + ROW_SCALING + tile * 32 + l.pair * 8);
    top0 = larger(top0, larger(fused(x[0], p.to_log2, f.x), fused(x[1], p.to_log2, f.y)));
    top1 = larger(top1, larger(fused(x[2], p.to_log2, f.x), fused(x[3], p.to_log2, f.y)));
  }
#pragma unroll
  for (int mask = 1; mask < 4; mask *= 2) {
    top0 = larger(top0, from_lane_xor(top0, mask));
    top1 = larger(top1, from_lane_xor(top1, mask));
  }
  combine_over_queries<true>(l, col_number, top0, top1);
}

// Half steps -----------------------------------------------------------------------------------------

// A scaling, or what its rounding leaves of it, in the format of the plan.
DEVICE void store_scaling(const Lane& l, u32 place, float x, bool wide) {
  const u16 high = wide ? to_bf16(x) : to_f16(x);
  const float rest = x - (wide ? from_bf16(high) : from_f16(high));
  store_u16(l.shared + place, !l.part ? high : wide ? to_bf16(rest) : to_f16(rest));
}

template <bool WIDE>
DEVICE void multiply_add_entries(float c[4], u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
  if (WIDE) multiply_add_bf16(c, a0, a1, a2, a3, b0, b1);
  else multiply_add_f16(c, a0, a1, a2, a3, b0, b1);
}

DEVICE void add_chains(const float c[4][4], float& s0, float& s1) {
  s0 = ((c[0][0] + c[1][0]) + (c[2][0] + c[3][0])) + ((c[0][1] + c[1][1]) + (c[2][1] + c[3][1]));
  s1 = ((c[0][2] + c[1][2]) + (c[2][2] + c[3][2])) + ((c[0][3] + c[1][3]) + (c[2][3] + c[3][3]));
}

// Sums over the keys of the block, of the queries `eighth` and `eighth` + 8 of the warp, weighted by the
// scalings of which the lane has its columns at `from`.
template <bool WIDE>
DEVICE void row_products(const u32 e[TILES][2], u32 from, float& s0, float& s1) {
  float c[4][4] = {};
#pragma unroll
  for (int g = 0; g < SIDE / 32; g++) {
    const uint4 b = load_u32x4(from + g * 128);
    multiply_add_entries<WIDE>(c[2 * (g & 1)], e[4 * g][0], e[4 * g][1], e[4 * g + 1][0], e[4 * g + 1][1], b.x,
                               b.y);
    multiply_add_entries<WIDE>(c[2 * (g & 1) + 1], e[4 * g + 2][0], e[4 * g + 2][1], e[4 * g + 3][0],
                               e[4 * g + 3][1], b.z, b.w);
  }
  add_chains(c, s0, s1);
}

// Sums over the queries of the block, of the keys `eighth` and `eighth` + 8 of the warp.
template <bool WIDE>
DEVICE void col_products(const Lane& l, u32 from, float& s0, float& s1) {
  const u32 plan =
      l.shared + PLAN + plan_place((l.lane & 7) + ((l.lane >> 4) << 3), l.warp * 2 + ((l.lane >> 3) & 1));
  float c[4][4] = {};
#pragma unroll
  for (int g = 0; g < SIDE / 32; g++) {
    const uint4 a = load_u32x4(from + g * 128);
    u32 e[4];
    load_matrices_transposed(e, plan + g * 32 * PLAN_ROW_BYTES);
    multiply_add_entries<WIDE>(c[2 * (g & 1)], e[0], e[1], e[2], e[3], a.x, a.y);
    load_matrices_transposed(e, plan + (g * 32 + 16) * PLAN_ROW_BYTES);
    multiply_add_entries<WIDE>(c[2 * (g & 1) + 1], e[0], e[1], e[2], e[3], a.z, a.w);
  }
  add_chains(c, s0, s1);
}

// Sums over the keys, or the queries, of all blocks.
template <bool WIDE>
DEVICE void row_sums(const Lane& l, int& number, const u32 e[TILES][2], float& s0, float& s1) {
  row_products<WIDE>(e, l.shared + COL_SCALING + (l.eighth & 1) * 64 + l.pair * 16, s0, s1);
  combine_over_keys<false>(l, number, s0, s1);
}
template <bool WIDE>
DEVICE void col_sums(const Lane& l, int& number, float& s0, float& s1) {
  col_products<WIDE>(l, l.shared + ROW_SCALING + (l.eighth & 1) * 64 + l.pair * 16, s0, s1);
  combine_over_queries<false>(l, number, s0, s1);
}

// Both sums of the own token, of two vectors of scalings: the matrix units, of whose eight columns
// one vector takes two, have room for them.
DEVICE u32 place_of_both(const Lane& l, u32 scalings) {
  return l.shared + scalings + (l.eighth >> 1 & 1) * VECTOR_BYTES + (l.eighth & 1) * 64 + l.pair * 16;
}
// A lane has sums of two tokens, of the first vector if its `pair` is even.
DEVICE float2 both_of_own(const Lane& l, float s0, float s1) {
  const float own = l.second ? s1 : s0, other = from_lane_xor(l.second ? s0 : s1, 1);
  return {l.second ? other : own, l.second ? own : other};
}
template <bool WIDE>
DEVICE float2 both_row_sums(const Lane& l, int& number, const u32 e[TILES][2]) {
  float s0, s1;
  row_products<WIDE>(e, place_of_both(l, COL_SCALING), s0, s1);
  float2 sums = both_of_own(l, s0, s1);
  combine_both<GRID_COLS>(l, ROW_INBOX, ROW_BOXES, number, l.grid_col, l.grid_row * GRID_COLS, 1, sums);
  return sums;
}
template <bool WIDE>
DEVICE float2 both_col_sums(const Lane& l, int& number) {
  float s0, s1;
  col_products<WIDE>(l, place_of_both(l, ROW_SCALING), s0, s1);
  float2 sums = both_of_own(l, s0, s1);
  combine_both<GRID_ROWS>(l, COL_INBOX, COL_BOXES, number, l.grid_row, l.grid_col, GRID_COLS, sums);
  return sums;
}
DEVICE void store_both_scalings(const Lane& l, u32 place, float x, float y, bool wide) {
  store_scaling(l, place, x, wide);
  store_scaling(l, place + VECTOR_BYTES, y, wide);
}
