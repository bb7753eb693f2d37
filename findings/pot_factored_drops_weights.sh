#!/bin/sh
# A low-rank plan for weighted samples is one for samples without weights.
#
# ot.solve_sample takes the weights a and b of the samples. With method="factored" POT 0.9.7.post1
# does not hand them on: the plan has uniform marginals, and no warning says so.
# ot.factored_optimal_transport, which it calls, takes weights; method="lowrank" heeds them.
#
# Seen with POT 0.9.7.post1, row sums of the plan for weights 0.7, 0.1, 0.1, 0.1:
#   factored: 0.25 0.25 0.25 0.25
#   lowrank: 0.70 0.10 0.10 0.10
#   factored_optimal_transport: 0.70 0.10 0.10 0.10
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet POT==0.9.7.post1 numpy==2.4.6
cat > "$folder/trial.py" <<'PY'
import sys
import warnings

import numpy as np
import ot

warnings.filterwarnings("ignore")
rng = np.random.RandomState(0)
x, y = rng.randn(4, 2), rng.randn(5, 2)
a, b = np.array([0.7, 0.1, 0.1, 0.1]), np.array([0.1, 0.1, 0.1, 0.1, 0.6])
np.random.seed(0)
first = ot.factored_optimal_transport(x, y, a, b, r=3)[0]
sums = {
    method: ot.solve_sample(x, y, a, b, method=method, rank=3).plan.sum(1)
    for method in ("factored", "lowrank")
}
sums["factored_optimal_transport"] = first.sum(1)
for name, rows in sums.items():
    print(f"{name}:", *(f"{each:.2f}" for each in rows))
right = [bool(np.allclose(rows, a, atol=1e-3)) for rows in sums.values()]
sys.exit(not (right == [False, True, True] and np.allclose(sums["factored"], 0.25)))
PY
"$folder/venv/bin/python" "$folder/trial.py"
