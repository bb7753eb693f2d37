#!/bin/sh
# A Sinkhorn solver that may run five iterations runs ten.
#
# ott-jax 0.6.0 looks at max_iterations only after every inner_iterations=10 of them. Truncations
# after 1, 5 and 10 iterations are then one and the same plan, and 15 are 20: a curve of error by
# iterations has steps that are not there. With inner_iterations=1 the numbers hold.
#
# Seen with ott-jax 0.6.0 and jax 0.10.2, iterations and error of the marginals:
#   max_iterations=1: 10 run, 0.1068 (with inner_iterations=1: 1 run, 0.1430)
#   max_iterations=5: 10 run, 0.1068 (with inner_iterations=1: 5 run, 0.1165)
#   max_iterations=10: 10 run, 0.1068 (with inner_iterations=1: 10 run, 0.1068)
#   max_iterations=15: 20 run, 0.0335 (with inner_iterations=1: 15 run, 0.0529)
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet ott-jax==0.6.0 jax==0.10.2 numpy==2.4.6
cat > "$folder/trial.py" <<'PY'
import sys

import jax
import numpy as np
from ott.geometry import pointcloud
from ott.solvers import linear

jax.config.update("jax_enable_x64", True)
rng = np.random.RandomState(0)
x, y = rng.randn(10, 2), rng.randn(12, 2)
geometry = pointcloud.PointCloud(x, y, epsilon=0.05)
found = []
for allowed in (1, 5, 10, 15):
    shown = []
    for options in ({}, {"inner_iterations": 1}):
        result = linear.solve(geometry, max_iterations=allowed, **options)
        error = float(abs(result.matrix.sum(0) - 1 / 12).max())
        shown.append((int(result.n_iters), f"{error:.4f}"))
    print(f"max_iterations={allowed}: {shown[0][0]} run, {shown[0][1]} "
          f"(with inner_iterations=1: {shown[1][0]} run, {shown[1][1]})")
    found.append((shown[0][0], shown[1][0]))
sys.exit(found != [(10, 1), (10, 5), (10, 10), (20, 15)])
PY
JAX_PLATFORMS=cpu "$folder/venv/bin/python" "$folder/trial.py"
