#!/bin/sh
# The Sinkhorn loss of a sample depends on the other samples of its batch.
#
# geomloss 0.3.1 lowers eps from the extent of the points to its goal and stops there. It takes the
# extent over the whole batch, so a wide sample gives its neighbours more steps. As the default
# (scaling=0.5) stops early, their losses change: one batch size or order of the data does not
# reproduce the numbers of another. Beside a sample as wide as itself a loss is what it is alone.
#
# Seen with geomloss 0.3.1 and torch 2.15.0, the loss of one sample:
#   alone: 1.0950, beside its like: 1.0950, beside one ten times as wide: 1.0987, converged: 1.1592
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet geomloss==0.3.1 torch==2.15.0 numpy==2.4.6
cat > "$folder/trial.py" <<'PY'
import sys

import torch
from geomloss import SamplesLoss

torch.set_default_dtype(torch.float64)
torch.manual_seed(0)
x, y = torch.randn(10, 2), torch.randn(12, 2) + 0.5
loss = SamplesLoss("sinkhorn", blur=0.3, backend="tensorized")


def first(factor):
    """Return the loss of x and y beside them, or beside themselves multiplied by a factor."""
    return loss(torch.stack([x, x * factor]), torch.stack([y, y * factor]))[0]


slow = SamplesLoss("sinkhorn", blur=0.3, backend="tensorized", scaling=0.999)
found = [round(float(each), 4) for each in (loss(x, y), first(1), first(10), slow(x, y))]
alone, like, wide, converged = found
print(f"alone: {alone:.4f}, beside its like: {like:.4f}, beside one ten times as wide: {wide:.4f}, "
      f"converged: {converged:.4f}")
sys.exit(not (alone == like and abs(wide - alone) > 1e-3))
PY
"$folder/venv/bin/python" "$folder/trial.py"
