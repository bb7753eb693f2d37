// All updates of a head with its plan on chip, made once: see launch.py for the method and its limits.
//
// A cluster of GRID_ROWS x GRID_COLS blocks holds one head, block (r, c) the tile of SIDE queries from
// SIDE r and SIDE keys from SIDE c. A warp holds 16 queries of the tile in registers, as fragments of
// `multiply_add`, for the sums over keys; a copy in shared memory serves the sums over queries, for
// which a warp takes 16 keys. A lane gets sums of two tokens, and is responsible for the scaling of
// one of them, `own`, or for the rounding error of it, `part` 1.
//
// Compiled with WIDTH (channels: 32, 64 or 128), BFLOAT16 (0 or 1), GRID_ROWS, GRID_COLS and
// KEEP_DUALS (0 or 1) set, after instructions.cuh or its emulation.

constexpr int CLUSTER_SIZE = CLUSTER, SIDE = 256, THREADS = 512, WARPS = 16;
constexpr int TILES = SIDE / 8, CHUNK_TILES = 4, CHUNKS = TILES / CHUNK_TILES;
constexpr int K_STEPS = WIDTH / 16, PIECES = WIDTH / 8;
constexpr int PASS_WIDTH = WIDTH < 64 ? WIDTH : 64, PASS_PIECES = PASS_WIDTH / 8;
constexpr int TOKEN_BYTES = WIDTH * 2, PLAN_ROW_BYTES = SIDE * 2;
constexpr bool SEPARATE_VALUES = WIDTH <= 64;
constexpr int SUM_ROW_BYTES = PASS_WIDTH * 4 + 32;
constexpr int OWNER_WARPS = (WARPS + GRID_COLS - 1) / GRID_COLS;

// Places in shared memory.
constexpr u32 PLAN = 0;
constexpr u32 TOKENS = PLAN + SIDE * PLAN_ROW_BYTES;
constexpr u32 TOKENS_BYTES = SIDE * TOKEN_BYTES;
constexpr u32 COL_DUAL = TOKENS + TOKENS_BYTES * (SEPARATE_VALUES ? 2 : 1);
constexpr u32 ROW_SCALING = COL_DUAL + SIDE * 4, COL_SCALING = ROW_SCALING + SIDE * 4;
constexpr u32 WARP_MAXIMA = COL_SCALING + SIDE * 4;
constexpr u32 BLOCK_MAXIMA = WARP_MAXIMA + 2 * WARPS * 16;
constexpr u32 ROW_INBOX = BLOCK_MAXIMA + 2 * CLUSTER_SIZE * 16;
constexpr u32 COL_INBOX = ROW_INBOX + (GRID_COLS > 1 ? 2 * GRID_COLS * SIDE * 4 : 0);
constexpr u32 ROW_BOXES = COL_INBOX + (GRID_ROWS > 1 ? 2 * GRID_ROWS * SIDE * 4 : 0);
constexpr u32 COL_BOXES = ROW_BOXES + 2 * WARPS * 8;
constexpr u32 SHARED_BYTES = COL_BOXES + 2 * WARPS * 8;
static_assert(OWNER_WARPS * 16 * GRID_COLS * SUM_ROW_BYTES <= SIDE * PLAN_ROW_BYTES, "sums fit the plan");

// Units of log 2. E is at most 2^TOP, so that float16 keeps entries 2^-29 times as large precisely; what
// bounds how far updates may move log2 b with the same E, REACH, is the range of scalings in float16:
// a times ROW_UNIT lies between 2^-16 (all of 1,024 entries as large as can be) and 2^15.
constexpr float TOP = 15.f, REACH = 10.f;
// A head whose updates would go on to leave it many times continues with E and scalings in bfloat16, whose
// range hardly matters, and gets its output from a last E in float16 (`wide`).
constexpr float WIDE_REACH = 40.f, WIDE_FROM = 2.f * REACH;
constexpr float ROW_UNIT = 524288.f;  // 2^(TOP + 4)
// The first column step begins with row scalings of at most START_UNIT. Its sums may serve at once if
// they are at most 2^(2 START_ROOM) apart, and are right down to 2^-START_REACH of what one row may give.
constexpr float START_UNIT = 16.f, START_ROOM = 5.f, START_REACH = 16.f;
constexpr u32 MOST_RISE = 126;  // what is 2^126 times smaller counts as 0
constexpr float NONE = -1e30f;  // a maximum of nothing
constexpr float LOG2_E = 1.44269504f;

CONSTANT(shared_bytes_needed, SHARED_BYTES);

struct Problem {
  const u16 *q, *k, *v;
  u16* out;
  const u8* padding;
  const float* start;
  float *rows, *cols;
  i64 q_b, q_h, q_n, k_b, k_h, k_n, v_b, v_h, v_n, out_b, out_h, out_n;
  int all_heads, heads, n, m, num_iters;
  float to_log2, ratio;
};

struct Lane {
  u32 shared;
  int lane, warp, eighth, pair;  // eighth: row within a fragment; pair: which two columns of it
  int own, part;
  int grid_row, grid_col;
  u32 row_place, col_place;      // of the own scalings
};

DEVICE float negative_infinity() { return bits_to_float(0xff800000u); }

// Place of a scaling's part: one read of 16 bytes gives a lane the fragments of two products.
DEVICE u32 scaling_place(int index, int part) {
  return (index >> 5) * 128 + part * 64 + ((index >> 1) & 3) * 16 + ((index >> 4) & 1) * 8 + ((index >> 3) & 1) * 4 + (index & 1) * 2;
}
// Rows are stored with their pieces of 16 bytes exchanged, so that eight rows meet all banks.
DEVICE u32 plan_place(int row, int piece) { return row * PLAN_ROW_BYTES + ((piece ^ (row & 7)) << 4); }
DEVICE u32 token_place(int row, int piece) {
  return row * TOKEN_BYTES + ((piece ^ (WIDTH < 64 ? (row >> 1) & 3 : row & 7)) << 4);
}

DEVICE void multiply_add(float c[4], const u32 a[4], u32 b0, u32 b1) {
#if BFLOAT16
  multiply_add_bf16(c, a[0], a[1], a[2], a[3], b0, b1);
#else
  multiply_add_f16(c, a[0], a[1], a[2], a[3], b0, b1);
#endif
}
DEVICE float low_half(u32 x) { return BFLOAT16 ? bits_to_float(x << 16) : from_f16((u16)x); }
DEVICE float high_half(u32 x) { return BFLOAT16 ? bits_to_float(x & 0xffff0000u) : from_f16((u16)(x >> 16)); }
DEVICE u32 to_halves(float first, float second) { return BFLOAT16 ? to_bf16x2(first, second) : to_f16x2(first, second); }

DEVICE bool is_valid(const Problem& p, int sample, int token, int count) {
  return token < count && (p.padding == nullptr || p.padding[(i64)sample * count + token] == 0);
}

DEVICE void load_tokens(const Problem& p, const Lane& l, u32 to, const u16* from, i64 stride, int sample, int first, int count) {
#pragma unroll
  for (int x = thread(); x < SIDE * PIECES; x += THREADS) {
    const int row = x / PIECES, piece = x % PIECES;
    const bool valid = is_valid(p, sample, first + row, count);
    copy_async(l.shared + to + token_place(row, piece), valid ? from + (first + row) * stride + piece * 8 : from, valid);
  }
}

// Sums or maxima of two tokens a lane over the blocks of a row or column of the grid ---------------

template <int COUNT, bool MAXIMA>
DEVICE void combine(const Lane& l, u32 inbox, u32 boxes, int& number, int me, int first_rank, int step, float& x, float& y) {
  if (COUNT == 1) return;
  const int slot = number & 1, parity = (number >> 1) & 1;
  const u32 box = l.shared + boxes + (slot * WARPS + l.warp) * 8;
  const u32 place = l.shared + inbox + (slot * COUNT * WARPS + l.warp) * 64 + l.eighth * 8;
  if (l.lane == 0) expect_bytes(box, COUNT * 64);
  if (l.pair < COUNT) {
    const int rank = first_rank + l.pair * step;
    send(in_block(place + me * WARPS * 64, rank), x, y, in_block(box, rank));
  }
  while (!arrived(box, parity)) {}
#pragma unroll
  for (int from = 0; from < COUNT; from++) {  // in the same order everywhere: all blocks agree to the last bit
    const float2 other = load_f32x2(place + from * WARPS * 64);
    if (from == 0) { x = other.x; y = other.y; }
    else if (MAXIMA) { x = larger(x, other.x); y = larger(y, other.y); }
    else { x += other.x; y += other.y; }
  }
  number++;
}
template <bool MAXIMA>
DEVICE void combine_over_keys(const Lane& l, int& number, float& x, float& y) {
  combine<GRID_COLS, MAXIMA>(l, ROW_INBOX, ROW_BOXES, number, l.grid_col, l.grid_row * GRID_COLS, 1, x, y);
}
template <bool MAXIMA>
DEVICE void combine_over_queries(const Lane& l, int& number, float& x, float& y) {
  combine<GRID_ROWS, MAXIMA>(l, COL_INBOX, COL_BOXES, number, l.grid_row, l.grid_col, GRID_COLS, x, y);
}

DEVICE float4 larger4(float4 a, float4 b) {
  a.x = larger(a.x, b.x); a.y = larger(a.y, b.y); a.z = larger(a.z, b.z); a.w = larger(a.w, b.w);
  return a;
}
// Maxima over all threads of the block, or of the cluster. Passes a barrier of the block.
template <bool EVERYWHERE>
DEVICE float4 maxima(const Lane& l, int& number, float4 x) {
#pragma unroll
  for (int mask = 1; mask < 32; mask *= 2) {
    float4 y;
    y.x = from_lane_xor(x.x, mask); y.y = from_lane_xor(x.y, mask); y.z = from_lane_xor(x.z, mask); y.w = from_lane_xor(x.w, mask);
    x = larger4(x, y);
  }
  const int slot = number & 1;
  number++;
  const u32 warps = l.shared + WARP_MAXIMA + slot * WARPS * 16;
  if (l.lane == 0) store_f32x4(warps + l.warp * 16, x);
  block_barrier();
#pragma unroll
  for (int w = 0; w < WARPS; w++) x = larger4(x, load_f32x4(warps + w * 16));
  if (EVERYWHERE && CLUSTER_SIZE > 1) {
    const u32 blocks = l.shared + BLOCK_MAXIMA + slot * CLUSTER_SIZE * 16;
    const int me = l.grid_row * GRID_COLS + l.grid_col;
    if (thread() < CLUSTER_SIZE) store_remote_f32x4(in_block(blocks + me * 16, thread()), x);
    cluster_barrier();
#pragma unroll
    for (int b = 0; b < CLUSTER_SIZE; b++) x = larger4(x, load_f32x4(blocks + b * 16));
  }
  return x;
}

// Logits ---------------------------------------------------------------------------------------------

struct Queries { u32 at[K_STEPS][4]; };

DEVICE Queries load_queries(const Lane& l, const u16* q, i64 stride, bool valid0, bool valid1) {
  Queries queries;
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

// <q, k> of the warp's queries and 8 keys.
DEVICE void products(const Lane& l, const Queries& queries, int tile, float c[4]) {
  c[0] = c[1] = c[2] = c[3] = 0.f;
#pragma unroll
  for (int h = 0; h < K_STEPS / 2; h++) {
    u32 b[4];
    load_matrices(b, l.shared + TOKENS + tile * 8 * TOKEN_BYTES + token_place(l.lane & 7, (l.lane >> 3) + 4 * h));
    multiply_add(c, queries.at[2 * h], b[0], b[1]);
    multiply_add(c, queries.at[2 * h + 1], b[2], b[3]);
  }
}

// By how much the largest logit has risen, up to where nothing of float16 is left of smaller ones.
DEVICE u32 rise(float from, float to) {
  const float by = to - from;
  return by < (float)MOST_RISE ? (u32)by : MOST_RISE;
}
DEVICE float lowering(u32 rise) { return bits_to_float((127 - (rise & 255)) << 23); }

// E = exp2(S + g - shift) in float16, or in bfloat16 if `wide`, in registers and in shared memory, from the keys in TOKENS and g
// in COL_DUAL. The shifts are the largest logits of the rows, rounded up to whole numbers, less TOP, so that
// chunks of keys may be made with the largest logits so far, and rescaled at the end without an error.
DEVICE void make_plan(const Problem& p, const Lane& l, const u16* q, int& row_number, u32 e[TILES][2], float& shift0, float& shift1, bool valid0, bool valid1, bool wide) {
  const Queries queries = load_queries(l, q, p.q_n, valid0, valid1);
  float so_far0 = NONE, so_far1 = NONE;
  const float most = wide ? 0.f : TOP;
  u32 rises[CHUNKS / 2] = {};  // of both rows, with each chunk, in bytes
#pragma unroll
  for (int s = 0; s < CHUNKS; s++) {
    float x[CHUNK_TILES][4];
    float top0 = NONE, top1 = NONE;
#pragma unroll
    for (int t = 0; t < CHUNK_TILES; t++) {
      const int tile = s * CHUNK_TILES + t;
      products(l, queries, tile, x[t]);
      const float2 g = load_f32x2(l.shared + COL_DUAL + tile * 32 + l.pair * 8);
      x[t][0] = fused(x[t][0], p.to_log2, g.x); x[t][1] = fused(x[t][1], p.to_log2, g.y);
      x[t][2] = fused(x[t][2], p.to_log2, g.x); x[t][3] = fused(x[t][3], p.to_log2, g.y);
      top0 = larger(top0, larger(x[t][0], x[t][1])); top1 = larger(top1, larger(x[t][2], x[t][3]));
    }
    top0 = larger(so_far0, round_up(top0) - most); top1 = larger(so_far1, round_up(top1) - most);
    rises[s / 2] |= (rise(so_far0, top0) | rise(so_far1, top1) << 8) << 16 * (s % 2);
    so_far0 = top0; so_far1 = top1;
#pragma unroll
    for (int t = 0; t < CHUNK_TILES; t++) {
      x[t][0] = exp2_of(x[t][0] - top0); x[t][1] = exp2_of(x[t][1] - top0);
      x[t][2] = exp2_of(x[t][2] - top1); x[t][3] = exp2_of(x[t][3] - top1);
    }
    if (wide) {
#pragma unroll
      for (int t = 0; t < CHUNK_TILES; t++) { e[s * CHUNK_TILES + t][0] = to_bf16x2(x[t][0], x[t][1]); e[s * CHUNK_TILES + t][1] = to_bf16x2(x[t][2], x[t][3]); }
    } else {
#pragma unroll
      for (int t = 0; t < CHUNK_TILES; t++) { e[s * CHUNK_TILES + t][0] = to_f16x2(x[t][0], x[t][1]); e[s * CHUNK_TILES + t][1] = to_f16x2(x[t][2], x[t][3]); }
    }
  }
  shift0 = so_far0; shift1 = so_far1;
#pragma unroll
  for (int mask = 1; mask < 4; mask *= 2) {
    shift0 = larger(shift0, from_lane_xor(shift0, mask)); shift1 = larger(shift1, from_lane_xor(shift1, mask));
  }
  combine_over_keys<true>(l, row_number, shift0, shift1);
  float factor0 = exp2_of(so_far0 - shift0), factor1 = exp2_of(so_far1 - shift1);
  const u32 plan = l.shared + PLAN + (l.warp * 16 + (l.lane & 15)) * PLAN_ROW_BYTES;
#pragma unroll
  for (int s = CHUNKS - 1; s >= 0; s--) {
    if (wide) {
      const u32 both0 = to_bf16x2(factor0, factor0), both1 = to_bf16x2(factor1, factor1);
#pragma unroll
      for (int t = s * CHUNK_TILES; t < (s + 1) * CHUNK_TILES; t++) { e[t][0] = multiply_bf16x2(e[t][0], both0); e[t][1] = multiply_bf16x2(e[t][1], both1); }
    } else {
      const u32 both0 = to_f16x2(factor0, factor0), both1 = to_f16x2(factor1, factor1);
#pragma unroll
      for (int t = s * CHUNK_TILES; t < (s + 1) * CHUNK_TILES; t++) { e[t][0] = multiply_f16x2(e[t][0], both0); e[t][1] = multiply_f16x2(e[t][1], both1); }
    }
#pragma unroll
    for (int t = s * CHUNK_TILES; t < (s + 1) * CHUNK_TILES; t += 2)
      store_matrices(plan + (((t + (l.lane >> 4)) ^ (l.lane & 7)) << 4), e[t][0], e[t][1], e[t + 1][0], e[t + 1][1]);
    factor0 *= lowering(rises[s / 2] >> 16 * (s % 2)); factor1 *= lowering(rises[s / 2] >> (16 * (s % 2) + 8));
  }
}

// Largest S + f^0 of every key over all queries, for keys whose sums of the first column step are too
// small for float16; the plan is not needed any more, and its place holds the maxima of the warps.
DEVICE void column_maxima(const Problem& p, const Lane& l, const u16* q, int& col_number, float f0, float f1, bool valid0, bool valid1, float& top0, float& top1) {
  const Queries queries = load_queries(l, q, p.q_n, valid0, valid1);
#pragma unroll 1
  for (int tile = 0; tile < TILES; tile++) {
    float x[4];
    products(l, queries, tile, x);
    const float low = negative_infinity();
    float left = larger(valid0 ? fused(x[0], p.to_log2, f0) : low, valid1 ? fused(x[2], p.to_log2, f1) : low);
    float right = larger(valid0 ? fused(x[1], p.to_log2, f0) : low, valid1 ? fused(x[3], p.to_log2, f1) : low);
#pragma unroll
    for (int mask = 4; mask < 32; mask *= 2) { left = larger(left, from_lane_xor(left, mask)); right = larger(right, from_lane_xor(right, mask)); }
    if (l.eighth == 0) store_f32x2(l.shared + PLAN + l.warp * SIDE * 4 + tile * 32 + l.pair * 8, left, right);
  }
  block_barrier();
  top0 = top1 = NONE;
#pragma unroll 1
  for (int w = 0; w < WARPS; w++) {
    const u32 row = l.shared + PLAN + w * SIDE * 4 + (l.warp * 16 + l.eighth) * 4;
    top0 = larger(top0, load_f32(row)); top1 = larger(top1, load_f32(row + 32));
  }
  combine_over_queries<true>(l, col_number, top0, top1);
}

// Half steps -----------------------------------------------------------------------------------------

template <bool WIDE>
DEVICE void store_scaling(const Lane& l, u32 place, float x) {
  const u16 high = WIDE ? (u16)to_bf16x2(x, 0.f) : to_f16(x);
  const float rest = x - (WIDE ? bits_to_float((u32)high << 16) : from_f16(high));
  store_u16(l.shared + place, !l.part ? high : WIDE ? (u16)to_bf16x2(rest, 0.f) : to_f16(rest));
}

template <bool WIDE>
DEVICE void plan_multiply_add(float c[4], u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
  if (WIDE) multiply_add_bf16(c, a0, a1, a2, a3, b0, b1);
  else multiply_add_f16(c, a0, a1, a2, a3, b0, b1);
}

DEVICE void add_chains(const float c[4][4], float& s0, float& s1) {
  s0 = ((c[0][0] + c[1][0]) + (c[2][0] + c[3][0])) + ((c[0][1] + c[1][1]) + (c[2][1] + c[3][1]));
  s1 = ((c[0][2] + c[1][2]) + (c[2][2] + c[3][2])) + ((c[0][3] + c[1][3]) + (c[2][3] + c[3][3]));
}

// Sums over the keys of all blocks, of the queries `eighth` and `eighth` + 8 of the warp.
template <bool WIDE>
DEVICE void row_sums(const Lane& l, int& number, const u32 e[TILES][2], float& s0, float& s1) {
  const u32 from = l.shared + COL_SCALING + (l.eighth & 1) * 64 + l.pair * 16;
  float c[4][4] = {};
#pragma unroll
  for (int g = 0; g < SIDE / 32; g++) {
    const uint4 b = load_u32x4(from + g * 128);
    plan_multiply_add<WIDE>(c[2 * (g & 1)], e[4 * g][0], e[4 * g][1], e[4 * g + 1][0], e[4 * g + 1][1], b.x, b.y);
    plan_multiply_add<WIDE>(c[2 * (g & 1) + 1], e[4 * g + 2][0], e[4 * g + 2][1], e[4 * g + 3][0], e[4 * g + 3][1], b.z, b.w);
  }
  add_chains(c, s0, s1);
  combine_over_keys<false>(l, number, s0, s1);
}

// Sums over the queries of all blocks, of the keys `eighth` and `eighth` + 8 of the warp.
template <bool WIDE>
DEVICE void col_sums(const Lane& l, int& number, float& s0, float& s1) {
  const u32 from = l.shared + ROW_SCALING + (l.eighth & 1) * 64 + l.pair * 16;
  const u32 plan = l.shared + PLAN + plan_place((l.lane & 7) + ((l.lane >> 4) << 3), l.warp * 2 + ((l.lane >> 3) & 1));
  float c[4][4] = {};
#pragma unroll
  for (int g = 0; g < SIDE / 32; g++) {
    const uint4 a = load_u32x4(from + g * 128);
    u32 e[4];
    load_matrices_transposed(e, plan + g * 32 * PLAN_ROW_BYTES);
    plan_multiply_add<WIDE>(c[2 * (g & 1)], e[0], e[1], e[2], e[3], a.x, a.y);
    load_matrices_transposed(e, plan + (g * 32 + 16) * PLAN_ROW_BYTES);
    plan_multiply_add<WIDE>(c[2 * (g & 1) + 1], e[0], e[1], e[2], e[3], a.z, a.w);
  }
  add_chains(c, s0, s1);
  combine_over_queries<false>(l, number, s0, s1);
}

// The output -----------------------------------------------------------------------------------------

// Scale the values in place by b and a power of two, in float16, and return the inverse of the latter.
DEVICE float scale_values(const Lane& l, int& maxima_number, u32 values) {
  int top = 0;
#pragma unroll
  for (int x = thread(); x < SIDE * PIECES; x += THREADS) {
    const uint4 raw = load_u32x4(values + token_place(x / PIECES, x % PIECES));  // copied by this thread
    const u32 w[4] = {raw.x, raw.y, raw.z, raw.w};
#pragma unroll
    for (int i = 0; i < 4; i++) {
      const int low = w[i] & 0x7fff, high = (w[i] >> 16) & 0x7fff;
      top = low > top ? low : top;
      top = high > top ? high : top;
    }
  }
  float4 largest;
  largest.x = low_half((u32)top); largest.y = largest.z = largest.w = 0.f;
  largest = maxima<false>(l, maxima_number, largest);
  // Values below 2^5 leave room for scalings of up to 2^10.
  const int exponent = (int)(float_to_bits(largest.x) >> 23);
  int biased = exponent == 255 ? 127 : 258 - exponent;
  biased = biased > 247 ? 247 : biased;
  const float unit = bits_to_float((u32)biased << 23);
#pragma unroll
  for (int x = thread(); x < SIDE * PIECES; x += THREADS) {
    const int row = x / PIECES, piece = x % PIECES;
    const u32 scaling = l.shared + COL_SCALING;
    const float b = (from_f16(load_u16(scaling + scaling_place(row, 0))) + from_f16(load_u16(scaling + scaling_place(row, 1)))) * unit;
    const u32 at = values + token_place(row, piece);
    uint4 raw = load_u32x4(at);
    raw.x = to_f16x2(low_half(raw.x) * b, high_half(raw.x) * b); raw.y = to_f16x2(low_half(raw.y) * b, high_half(raw.y) * b);
    raw.z = to_f16x2(low_half(raw.z) * b, high_half(raw.z) * b); raw.w = to_f16x2(low_half(raw.w) * b, high_half(raw.w) * b);
    store_u32x4(at, raw);
  }
  block_barrier();
  return bits_to_float((u32)(254 - biased) << 23);
}

// E times the scaled values, PASS_WIDTH channels from `first_piece` on.
DEVICE void plan_times_values(const Lane& l, const u32 e[TILES][2], u32 values, int first_piece, float o[PASS_PIECES][4]) {
#pragma unroll
  for (int d = 0; d < PASS_PIECES; d++) o[d][0] = o[d][1] = o[d][2] = o[d][3] = 0.f;
#pragma unroll
  for (int k = 0; k < SIDE / 16; k++) {
#pragma unroll
    for (int d = 0; d < PASS_PIECES; d += 2) {
      u32 b[4];
      load_matrices_transposed(b, values + k * 16 * TOKEN_BYTES + token_place(l.lane & 15, first_piece + d + (l.lane >> 4)));
      multiply_add_f16(o[d], e[2 * k][0], e[2 * k][1], e[2 * k + 1][0], e[2 * k + 1][1], b[0], b[1]);
      multiply_add_f16(o[d + 1], e[2 * k][0], e[2 * k][1], e[2 * k + 1][0], e[2 * k + 1][1], b[2], b[3]);
    }
  }
}

// Write the warp's 16 queries; `out` points to the first query of the block.
DEVICE void store_output(const Problem& p, const Lane& l, u16* out, int first_query, const float o[PASS_PIECES][4]) {
  const u32 rows = l.shared + PLAN;
#pragma unroll
  for (int d = 0; d < PASS_PIECES; d += 2)
    store_matrices(rows + plan_place(l.warp * 16 + (l.lane & 15), d + (l.lane >> 4)),
      to_halves(o[d][0], o[d][1]), to_halves(o[d][2], o[d][3]), to_halves(o[d + 1][0], o[d + 1][1]), to_halves(o[d + 1][2], o[d + 1][3]));
  warp_barrier();
#pragma unroll
  for (int x = l.lane; x < 16 * PASS_PIECES; x += 32) {
    const int row = l.warp * 16 + x / PASS_PIECES, piece = x % PASS_PIECES;
    if (first_query + row < p.n) store_global_u32x4(out + row * p.out_n + piece * 8, load_u32x4(rows + plan_place(row, piece)));
  }
  warp_barrier();
}

// Add up the parts of a row of blocks, each for some of its queries, and write them. The places of the
// plans hold the parts `[GRID_COLS, OWNER_WARPS * 16, PASS_WIDTH]`.
DEVICE void store_summed_output(const Problem& p, const Lane& l, u16* out, int first_query, const float o[PASS_PIECES][4]) {
  const int owner = l.warp / OWNER_WARPS;
  const u32 part = in_block(l.shared + PLAN + (l.grid_col * OWNER_WARPS + l.warp % OWNER_WARPS) * 16 * SUM_ROW_BYTES, l.grid_row * GRID_COLS + owner);
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
      left.x += x0.x; left.y += x0.y; left.z += x0.z; left.w += x0.w;
      right.x += x1.x; right.y += x1.y; right.z += x1.z; right.w += x1.w;
    }
    uint4 packed;
    packed.x = to_halves(left.x, left.y); packed.y = to_halves(left.z, left.w);
    packed.z = to_halves(right.x, right.y); packed.w = to_halves(right.z, right.w);
    store_global_u32x4(out + query * p.out_n + piece * 8, packed);
  }
}

// The head that a cluster works on. Its duals are f = log2 a - shift - offset and
// g = COL_DUAL + log2 b + offset, of the own tokens; `second`: the own ones are 8 after `eighth`.
struct Head {
  int number, sample, head;
  const u16* q;
  bool valid0, valid1, second, valid_row, valid_col;
  float shift0, shift1, offset;
  float b, before;  // own column scaling, and that of the update before
};
struct Numbers { int rows, cols, maxima; };  // exchanges so far

enum Stage { FROM_ZERO, FROM_MAXIMA, REMADE };

DEVICE u32 own_col_dual(const Lane& l) { return l.shared + COL_DUAL + l.own * 4; }
DEVICE void add_to_col_dual(const Lane& l, const Head& x, float by) {
  if (!l.part && x.valid_col) store_f32(own_col_dual(l), load_f32(own_col_dual(l)) + by);
}

// Keep f^t or g^t of the own token, where duals are kept.
DEVICE void keep_row(const Problem& p, const Lane& l, const Head& x, int t, float dual) {
  const int query = l.grid_row * SIDE + l.own;
  if (KEEP_DUALS && l.grid_col == 0 && !l.part && query < p.n)
    p.rows[((i64)x.number * (p.num_iters + 1) + t) * p.n + query] = x.valid_row ? dual : 0.f;
}
DEVICE void keep_row_of_sum(const Problem& p, const Lane& l, const Head& x, int t, float sum) {
  if (KEEP_DUALS) keep_row(p, l, x, t, -log2_of(sum) - (x.second ? x.shift1 : x.shift0) - x.offset);
}
DEVICE void keep_col(const Problem& p, const Lane& l, const Head& x, int t) {
  const int key = l.grid_col * SIDE + l.own;
  if (KEEP_DUALS && l.grid_row == 0 && !l.part && key < p.m)
    p.cols[((i64)x.number * p.num_iters + t - 1) * p.m + key] = x.valid_col ? load_f32(own_col_dual(l)) + log2_of(x.b) + x.offset : 0.f;
}

DEVICE float start_of(const Problem& p, const Head& x, int query, bool valid) {
  return p.start && valid ? p.start[(i64)x.number * p.n + query] * LOG2_E : 0.f;
}

// The first column step, after `make_plan`. Sets b if its sums may serve at once; else returns false, with
// COL_DUAL changed for a plan to be made next: if the sums are right they give g^1, and if some are too
// small to be, the keys' largest logits are what the plan is made from first.
template <bool WIDE>
DEVICE bool first_col_step(const Problem& p, const Lane& l, Numbers& numbers, Head& x, Stage& stage) {
  const int query = l.grid_row * SIDE + l.warp * 16 + l.eighth;
  const float start0 = start_of(p, x, query, x.valid0), start1 = start_of(p, x, query + 8, x.valid1);
  // The row scaling of f^0 is exp2(f^0 + shift), kept relative to the largest.
  const float exponent = x.second ? x.shift1 + start1 : x.shift0 + start0;
  float4 top = {x.valid_row ? exponent : NONE, 0.f, 0.f, 0.f};
  const float most = maxima<true>(l, numbers.maxima, top).x;
  store_scaling<WIDE>(l, l.row_place, x.valid_row ? START_UNIT * exp2_of(exponent - most) : 0.f);
  block_barrier();
  float s0, s1;
  col_sums<WIDE>(l, numbers.cols, s0, s1);
  const float sum = x.second ? s1 : s0;
  top.x = x.valid_col ? sum : NONE; top.y = x.valid_col ? -sum : NONE;
  top = maxima<true>(l, numbers.maxima, top);
  const float most_sum = top.x, least_sum = -top.y;
  const float middle = least_sum * exp2_of(0.5f * log2_of(most_sum / least_sum));
  x.offset = log2_of(p.ratio * START_UNIT / middle) - most;
  if (most_sum <= least_sum * exp2_of(2.f * START_ROOM)) {
    stage = REMADE;
    x.b = x.valid_col ? middle * inverse(sum) : 0.f;
    return true;
  }
  if (stage == FROM_MAXIMA || least_sum >= START_UNIT * exp2_of(TOP - START_REACH)) {
    stage = REMADE;
    add_to_col_dual(l, x, log2_of(middle) - log2_of(sum));
  } else {
    stage = FROM_MAXIMA;
    float top0, top1;
    column_maxima(p, l, x.q, numbers.cols, start0, start1, x.valid0, x.valid1, top0, top1);
    if (!l.part && x.valid_col) store_f32(own_col_dual(l), -(x.second ? top1 : top0));
  }
  return false;
}

// Make the updates from t until before `until`.
template <bool WIDE>
DEVICE void update(const Problem& p, const Lane& l, Numbers& numbers, Head& x, const u32 e[TILES][2], int& t, int until) {
#pragma unroll 1
  for (; t < until; t++) {
    float s0, s1;
    row_sums<WIDE>(l, numbers.rows, e, s0, s1);
    const float sum = x.second ? s1 : s0;
    store_scaling<WIDE>(l, l.row_place, x.valid_row ? ROW_UNIT * inverse(sum) : 0.f);
    keep_row_of_sum(p, l, x, t, sum);
    block_barrier();
    col_sums<WIDE>(l, numbers.cols, s0, s1);
    x.before = x.b;
    x.b = x.valid_col ? p.ratio * ROW_UNIT * inverse(x.second ? s1 : s0) : 0.f;
    store_scaling<WIDE>(l, l.col_place, x.b);
    keep_col(p, l, x, t + 1);
    block_barrier();
  }
}

// What no plan of this head is made from any more is overwritten by what is needed next: its values, or
// the keys of the next head, which then arrive during the updates. Returns whether those were asked for.
DEVICE bool load_ahead(const Problem& p, const Lane& l, const Head& x) {
  const int first_query = l.grid_row * SIDE, first_key = l.grid_col * SIDE;
  bool keys_asked_for = false;
  if (SEPARATE_VALUES) {
    const int next = x.number + cluster_count();
    keys_asked_for = next < p.all_heads;
    if (keys_asked_for) {
      const int sample = next / p.heads, head = next % p.heads;
      load_tokens(p, l, TOKENS, p.k + sample * p.k_b + head * p.k_h, p.k_n, sample, first_key, p.m);
      const int row = first_query + thread() / 2;  // its queries come as far as the L2 cache
      if (row < p.n) prefetch(p.q + sample * p.q_b + head * p.q_h + row * p.q_n + (thread() & 1) * (WIDTH / 2));
    }
  } else {
    load_tokens(p, l, TOKENS, p.v + x.sample * p.v_b + x.head * p.v_h, p.v_n, x.sample, first_key, p.m);
  }
  close_copy_group();
  return keys_asked_for;
}

KERNEL sinkhorn_on_chip(PARAMETER Problem p) {
  Lane l;
  l.shared = shared_base();
  l.lane = thread() & 31; l.warp = thread() >> 5;
  l.eighth = l.lane >> 2; l.pair = l.lane & 3;
  l.own = l.warp * 16 + l.eighth + (l.pair >> 1) * 8; l.part = l.pair & 1;
  l.grid_row = block_rank() / GRID_COLS; l.grid_col = block_rank() % GRID_COLS;
  l.row_place = ROW_SCALING + scaling_place(l.own, l.part); l.col_place = COL_SCALING + scaling_place(l.own, l.part);
  const int first_query = l.grid_row * SIDE, first_key = l.grid_col * SIDE;
  Numbers numbers = {0, 0, 0};
  bool keys_asked_for = false;
  u32 e[TILES][2];

  if (CLUSTER_SIZE > 1) {
    if (thread() < 4 * WARPS) open_mailbox(l.shared + ROW_BOXES + thread() * 8);
    mailboxes_open();
    cluster_barrier();
  }
#pragma unroll 1
  for (int number = cluster_number(); number < p.all_heads; number += cluster_count()) {
    Head x;
    x.number = number; x.sample = number / p.heads; x.head = number % p.heads;
    x.q = p.q + x.sample * p.q_b + x.head * p.q_h + first_query * p.q_n;
    const int query = first_query + l.warp * 16 + l.eighth;
    x.second = l.pair >> 1;
    x.valid0 = is_valid(p, x.sample, query, p.n); x.valid1 = is_valid(p, x.sample, query + 8, p.n);
    x.valid_row = x.second ? x.valid1 : x.valid0; x.valid_col = is_valid(p, x.sample, first_key + l.own, p.m);

    if (!keys_asked_for) {
      load_tokens(p, l, TOKENS, p.k + x.sample * p.k_b + x.head * p.k_h, p.k_n, x.sample, first_key, p.m);
      close_copy_group();
    }
    if (SEPARATE_VALUES) {
      load_tokens(p, l, TOKENS + TOKENS_BYTES, p.v + x.sample * p.v_b + x.head * p.v_h, p.v_n, x.sample, first_key, p.m);
      close_copy_group();
    }
    if (!l.part) store_f32(own_col_dual(l), x.valid_col ? 0.f : negative_infinity());
    if (SEPARATE_VALUES) wait_for_copies<1>(); else wait_for_copies<0>();

    // `settled`: all updates that are left may use the plan at hand.
    int t = 1, steps = p.num_iters > 1 ? 1 : 0;
    bool settled = p.num_iters == 1, ahead = false, wide = false, remake = true;
    Stage stage = FROM_ZERO;
#pragma unroll 1
    while (remake) {
      block_barrier();
      make_plan(p, l, x.q, numbers.rows, e, x.shift0, x.shift1, x.valid0, x.valid1, wide);
      if (stage == REMADE) {
        x.b = x.valid_col ? 1.f : 0.f;
      } else if (!(wide ? first_col_step<true>(p, l, numbers, x, stage) : first_col_step<false>(p, l, numbers, x, stage))) {
        wide = stage == FROM_MAXIMA && p.num_iters > 1;
        continue;
      }
      if (wide) store_scaling<true>(l, l.col_place, x.b); else store_scaling<false>(l, l.col_place, x.b);
      if (KEEP_DUALS && t == 1) {
        keep_row(p, l, x, 0, start_of(p, x, first_query + l.own, x.valid_row));
        keep_col(p, l, x, 1);
      }
      block_barrier();

      remake = false;
#pragma unroll 1
      while (!remake) {
        if (settled && !wide && !ahead) { ahead = true; keys_asked_for = load_ahead(p, l, x); }
        x.before = x.b;
        if (wide) update<true>(p, l, numbers, x, e, t, t + steps); else update<false>(p, l, numbers, x, e, t, t + steps);
        if (settled && !wide) break;
        const float exponent = x.valid_col ? log2_of(x.b) : 0.f;
        if (settled) {  // the last plan is in float16
          remake = true; wide = false; steps = 0;
        } else {
          // Updates are nonexpansive in log b: none moves a scaling further than the one before moved some.
          const float moved = x.valid_col ? exponent - log2_of(x.before) : 0.f;
          float4 top = {exponent, -exponent, moved, -moved};
          top = maxima<true>(l, numbers.maxima, top);
          const float used = larger(top.x, top.y), step = larger(top.z, top.w);
          const int left = p.num_iters - t;
          float room = (wide ? WIDE_REACH : REACH) - used;
          remake = !(room >= 0.f) || (left > 0 && step > room);
          if (remake) {
            wide = left > 0 && (wide || step * left > WIDE_FROM);
            room = wide ? WIDE_REACH : REACH;
          }
          settled = left == 0 || step * left <= room;
          steps = settled ? left : step > room ? 1 : (int)(room / step);
          if (!settled && steps < 1) steps = 1;
        }
        if (remake) add_to_col_dual(l, x, exponent);
      }
    }

    if (SEPARATE_VALUES) wait_for_copies<1>(); else wait_for_copies<0>();
    float s0, s1;
    row_sums<false>(l, numbers.rows, e, s0, s1);
    keep_row_of_sum(p, l, x, p.num_iters, x.second ? s1 : s0);
    const u32 values = l.shared + TOKENS + (SEPARATE_VALUES ? TOKENS_BYTES : 0);
    const float unit = scale_values(l, numbers.maxima, values);
    const float i0 = inverse(s0), i1 = inverse(s1);
#pragma unroll 1
    for (int first_piece = 0; first_piece < PIECES; first_piece += PASS_PIECES) {
      float o[PASS_PIECES][4];
      plan_times_values(l, e, values, first_piece, o);
#pragma unroll
      for (int d = 0; d < PASS_PIECES; d++) {
        o[d][0] = x.valid0 ? o[d][0] * i0 * unit : 0.f; o[d][1] = x.valid0 ? o[d][1] * i0 * unit : 0.f;
        o[d][2] = x.valid1 ? o[d][2] * i1 * unit : 0.f; o[d][3] = x.valid1 ? o[d][3] * i1 * unit : 0.f;
      }
      u16* out = p.out + x.sample * p.out_b + x.head * p.out_h + first_query * p.out_n + first_piece * 8;
      if (GRID_COLS > 1) store_summed_output(p, l, out, first_query, o);
      else store_output(p, l, out, first_query, o);
    }
    block_barrier();  // the values and the plan may be overwritten
  }
  if (CLUSTER_SIZE > 1) cluster_barrier();  // no block ends while others send to it
}
