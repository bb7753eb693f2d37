#!/bin/sh
# The exact batch solver of POT gives the plan that ignores the costs.
#
# ot.batch.solve_batch without reg uses a proximal point method. Each of its steps should multiply
# the kernel by the plan before; POT 0.9.7.post1 divides by it (PythonOT/POT#842), so that two steps
# cancel. After an even number of steps, as the default of 1,000, every source sends its mass to all
# targets alike. The marginals are exact, there is no warning, and only the cost is too high.
#
# Seen with POT 0.9.7.post1, 8 points each:
#   exact cost: 3.366, cost of the independent plan: 4.928
#   solve_batch: 4.928, largest difference to the independent plan below 1e-9: True
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

rng = np.random.RandomState(0)
sources, targets = rng.randn(3, 8, 2)[:1], rng.randn(3, 8, 2)[:1]
costs = ot.batch.dist_batch(sources, targets)
exact = ot.emd2([], [], costs[0])
independent = np.full((8, 8), 1 / 64)
with warnings.catch_warnings():
    warnings.simplefilter("error")
    result = ot.batch.solve_batch(costs)
ignored = (independent * costs[0]).sum()
same = bool(np.abs(result.plan[0] - independent).max() < 1e-9)
found = [round(float(each), 3) for each in (exact, ignored, result.value[0])]
print(f"exact cost: {found[0]:.3f}, cost of the independent plan: {found[1]:.3f}")
print(f"solve_batch: {found[2]:.3f}, largest difference to the independent plan below 1e-9: {same}")
sys.exit((found, same) != ([3.366, 4.928, 4.928], True))
PY
"$folder/venv/bin/python" "$folder/trial.py"
