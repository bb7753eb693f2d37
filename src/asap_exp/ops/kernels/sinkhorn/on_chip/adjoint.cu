// The adjoints of all updates of a head with its plan on chip: adjoint.py describes the method.

struct Problem : Inputs {
  const float *rows, *cols, *grad_col, *powers;
  const int* lowest;
  float *row_weights, *col_weights, *grad_start;
  float log2_ratio;
};

// Scalings alone, a = exp2(f + shift) m / n <= 2^(1 - TOP + reach) and b = exp2(g - G) <= 2^reach, are
// stored times powers of two with which they stay below 2^14 for the reach of adjoint.py, 8.
constexpr float ROW_UNIT_LOG2 = 20.f, COL_UNIT_LOG2 = 6.f;
static_assert(ROW_UNIT_LOG2 - COL_UNIT_LOG2 == TOP - 1.f, "a and b are stored with the same bound");
// Adjoints are kept times 2^UNIT_EXPONENT. Divided by sums of E a, in units of ROW_UNIT_LOG2, this leaves
// dg b as it is; divided by sums of E b it leaves df a times 2^(TOP - 1), which has the same bound.
constexpr int UNIT_EXPONENT = 20;
static_assert(UNIT_EXPONENT == ROW_UNIT_LOG2, "dg b has no unit");

// What the own query and key need for g^s, read an update ahead: f^(s-1), g^(s-1), and the power of two by
// which adjoints are scaled.
struct Update {
  float f, earlier_g, power;
};
// Where those lie; a token that does not exist reads those of the first, and counts nowhere.
struct Places {
  u32 row, col, power;
};
DEVICE Update next_update(const Problem& p, Places& at, bool is_last) {
  const Update x = {p.rows[at.row], p.cols[at.col], p.powers[at.power]};
  if (!is_last) {
    at.row -= p.n;
    at.col -= p.m;
    at.power--;
  }
  return x;
}

// A power of two that brings the largest of the cluster to between 1 and 2 times 2^UNIT_EXPONENT, and its
// inverse. What is not finite is left as it is, to be seen.
DEVICE float scale_of(const Lane& l, int& maxima_number, float x, float& inverse_scale) {
  float top[1] = {larger(x, -x)};
  maxima<true>(l, maxima_number, top);
  int exponent = (int)(float_to_bits(top[0]) >> 23);
  if (exponent == 255) exponent = 127;
  exponent = exponent < UNIT_EXPONENT + 1 ? UNIT_EXPONENT + 1 : exponent;
  inverse_scale = bits_to_float((u32)(exponent - UNIT_EXPONENT) << 23);
  return bits_to_float((u32)(254 + UNIT_EXPONENT - exponent) << 23);
}

// What a head's own query and key need from update to update. `s` is the update that g^s belongs to; df is
// df^s and dg is dg^(s+1), or dg^T at first, in units of `unit`.
struct Head {
  int s;
  bool valid_row, valid_col, writes_row, writes_col;
  Places at;
  Update now;
  u32 row_weight, col_weight;
  float g, dg, df, unit;
};

// Make the updates back to g^`lowest` with one plan. The shifts give a and b from duals; b of g^s is stored.
template <bool WIDE>
DEVICE void updates(const Problem& p, const Lane& l, Numbers& numbers, Head& x, const u32 e[TILES][2],
                    int lowest, float row_shift, float col_shift) {
  float a = 0.f, b = exp2_of(x.g + col_shift), later_inverse = 0.f;
  bool begins = true;
#pragma unroll 1
  for (;; x.s--) {
    float y = 0.f;
    if (x.s < p.num_iters) {
      const float2 sums = both_row_sums<WIDE>(l, numbers.rows, e);
      if (!begins) x.df = -a * sums.x * later_inverse;
      if (x.s < lowest) break;
      if (x.valid_row) y = x.df * x.now.power * inverse(sums.y);
    }
    a = exp2_of(x.now.f + row_shift);
    store_both_scalings(l, l.row_place, y, a, WIDE);
    block_barrier();
    if (x.writes_row && x.s < p.num_iters) p.row_weights[x.row_weight] = x.df * x.unit;
    x.row_weight -= p.n;
    const Update next = next_update(p, x.at, x.s <= 2);
    later_inverse = inverse(x.now.power);
    const float2 sums = both_col_sums<WIDE>(l, numbers.cols);
    if (x.s < p.num_iters) x.dg = -b * sums.x * later_inverse;
    b = exp2_of(x.now.earlier_g + col_shift);
    store_both_scalings(l, l.col_place, x.valid_col ? x.dg * x.now.power * inverse(sums.y) : 0.f, b, WIDE);
    block_barrier();
    if (x.writes_col)
      p.col_weights[x.col_weight] = x.dg * exp2_of(x.g - x.now.earlier_g - p.log2_ratio) * x.unit;
    x.col_weight -= p.m;
    x.g = x.now.earlier_g;
    x.now = next;
    begins = false;
  }
}

KERNEL adjoints_on_chip(PARAMETER Problem p) {
  const Lane l = lane_of_thread();
  const int own_query = l.grid_row * SIDE + l.own, own_key = l.grid_col * SIDE + l.own;
  Numbers numbers = {0, 0, 0};
  bool keys_asked_for = false;
  u32 e[TILES][2];

  open_cluster(l);
#pragma unroll 1
  for (int number = cluster_number(); number < p.all_heads; number += cluster_count()) {
    const int sample = number / p.heads;
    const int query = l.grid_row * SIDE + l.warp * 16 + l.eighth;
    const bool valid0 = is_valid(p, sample, query, p.n), valid1 = is_valid(p, sample, query + 8, p.n);
    Head x;
    x.valid_row = l.second ? valid1 : valid0;
    x.valid_col = is_valid(p, sample, own_key, p.m);
    x.writes_row = !l.part && l.grid_col == 0 && own_query < p.n;
    x.writes_col = !l.part && l.grid_row == 0 && own_key < p.m;
    if (!keys_asked_for) load_keys(p, l, number);
    close_copy_group();

    x.s = p.num_iters;
    const u32 before = (u32)number * p.num_iters;  // updates of all heads before
    x.at = {(before + number + x.s - 1) * p.n + (own_query < p.n ? own_query : 0),
            (before + number + x.s - 1) * p.m + (own_key < p.m ? own_key : 0), before + x.s - 1};
    x.g = p.cols[x.at.col + p.m];
    x.now = next_update(p, x.at, x.s == 1);
    x.row_weight = (before + x.s) * p.n + own_query;
    x.col_weight = (before + x.s - 1) * p.m + own_key;
    x.dg = x.valid_col ? p.grad_col[(i64)number * p.m + own_key] : 0.f;
    x.df = 0.f;
    x.unit = 1.f;
    wait_for_copies<0>();
#pragma unroll 1
    while (x.s > 0) {
      const int coded = p.lowest[before + x.s - 1], lowest = coded < 0 ? -coded : coded;
      const bool wide = MAY_BE_WIDE && coded < 0;
      const float anchor = x.valid_col ? p.col_weights[x.col_weight] : 0.f;
      if (!l.part) store_f32(own_col_dual(l), x.valid_col ? anchor : negative_infinity());
      // Passes barriers: keys and duals have arrived, and all blocks have read the anchor.
      float part_of_unit;
      const float scale = scale_of(l, numbers.maxima, x.s == p.num_iters ? x.dg : x.df, part_of_unit);
      x.dg *= scale;
      x.df *= scale;
      x.unit *= part_of_unit;
      float shift0, shift1;
      const u16* q = queries_of(p, l, number);
      if (wide) make_plan<true>(p, l, q, numbers.rows, e, shift0, shift1, valid0, valid1);
      else make_plan<false>(p, l, q, numbers.rows, e, shift0, shift1, valid0, valid1);
      // Scalings of tokens that do not count are exp2(NONE) = 0.
      const float row_shift =
          x.valid_row ? (l.second ? shift1 : shift0) + ROW_UNIT_LOG2 - p.log2_ratio : NONE;
      const float col_shift = x.valid_col ? COL_UNIT_LOG2 - anchor : NONE;
      store_both_scalings(l, l.col_place, 0.f, exp2_of(x.g + col_shift), wide);
      block_barrier();
      if (lowest == 1) {
        keys_asked_for = load_next_head(p, l, number);
        close_copy_group();
      }
      if (wide) updates<true>(p, l, numbers, x, e, lowest, row_shift, col_shift);
      else updates<false>(p, l, numbers, x, e, lowest, row_shift, col_shift);
    }
    if (x.writes_row) {
      p.row_weights[x.row_weight] = 0.f;
      p.grad_start[(i64)number * p.n + own_query] = x.df * x.unit;
    }
  }
  close_cluster();
}
