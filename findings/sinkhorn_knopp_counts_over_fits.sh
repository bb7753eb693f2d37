#!/bin/sh
# One solver that is used again stops sooner each time, and in the end at once.
#
# SinkhornKnopp(max_iter) of sinkhorn-knopp 0.2 counts its iterations from the first fit on, and
# never from zero again. When all fits together have reached max_iter, each further one makes a
# single iteration and returns a matrix whose columns are far from 1, without a word. The reason for
# stopping is kept as well: once it says "epsilon", it says so until max_iter is reached.
#
# Seen with sinkhorn-knopp 0.2, max_iter=50 and six random matrices, largest error of a column sum,
# beside that of a new solver:
#   matrix 1: 14 iterations in all, epsilon, error 0.001 (new: 14 iterations, error 0.001)
#   matrix 2: 29 iterations in all, epsilon, error 0.001 (new: 15 iterations, error 0.001)
#   matrix 3: 47 iterations in all, epsilon, error 0.001 (new: 18 iterations, error 0.001)
#   matrix 4: 50 iterations in all, max_iter, error 0.122 (new: 14 iterations, error 0.001)
#   matrix 5: 51 iterations in all, max_iter, error 0.444 (new: 17 iterations, error 0.001)
#   matrix 6: 52 iterations in all, max_iter, error 0.465 (new: 34 iterations, error 0.001)
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet sinkhorn-knopp==0.2 numpy==2.4.6
cat > "$folder/trial.py" <<'PY'
import sys

import numpy as np
from sinkhorn_knopp.sinkhorn_knopp import SinkhornKnopp

rng = np.random.RandomState(0)
again, errors = SinkhornKnopp(max_iter=50), []
for number in range(1, 7):
    matrix = np.exp(4 * rng.randn(20, 20))
    new = SinkhornKnopp(max_iter=50)
    kept, alone = (abs(each.fit(matrix).sum(0) - 1).max() for each in (again, new))
    errors.append((kept, alone))
    print(f"matrix {number}: {again._iterations} iterations in all, {again._stopping_condition}, "
          f"error {kept:.3f} (new: {new._iterations} iterations, error {alone:.3f})")
sys.exit(not (
    all(alone < 1e-3 for _, alone in errors)
    and all(kept < 1e-3 for kept, _ in errors[:3])
    and all(kept > 0.1 for kept, _ in errors[3:])
))
PY
"$folder/venv/bin/python" "$folder/trial.py"
