#!/bin/sh
# The cost of a low-rank transport plan is in a unit that nobody asked for.
#
# ot.solve_sample(method="lowrank") returns a plan and, as the "linear OT loss with the optimal OT
# plan", a value. POT 0.9.7.post1 divides both factors of the cost matrix by the roots of their
# largest entries before it solves (rescale_cost=True) and never multiplies the value by them again.
# The value is far below the optimum, which no plan can undercut, and the same for points ten times
# as far apart.
#
# Seen with POT 0.9.7.post1 for 30 and 40 points, and for ten times the same points:
#   exact 21.67; lowrank: value 0.135, cost of its plan 27.11
#   exact 2166.56; lowrank: value 0.135, cost of its plan 2711.26
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
x, y = rng.randn(30, 2) * 5, rng.randn(40, 2) * 5 + 2
undercut, values = [], []
for factor in (1, 10):
    u, v = factor * x, factor * y
    exact = float(ot.solve_sample(u, v).value)
    result = ot.solve_sample(u, v, method="lowrank", rank=20)
    own = float((result.plan * ot.dist(u, v)).sum())
    values.append(float(result.value_linear))
    undercut.append(values[-1] < exact < own)
    print(f"exact {exact:.2f}; lowrank: value {values[-1]:.3f}, cost of its plan {own:.2f}")
sys.exit(not (all(undercut) and np.isclose(values[1], values[0])))
PY
"$folder/venv/bin/python" "$folder/trial.py"
