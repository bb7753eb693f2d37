// The adjoints of all updates of a head with its plan on chip: adjoint.py describes the method.

struct Problem : Inputs {
  const float *rows, *cols, *grad_col, *exponents;
  const int* lowest;
  float *row_weights, *col_weights, *grad_start;
  float log2_ratio;
};

// Scalings of rows are exp2(f^s + shift) <= exp2(1 - TOP) relative to those of columns.
constexpr float ROW_EXPONENT = TOP - 1.f;

// What the own query and key need for g^s, read an update ahead: f^(s-1), g^(s-1) and the exponent of
// scalings.
struct Update {
  float f, earlier_g, exponent;
};
// Where a head's begin; a token that does not exist reads those of the first, and counts nowhere.
struct Duals {
  const float *rows, *cols, *exponents;
  int query, key;
};
DEVICE Update update_from(const Problem& p, const Duals& duals, int s) {
  return {duals.rows[(s - 1) * p.n + duals.query], duals.cols[(s - 1) * p.m + duals.key],
          duals.exponents[s - 1]};
}

// A power of two that brings the largest of the cluster to between 1 and 2, and its inverse. What is not
// finite is left as it is, to be seen.
DEVICE float scale_of(const Lane& l, int& maxima_number, float x, float& inverse_scale) {
  float4 top = {larger(x, -x), 0.f, 0.f, 0.f};
  top = maxima<true>(l, maxima_number, top);
  int exponent = (int)(float_to_bits(top.x) >> 23);
  if (exponent == 255) exponent = 127;
  exponent = exponent < 20 ? 20 : exponent > 234 ? 234 : exponent;
  inverse_scale = bits_to_float((u32)exponent << 23);
  return bits_to_float((u32)(254 - exponent) << 23);
}

KERNEL adjoints_on_chip(PARAMETER Problem p) {
  const Lane l = lane_of_thread();
  const int own_query = l.grid_row * SIDE + l.own, own_key = l.grid_col * SIDE + l.own;
  const bool second = l.pair >> 1;
  const bool writes_row = !l.part && l.grid_col == 0 && own_query < p.n;
  const bool writes_col = !l.part && l.grid_row == 0 && own_key < p.m;
  Numbers numbers = {0, 0, 0};
  bool keys_asked_for = false;
  u32 e[TILES][2];

  open_cluster(l);
#pragma unroll 1
  for (int number = cluster_number(); number < p.all_heads; number += cluster_count()) {
    const int sample = number / p.heads;
    const int query = l.grid_row * SIDE + l.warp * 16 + l.eighth;
    const bool valid0 = is_valid(p, sample, query, p.n), valid1 = is_valid(p, sample, query + 8, p.n);
    const bool valid_row = second ? valid1 : valid0, valid_col = is_valid(p, sample, own_key, p.m);
    if (!keys_asked_for) load_keys(p, l, number);
    close_copy_group();

    int s = p.num_iters;
    const i64 before = (i64)number * p.num_iters;  // updates of all heads before
    const Duals duals = {p.rows + (before + number) * p.n, p.cols + (before + number) * p.m,
                         p.exponents + before, own_query < p.n ? own_query : 0,
                         own_key < p.m ? own_key : 0};
    float* row_weights = p.row_weights + before * p.n;
    float* col_weights = p.col_weights + before * p.m;
    float g = duals.cols[s * p.m + duals.key];
    Update now = update_from(p, duals, s);
    // In units of `unit`: v is dg^(s+1) m / n of the own key, df is df^s of the own query, of dual f.
    float v = valid_col ? p.grad_col[(i64)number * p.m + own_key] * inverse(p.ratio) : 0.f;
    float df = 0.f, f = 0.f, unit = 1.f;
    wait_for_copies<0>();
#pragma unroll 1
    while (s > 0) {
      const int lowest = p.lowest[before + s - 1];
      const float anchor = valid_col ? col_weights[(s - 1) * p.m + own_key] : -NONE;
      if (!l.part) store_f32(own_col_dual(l), valid_col ? anchor : negative_infinity());
      // Passes barriers: keys and duals have arrived, and all blocks have read the anchor.
      float part_of_unit;
      const float scale = scale_of(l, numbers.maxima, s == p.num_iters ? v : df, part_of_unit);
      v *= scale;
      df *= scale;
      unit *= part_of_unit;
      float shift0, shift1;
      make_plan(p, l, queries_of(p, l, number), numbers.rows, e, shift0, shift1, valid0, valid1, false);
      // Scalings of tokens that do not count are exp2(-NONE) = 0.
      const float shift = valid_row ? second ? shift1 : shift0 : NONE;
      block_barrier();
      if (lowest == 1) {
        keys_asked_for = load_next_head(p, l, number);
        close_copy_group();
      }
      float s0, s1;
#pragma unroll 1
      for (; s >= lowest; s--) {
        const Update next = update_from(p, duals, s > 1 ? s - 1 : 1);
        if (s < p.num_iters) {
          store_scaling<false>(l, l.row_place, df * exp2_of(f + shift + now.exponent + ROW_EXPONENT));
          block_barrier();
          if (writes_row) row_weights[s * p.n + own_query] = df * unit;
          col_sums<false>(l, numbers.cols, s0, s1);
          v = -(second ? s1 : s0) * exp2_of(g - anchor - now.exponent - ROW_EXPONENT - p.log2_ratio);
        }
        store_scaling<false>(l, l.col_place, v * exp2_of(g - anchor + now.exponent));
        block_barrier();
        if (writes_col) col_weights[(s - 1) * p.m + own_key] = v * exp2_of(g - now.earlier_g) * unit;
        row_sums<false>(l, numbers.rows, e, s0, s1);
        f = now.f;
        df = -(second ? s1 : s0) * exp2_of(f + shift - now.exponent);
        g = now.earlier_g;
        now = next;
      }
    }
    if (writes_row) {
      row_weights[own_query] = 0.f;
      p.grad_start[(i64)number * p.n + own_query] = df * unit;
    }
  }
  close_cluster();
}
