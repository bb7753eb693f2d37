// All updates of a head with its plan on chip, made once: launch.py describes the method and its limits.

// The head that a cluster works on. Its duals are f = log2 a - shift - offset and
// g = COL_DUAL + log2 b + offset, of the own tokens; `second`: the own ones are 8 after `eighth`.
struct Head {
  int number, sample, head;
  const u16* q;
  bool valid0, valid1, second, valid_row, valid_col;
  float shift0, shift1, offset;
  float b, before;  // own column scaling, and that of the update before
  bool wide;        // the plan is
};

enum Stage { FROM_ZERO, FROM_MAXIMA, REMADE };

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
    p.cols[((i64)x.number * p.num_iters + t - 1) * p.m + key] =
        x.valid_col ? load_f32(own_col_dual(l)) + log2_of(x.b) + x.offset : 0.f;
}

DEVICE float start_of(const Problem& p, const Head& x, int query, bool valid) {
  return p.start && valid ? p.start[(i64)x.number * p.n + query] * LOG2_E : 0.f;
}

// The first column step, after `make_plan`. Sets b if its sums may serve at once; else returns false, with
// COL_DUAL changed for a plan to be made next: if the sums are right they give g^1, and if some are too
// small to be, the keys' largest logits are what the plan is made from first.
DEVICE bool first_col_step(const Problem& p, const Lane& l, Numbers& numbers, Head& x, Stage& stage) {
  const int query = l.grid_row * SIDE + l.warp * 16 + l.eighth;
  const float start0 = start_of(p, x, query, x.valid0), start1 = start_of(p, x, query + 8, x.valid1);
  // The row scaling of f^0 is exp2(f^0 + shift), kept relative to the largest.
  const float exponent = x.second ? x.shift1 + start1 : x.shift0 + start0;
  float most[1] = {x.valid_row ? exponent : NONE};
  maxima<true>(l, numbers.maxima, most);
  store_scaling(l, l.row_place, x.valid_row ? START_UNIT * exp2_of(exponent - most[0]) : 0.f, false);
  block_barrier();
  float s0, s1;
  col_sums<false>(l, numbers.cols, s0, s1);
  const float sum = x.second ? s1 : s0;
  float top[2] = {x.valid_col ? sum : NONE, x.valid_col ? -sum : NONE};
  maxima<true>(l, numbers.maxima, top);
  const float most_sum = top[0], least_sum = -top[1];
  const float middle = least_sum * exp2_of(0.5f * log2_of(most_sum / least_sum));
  x.offset = log2_of(p.ratio * START_UNIT / middle) - most[0];
  const bool right = stage == FROM_MAXIMA || least_sum >= START_UNIT * exp2_of(TOP - START_REACH);
  if (right && most_sum <= least_sum * exp2_of(2.f * REACH)) {
    stage = REMADE;
    x.b = x.valid_col ? middle * inverse(sum) : 0.f;
    return true;
  }
  if (right) {
    stage = REMADE;
    add_to_col_dual(l, x, log2_of(middle) - log2_of(sum));
    x.b = x.valid_col ? 1.f : 0.f;
  } else {
    stage = FROM_MAXIMA;
    float top0, top1;
    const float start = x.second ? start1 : start0;
    column_maxima(p, l, x.number, numbers.cols, x.valid_row ? start : negative_infinity(), top0, top1);
    if (!l.part && x.valid_col) store_f32(own_col_dual(l), -(x.second ? top1 : top0));
  }
  return false;
}

// Make the updates from t until before `until`.
template <bool WIDE>
DEVICE void update(const Problem& p, const Lane& l, Numbers& numbers, Head& x, const u32 e[TILES][2], int& t,
                   int until) {
#pragma unroll 1
  for (; t < until; t++) {
    float s0, s1;
    row_sums<WIDE>(l, numbers.rows, e, s0, s1);
    const float sum = x.second ? s1 : s0;
    store_scaling(l, l.row_place, x.valid_row ? ROW_UNIT * inverse(sum) : 0.f, WIDE);
    keep_row_of_sum(p, l, x, t, sum);
    block_barrier();
    col_sums<WIDE>(l, numbers.cols, s0, s1);
    x.before = x.b;
    x.b = x.valid_col ? p.ratio * ROW_UNIT * inverse(x.second ? s1 : s0) : 0.f;
    store_scaling(l, l.col_place, x.b, WIDE);
    keep_col(p, l, x, t + 1);
    block_barrier();
  }
}

// What no plan of this head is made from any more is overwritten by what is needed next: its values, or
// the keys of the next head, which then arrive during the updates. Returns whether those were asked for.
DEVICE bool load_ahead(const Problem& p, const Lane& l, const Head& x) {
  bool keys_asked_for = false;
  if (SEPARATE_VALUES)
    keys_asked_for = load_next_head(p, l, x.number);
  else
    load_tokens(p, l, TOKENS, p.v + x.sample * p.v_b + x.head * p.v_h, p.v_n, x.sample, l.grid_col * SIDE,
                p.m);
  close_copy_group();
  return keys_asked_for;
}

KERNEL sinkhorn_on_chip(PARAMETER Problem p) {
  const Lane l = lane_of_thread();
  const int first_query = l.grid_row * SIDE, first_key = l.grid_col * SIDE;
  Numbers numbers = {0, 0, 0};
  bool keys_asked_for = false;
  u32 e[TILES][2];

  open_cluster(l);
#pragma unroll 1
  for (int number = cluster_number(); number < p.all_heads; number += cluster_count()) {
    Head x;
    x.number = number;
    x.sample = number / p.heads;
    x.head = number % p.heads;
    x.q = queries_of(p, l, number);
    const int query = first_query + l.warp * 16 + l.eighth;
    x.second = l.second;
    x.valid0 = is_valid(p, x.sample, query, p.n);
    x.valid1 = is_valid(p, x.sample, query + 8, p.n);
    x.valid_row = x.second ? x.valid1 : x.valid0;
    x.valid_col = is_valid(p, x.sample, first_key + l.own, p.m);
    x.b = 0.f;
    x.wide = false;

    if (!keys_asked_for) {
      load_keys(p, l, number);
      close_copy_group();
    }
    if (SEPARATE_VALUES) {
      load_tokens(p, l, TOKENS + TOKENS_BYTES, p.v + x.sample * p.v_b + x.head * p.v_h, p.v_n, x.sample,
                  first_key, p.m);
      close_copy_group();
    }
    if (!l.part) store_f32(own_col_dual(l), x.valid_col ? 0.f : negative_infinity());
    if (SEPARATE_VALUES) wait_for_copies<1>();
    else wait_for_copies<0>();

    // `settled`: all updates that are left, and the output, may use the plan at hand.
    int t = 1, steps = p.num_iters > 1 ? 1 : 0;
    bool settled = p.num_iters == 1, ahead = false, remake = true;
    Stage stage = FROM_ZERO;
#pragma unroll 1
    while (remake) {
      block_barrier();
      if (x.wide) make_plan<true>(p, l, x.q, numbers.rows, e, x.shift0, x.shift1, x.valid0, x.valid1);
      else make_plan<false>(p, l, x.q, numbers.rows, e, x.shift0, x.shift1, x.valid0, x.valid1);
      if (stage != REMADE && !first_col_step(p, l, numbers, x, stage)) continue;
      store_scaling(l, l.col_place, x.b, x.wide);
      if (KEEP_DUALS && t == 1) {
        keep_row(p, l, x, 0, start_of(p, x, first_query + l.own, x.valid_row));
        keep_col(p, l, x, 1);
      }
      block_barrier();

      remake = false;
#pragma unroll 1
      while (!remake) {
        if (settled && !ahead) {
          ahead = true;
          keys_asked_for = load_ahead(p, l, x);
        }
        x.before = x.b;
        if (x.wide) update<true>(p, l, numbers, x, e, t, t + steps);
        else update<false>(p, l, numbers, x, e, t, t + steps);
        if (settled) break;
        // Updates are nonexpansive in log b: none moves a scaling further than the one before moved some.
        float exponent = x.valid_col ? log2_of(x.b) : 0.f;
        const float moved = x.valid_col ? exponent - log2_of(x.before) : 0.f;
        float top[3] = {exponent, -exponent, larger(moved, -moved)};
        maxima<true>(l, numbers.maxima, top);
        const float step = top[2];
        const int left = p.num_iters - t;
        float reach = x.wide ? WIDE_REACH : REACH;
        float room = reach - larger(top[0], top[1]);
        if (left > 0 && step * left > room) {
          // A common factor of all scalings changes nothing: it makes the largest as far from 1 as the smallest.
          const float by = round_up(0.5f * (top[0] - top[1]) - 0.5f);
          room = reach - larger(top[0] - by, top[1] + by);
          exponent -= by;
          x.offset += by;
          x.b *= exp2_of(-by);
          store_scaling(l, l.col_place, x.b, x.wide);
          block_barrier();
        }
        remake = !(room >= 0.f) || (x.wide && left == 0);
        if (!remake && left > 0 && step > room) {
          // Scalings go on nearly as they moved, and the plan serves as long as that keeps them in range, or
          // little beyond: that is seen after the update, whose sums do not multiply by them yet.
          const float next = x.valid_col ? exponent + moved : 0.f;
          float ends[2] = {next, -next};
          maxima<true>(l, numbers.maxima, ends);
          remake = larger(ends[0], ends[1]) > reach + BEYOND;
        }
        if (remake) {
          // The last plan is not wide, so that the output is exact.
          x.wide = MAY_BE_WIDE && step * left > (x.wide ? REACH + LEAD : FAR);
          // If they will leave the range, the plan is made for where they will be, in whole powers of two: then
          // they cross nearly all of it.
          reach = x.wide ? WIDE_REACH : REACH;
          const float most = x.wide ? WIDE_LEAD : LEAD, going = moved * left;
          const bool leads = step * left > reach;
          const float lead = leads ? round_up(larger(-most, -larger(-most, -going))) : 0.f;
          room = leads ? reach - most : reach;
          add_to_col_dual(l, x, exponent + lead);
          x.b = x.valid_col ? exp2_of(-lead) : 0.f;
        }
        const bool lasts = left == 0 || step * left <= room;
        settled = lasts && !x.wide;
        steps = lasts ? left : (int)(room / step);
        if (!lasts && steps < 1) steps = 1;
      }
    }

    if (SEPARATE_VALUES) wait_for_copies<1>();
    else wait_for_copies<0>();
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
        o[d][0] = x.valid0 ? o[d][0] * i0 * unit : 0.f;
        o[d][1] = x.valid0 ? o[d][1] * i0 * unit : 0.f;
        o[d][2] = x.valid1 ? o[d][2] * i1 * unit : 0.f;
        o[d][3] = x.valid1 ? o[d][3] * i1 * unit : 0.f;
      }
      u16* out = p.out + x.sample * p.out_b + x.head * p.out_h + first_query * p.out_n + first_piece * 8;
      if (GRID_COLS > 1) store_summed_output(p, l, out, first_query, o);
      else store_output(p, l, out, first_query, o);
    }
    block_barrier();  // the values and the plan may be overwritten
  }
  close_cluster();
}
