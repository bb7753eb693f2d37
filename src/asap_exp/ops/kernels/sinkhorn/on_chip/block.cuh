// A block and its lanes: what shared memory holds, what is read from global memory, and what the blocks of a
// cluster tell each other.
//
// A cluster of GRID_ROWS x GRID_COLS blocks holds one head, block (r, c) the tile of SIDE queries from
// SIDE r and SIDE keys from SIDE c. A warp holds 16 queries of the tile in registers, as fragments of
// `multiply_add`, for the sums over keys; a copy in shared memory serves the sums over queries, for
// which a warp takes 16 keys. A lane gets sums of two tokens, and is responsible for the scaling of
// one of them, `own`, or for the rounding error of it, `part` 1.
//
// Compiled with WIDTH (channels: 32, 64 or 128), BFLOAT16 (0 or 1), GRID_ROWS, GRID_COLS, their product
// CLUSTER, KEEP_DUALS (0 or 1, for plan.cu) and GRADIENT (1 for adjoint.cu) set, after instructions.cuh or
// its emulation.

constexpr int CLUSTER_SIZE = CLUSTER, SIDE = 256, THREADS = 512, WARPS = 16;
constexpr int TILES = SIDE / 8, CHUNK_TILES = 4, CHUNKS = TILES / CHUNK_TILES;
constexpr int K_STEPS = WIDTH / 16, PIECES = WIDTH / 8;
constexpr int PASS_WIDTH = WIDTH < 64 ? WIDTH : 64, PASS_PIECES = PASS_WIDTH / 8;
constexpr int TOKEN_BYTES = WIDTH * 2, PLAN_ROW_BYTES = SIDE * 2;
constexpr bool SEPARATE_VALUES = WIDTH <= 64 && !GRADIENT;
// Vectors that a half step multiplies with the plan, and the bytes of one.
constexpr int VECTORS = GRADIENT ? 2 : 1, VECTOR_BYTES = SIDE * 4;
// Bytes of an exchange among COUNT blocks: all send one sum of every token, or the others send two.
DEVICE constexpr u32 exchange_bytes(int count) {
  return count == 1 ? 0 : (VECTORS == 1 ? count : 2 * (count - 1)) * SIDE * 4;
}
constexpr int SUM_ROW_BYTES = PASS_WIDTH * 4 + 32;
constexpr int OWNER_WARPS = (WARPS + GRID_COLS - 1) / GRID_COLS;

// Places in shared memory.
constexpr u32 PLAN = 0;
constexpr u32 TOKENS = PLAN + SIDE * PLAN_ROW_BYTES;
constexpr u32 TOKENS_BYTES = SIDE * TOKEN_BYTES;
constexpr u32 COL_DUAL = TOKENS + TOKENS_BYTES * (SEPARATE_VALUES ? 2 : 1);
constexpr u32 ROW_SCALING = COL_DUAL + SIDE * 4, COL_SCALING = ROW_SCALING + VECTORS * VECTOR_BYTES;
constexpr u32 WARP_MAXIMA = COL_SCALING + VECTORS * VECTOR_BYTES;
constexpr u32 BLOCK_MAXIMA = WARP_MAXIMA + 2 * WARPS * 16;
constexpr u32 ROW_INBOX = BLOCK_MAXIMA + 2 * CLUSTER_SIZE * 16;
constexpr u32 COL_INBOX = ROW_INBOX + 2 * exchange_bytes(GRID_COLS);
constexpr u32 ROW_BOXES = COL_INBOX + 2 * exchange_bytes(GRID_ROWS);
constexpr u32 COL_BOXES = ROW_BOXES + 2 * WARPS * 8;
constexpr u32 SHARED_BYTES = COL_BOXES + 2 * WARPS * 8;
static_assert(SHARED_BYTES <= 232448, "shared memory that a block may have");
static_assert(OWNER_WARPS * 16 * GRID_COLS * SUM_ROW_BYTES <= SIDE * PLAN_ROW_BYTES, "sums fit the plan");

// Units of log 2. E is at most 2^TOP, so that float16 keeps entries 2^-29 times as large precisely; what
// bounds how far updates may move log2 b with the same E, REACH, is the range of scalings in float16:
// a times ROW_UNIT lies between 2^-16 (all of 1,024 entries as large as can be) and 2^15.
constexpr float TOP = 15.f, REACH = 10.f;
// By how much a plan is ahead of scalings that go on moving: E would keep too little of small entries beyond.
constexpr float LEAD = 6.f;
// How far beyond REACH sums are still right: of trained models, columns lose precision from 5 on.
constexpr float BEYOND = 3.f;
// A wide plan holds E and scalings in bfloat16, whose range updates hardly ever leave, with an error of
// 2^-9 of an entry: no more than bfloat16 inputs and outputs have, but too much for duals that a gradient
// is made of. Entries that count are at most 2^(2 WIDE_REACH) times smaller in E than the largest of their
// row, which is well within 2^-126.
constexpr bool MAY_BE_WIDE = BFLOAT16 && !KEEP_DUALS;
constexpr float WIDE_REACH = 60.f, WIDE_LEAD = 52.f;
// How far scalings may go on moving, at most, that no wide plan is made for: most come to rest sooner.
constexpr float FAR = 64.f;
constexpr float ROW_UNIT = 524288.f;  // 2^(TOP + 4)
// The first column step begins with row scalings of at most START_UNIT. Its sums are right down to
// 2^-START_REACH of what one row may give.
constexpr float START_UNIT = 16.f, START_REACH = 16.f;
constexpr u32 MOST_RISE = 126;  // what is 2^126 times smaller counts as 0
constexpr float NONE = -1e30f;  // a maximum of nothing
constexpr float LOG2_E = 1.44269504f;

CONSTANT(shared_bytes_needed, SHARED_BYTES);

// What every program reads; its Problem adds the rest.
struct Inputs {
  const u16 *q, *k;
  const u8* padding;
  i64 q_b, q_h, q_n, k_b, k_h, k_n;
  int all_heads, heads, n, m, num_iters;
  float to_log2, ratio;
};

struct Lane {
  u32 shared;
  int lane, warp, eighth, pair;  // eighth: row within a fragment; pair: which two columns of it
  int own, second, part;     // second: the own token is 8 after `eighth`
  int grid_row, grid_col;
  u32 row_place, col_place;  // of the own scalings
};
struct Numbers {
  int rows, cols, maxima;
};  // exchanges so far

DEVICE float negative_infinity() { return bits_to_float(0xff800000u); }

// Place of a scaling's part: one read of 16 bytes gives a lane the fragments of two products.
DEVICE u32 scaling_place(int index, int part) {
  return (index >> 5) * 128 + part * 64 + ((index >> 1) & 3) * 16 + ((index >> 4) & 1) * 8 +
         ((index >> 3) & 1) * 4 + (index & 1) * 2;
}
// Rows are stored with their pieces of 16 bytes exchanged, so that eight rows meet all banks.
DEVICE u32 plan_place(int row, int piece) { return row * PLAN_ROW_BYTES + ((piece ^ (row & 7)) << 4); }
DEVICE u32 token_place(int row, int piece) {
  return row * TOKEN_BYTES + ((piece ^ (WIDTH < 64 ? (row >> 1) & 3 : row & 7)) << 4);
}

DEVICE Lane lane_of_thread() {
  Lane l;
  l.shared = shared_base();
  // The updates of a gradient would else make the number of the warp again, four times each.
  const int me = GRADIENT && CLUSTER_SIZE > 1 ? thread_read_here() : thread();
  l.lane = me & 31;
  l.warp = me >> 5;
  l.eighth = l.lane >> 2;
  l.pair = l.lane & 3;
  l.second = l.pair & 1;
  l.part = l.pair >> 1;
  l.own = l.warp * 16 + l.eighth + l.second * 8;
  l.grid_row = block_rank() / GRID_COLS;
  l.grid_col = block_rank() % GRID_COLS;
  l.row_place = ROW_SCALING + scaling_place(l.own, l.part);
  l.col_place = COL_SCALING + scaling_place(l.own, l.part);
  return l;
}
DEVICE u32 own_col_dual(const Lane& l) { return l.shared + COL_DUAL + l.own * 4; }

DEVICE void open_cluster(const Lane& l) {
  if (CLUSTER_SIZE == 1) return;
  if (thread() < 4 * WARPS) open_mailbox(l.shared + ROW_BOXES + thread() * 8);
  mailboxes_open();
  cluster_barrier();
}
DEVICE void close_cluster() {
  if (CLUSTER_SIZE > 1) cluster_barrier();  // no block ends while others send to it
}

DEVICE void multiply_add(float c[4], const u32 a[4], u32 b0, u32 b1) {
#if BFLOAT16
  multiply_add_bf16(c, a[0], a[1], a[2], a[3], b0, b1);
#else
  multiply_add_f16(c, a[0], a[1], a[2], a[3], b0, b1);
#endif
}
DEVICE float from_bf16(u16 x) { return bits_to_float((u32)x << 16); }
DEVICE float low_half(u32 x) { return BFLOAT16 ? from_bf16((u16)x) : from_f16((u16)x); }
DEVICE float high_half(u32 x) { return BFLOAT16 ? bits_to_float(x & 0xffff0000u) : from_f16((u16)(x >> 16)); }
DEVICE u32 to_halves(float first, float second) {
  return BFLOAT16 ? to_bf16x2(first, second) : to_f16x2(first, second);
}

DEVICE bool is_valid(const Inputs& p, int sample, int token, int count) {
  return token < count && (p.padding == nullptr || p.padding[(i64)sample * count + token] == 0);
}

// The pieces of 16 bytes that a thread copies: one of every ROWS tokens, in rows that are stored alike.
struct OwnPieces {
  static constexpr int ROWS = THREADS / PIECES, COUNT = SIDE / ROWS;
  static_assert(ROWS % 32 == 0, "rows and their scalings are stored alike");
  int row, piece;
  u32 first;
  DEVICE_MEMBER u32 at(int i) const { return first + i * ROWS * TOKEN_BYTES; }
};
DEVICE OwnPieces own_pieces(u32 tokens) {
  const int me = thread_read_here(), row = me / PIECES, piece = me % PIECES;
  return {row, piece, tokens + token_place(row, piece)};
}

DEVICE void load_tokens(const Inputs& p, const Lane& l, u32 to, const u16* from, i64 stride, int sample,
                        int first, int count) {
  const OwnPieces own = own_pieces(to);
  const u16* x = from + (first + own.row) * stride + own.piece * 8;
  if (p.padding == nullptr && first + SIDE <= count) {
#pragma unroll
    for (int i = 0; i < OwnPieces::COUNT; i++)
      copy_async(l.shared + own.at(i), x + i * OwnPieces::ROWS * stride);
    return;
  }
#pragma unroll 1
  for (int i = 0; i < OwnPieces::COUNT; i++) {
    const bool valid = is_valid(p, sample, first + own.row + i * OwnPieces::ROWS, count);
    copy_async_if(l.shared + own.at(i), valid ? x + i * OwnPieces::ROWS * stride : from, valid);
  }
}

DEVICE const u16* queries_of(const Inputs& p, const Lane& l, int number) {
  return p.q + number / p.heads * p.q_b + number % p.heads * p.q_h + l.grid_row * SIDE * p.q_n;
}
DEVICE void load_keys(const Inputs& p, const Lane& l, int number) {
  const int sample = number / p.heads;
  load_tokens(p, l, TOKENS, p.k + sample * p.k_b + number % p.heads * p.k_h, p.k_n, sample,
              l.grid_col * SIDE, p.m);
}
// Ask for the keys of the next head, where those of this one are not needed any more; its queries come as
// far as the L2 cache. Returns whether there is one.
DEVICE bool load_next_head(const Inputs& p, const Lane& l, int number) {
  const int next = number + cluster_count(), row = thread() / 2;
  if (next >= p.all_heads) return false;
  load_keys(p, l, next);
  if (l.grid_row * SIDE + row < p.n)
    prefetch(queries_of(p, l, next) + row * p.q_n + (thread() & 1) * (WIDTH / 2));
  return true;
}

// Sums or maxima of two tokens a lane over the blocks of a row or column of the grid ---------------

template <int COUNT, bool MAXIMA>
DEVICE void combine(const Lane& l, u32 inbox, u32 boxes, int& number, int me, int first_rank, int step,
                    float& x, float& y) {
  if (COUNT == 1) return;
  const int slot = number & 1, parity = (number >> 1) & 1;
  const u32 box = l.shared + boxes + (slot * WARPS + l.warp) * 8;
  const u32 place = l.shared + inbox + slot * exchange_bytes(COUNT) + l.warp * 64 + l.eighth * 8;
  if (l.lane == 0) expect_bytes(box, COUNT * 64);
  if (l.pair < COUNT) {
    const int rank = first_rank + l.pair * step;
    send(in_block(place + me * WARPS * 64, rank), x, y, in_block(box, rank));
  }
  while (!arrived(box, parity)) {}
#pragma unroll
  for (int from = 0; from < COUNT;
       from++) {  // in the same order everywhere: all blocks agree to the last bit
    const float2 other = load_f32x2(place + from * WARPS * 64);
    if (from == 0) {
      x = other.x;
      y = other.y;
    } else if (MAXIMA) {
      x = larger(x, other.x);
      y = larger(y, other.y);
    } else {
      x += other.x;
      y += other.y;
    }
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

// Add up two sums of the own token, which both of its lanes have, over the blocks. What the `i`th block after
// a block sends is the `i`th that it gets, and all add up in this order: blocks may differ in the last bit.
template <int COUNT>
DEVICE void combine_both(const Lane& l, u32 inbox, u32 boxes, int& number, int me, int first_rank, int step,
                         float2& x) {
  if (COUNT == 1) return;
  const int slot = number & 1, parity = (number >> 1) & 1;
  const u32 box = l.shared + boxes + (slot * WARPS + l.warp) * 8;
  const u32 place = l.shared + inbox + slot * exchange_bytes(COUNT) + l.own * 8;
  if (l.lane == 0) expect_bytes(box, (COUNT - 1) * 128);
#pragma unroll
  for (int i = 0; i < COUNT - 1; i++) {
    if (l.part != (i & 1)) continue;  // the two lanes share the work
    const int to = me > i ? me - i - 1 : me - i - 1 + COUNT;
    const int rank = first_rank + to * step;
    send(in_block(place + i * SIDE * 8, rank), x.x, x.y, in_block(box, rank));
  }
  while (!arrived(box, parity)) {}
#pragma unroll
  for (int i = 0; i < COUNT - 1; i++) {
    const float2 other = load_f32x2(place + i * SIDE * 8);
    x.x += other.x;
    x.y += other.y;
  }
  number++;
}

// Integers in the order of numbers, of which a warp has the largest at once; NaN counts as nothing.
DEVICE int ordered(float x) {
  const int bits = (int)float_to_bits(larger(x, negative_infinity()));
  return bits ^ (bits >> 31 & 0x7fffffff);
}
DEVICE float from_ordered(int x) { return bits_to_float((u32)(x ^ (x >> 31 & 0x7fffffff))); }

// Up to four integers of every warp, or block, lie 16 bytes apart.
template <int COUNT>
DEVICE uint4 packed(const int x[COUNT]) {
  return {(u32)x[0], (u32)x[COUNT > 1 ? 1 : 0], (u32)x[COUNT > 2 ? 2 : 0], (u32)x[COUNT > 3 ? 3 : 0]};
}
template <int COUNT>
DEVICE void largest_of(u32 at, int x[COUNT]) {
  const uint4 read = COUNT > 1 ? load_u32x4(at) : uint4{load_u32(at), 0, 0, 0};
  const u32 all[4] = {read.x, read.y, read.z, read.w};
#pragma unroll
  for (int i = 0; i < COUNT; i++) x[i] = warp_maximum((int)all[i]);
}

// Maxima over all threads of the block, or of the cluster. Passes a barrier of the block.
template <bool EVERYWHERE, int COUNT>
DEVICE void maxima(const Lane& l, int& number, float (&x)[COUNT]) {
  int top[COUNT];
#pragma unroll
  for (int i = 0; i < COUNT; i++) top[i] = warp_maximum(ordered(x[i]));
  const int slot = number & 1;
  number++;
  const u32 warps = l.shared + WARP_MAXIMA + slot * WARPS * 16;
  if (l.lane == 0) store_u32x4(warps + l.warp * 16, packed<COUNT>(top));
  block_barrier();
  largest_of<COUNT>(warps + (l.lane & (WARPS - 1)) * 16, top);
  if (EVERYWHERE && CLUSTER_SIZE > 1) {
    const u32 blocks = l.shared + BLOCK_MAXIMA + slot * CLUSTER_SIZE * 16;
    const int me = l.grid_row * GRID_COLS + l.grid_col;
    if (thread() < CLUSTER_SIZE) store_remote_u32x4(in_block(blocks + me * 16, thread()), packed<COUNT>(top));
    cluster_barrier();
    largest_of<COUNT>(blocks + (l.lane < CLUSTER_SIZE ? l.lane : 0) * 16, top);
  }
#pragma unroll
  for (int i = 0; i < COUNT; i++) x[i] = from_ordered(top[i]);
}
