#!/bin/sh
# A sliced distance grows with the number of its projections.
#
# ot.unbalanced.sliced_unbalanced_ot is a mean over directions, so more of them make it more exact.
# With one marginal kept (reg_m=(inf, 1) or (1, inf)), POT 0.9.7.post1 adds to the cost of every
# direction the penalty of all directions together: the result is no mean and has no limit.
# With both marginals relaxed it is right.
#
# Seen with POT 0.9.7.post1 and torch 2.15.0, for 1, 10, 100 and 1,000 projections:
#   reg_m=1.0: 1.28 0.69 0.57 0.67
#   reg_m=(inf, 1.0): 4.05 6.94 46.95 540.54
#   reg_m=(1.0, inf): 2.97 5.33 41.84 478.35
#   reg_m=(inf, 1.0), the mean of 1,000 calls with one projection each: 1.49
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet POT==0.9.7.post1 torch==2.15.0 numpy==2.4.6
cat > "$folder/trial.py" <<'PY'
import sys

import torch
from ot.backend import TorchBackend
from ot.sliced import get_random_projections
from ot.unbalanced import sliced_unbalanced_ot

torch.set_default_dtype(torch.float64)
torch.manual_seed(0)
x, y = torch.randn(8, 3), torch.randn(9, 3) + 1
inf = float("inf")
found = {}
for relax in (1.0, (inf, 1.0), (1.0, inf)):
    found[relax] = [
        float(sliced_unbalanced_ot(x, y, relax, n_projections=count, seed=3, numItermax=100))
        for count in (1, 10, 100, 1000)
    ]
    print(f"reg_m={relax}:", *(f"{each:.2f}" for each in found[relax]))
directions = get_random_projections(3, 1000, 3, backend=TorchBackend(), type_as=x)
each = [
    float(sliced_unbalanced_ot(x, y, (inf, 1.0), projections=directions[:, [i]], numItermax=100))
    for i in range(1000)
]
mean = sum(each) / len(each)
print(f"reg_m=(inf, 1.0), the mean of 1,000 calls with one projection each: {mean:.2f}")
right = max(found[1.0]) < 2
grows = all(found[relax][3] > 5 * found[relax][2] for relax in list(found)[1:])
sys.exit(not (right and grows and mean < 2))
PY
"$folder/venv/bin/python" "$folder/trial.py"
