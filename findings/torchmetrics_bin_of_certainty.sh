#!/bin/sh
# One bin of a calibration error is two.
#
# The expected calibration error compares the mean confidence and the accuracy within n_bins equal
# parts of [0, 1]. torchmetrics 1.9.0 counts a confidence of exactly 1 into a part of its own behind
# the last one. Softmax rounds to 1 in float32 from a lead of 17 on, as trained models have it, so
# that errors on both sides of the last bin's mean no longer cancel: the result is too high, and
# depends on the rounding.
#
# Seen with torchmetrics 1.9.0 and torch 2.15.0 for 100 confidences of 1, of which 90 are right, and
# 100 of 0.96, all right:
#   n_bins=1: 0.070 (mean confidence less accuracy: 0.030)
#   n_bins=15: 0.070 (both in the last bin: 0.030)
#   with 1 - 1e-6 for 1: 0.030
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet torchmetrics==1.9.0 torch==2.15.0 numpy==2.4.6
cat > "$folder/trial.py" <<'PY'
import sys

import torch
from torchmetrics.functional.classification import binary_calibration_error

right = torch.cat([torch.ones(90), torch.zeros(10), torch.ones(100)]).long()
confidence = torch.cat([torch.full((100,), 1.0), torch.full((100,), 0.96)])
wanted = float((confidence.mean() - right.float().mean()).abs())
found = [float(binary_calibration_error(confidence, right, n_bins=count)) for count in (1, 15)]
below = float(binary_calibration_error(confidence.clamp(max=1 - 1e-6), right, n_bins=15))
print(f"n_bins=1: {found[0]:.3f} (mean confidence less accuracy: {wanted:.3f})")
print(f"n_bins=15: {found[1]:.3f} (both in the last bin: {wanted:.3f})")
print(f"with 1 - 1e-6 for 1: {below:.3f}")
sys.exit([round(each, 3) for each in (*found, wanted, below)] != [0.07, 0.07, 0.03, 0.03])
PY
"$folder/venv/bin/python" "$folder/trial.py"
