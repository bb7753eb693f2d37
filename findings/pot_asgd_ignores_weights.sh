#!/bin/sh
# One of two stochastic solvers of the same problem does not use the weights of the sources.
#
# ot.stochastic.solve_semi_dual_entropic solves entropic transport from weights a to weights b, with
# method="SAG" or "ASGD". ASGD of POT 0.9.7.post1 draws its sources uniformly and does not multiply
# their gradients by a, so it finds the potentials of another problem. The final plan is scaled to
# the row sums a; its column sums are wrong, however many iterations. For equal a it is right.
#
# Seen with POT 0.9.7.post1, largest error of the column sums of the plan:
#   SAG, equal weights: 0.000, other weights: 0.000
#   ASGD, equal weights: 0.001, other weights: 0.114
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet POT==0.9.7.post1 numpy==2.4.6
cat > "$folder/trial.py" <<'PY'
import sys

import numpy as np
import ot

rng = np.random.RandomState(0)
costs = ot.dist(rng.randn(6, 2), rng.randn(7, 2))
costs /= costs.max()
weights, b = rng.rand(6) ** 2, rng.rand(7)
weights, b = weights / weights.sum(), b / b.sum()
found = {}
for method in ("SAG", "ASGD"):
    for a in (np.full(6, 1 / 6), weights):
        np.random.seed(0)
        plan = ot.stochastic.solve_semi_dual_entropic(a, b, costs, 0.1, method, numItermax=200_000)
        found.setdefault(method, []).append(float(np.abs(plan.sum(0) - b).max()))
    equal, other = found[method]
    print(f"{method}, equal weights: {equal:.3f}, other weights: {other:.3f}")
small = [each < 2e-3 for method in found for each in found[method]]
sys.exit(not (small == [True, True, True, False] and found["ASGD"][1] > 0.02))
PY
"$folder/venv/bin/python" "$folder/trial.py"
