#!/bin/sh
# A weighted mean that does not look for NaN has no weights.
#
# torchmetrics 1.9.0 replaces the weights of MeanMetric by ones where nan_strategy="disable", the
# only one for which the host need not wait for the device at every update.
#
# Seen with torchmetrics 1.9.0 and torch 2.15.0:
#   nan_strategy=warn: 3.7
#   nan_strategy=disable: 2.5
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet torchmetrics==1.9.0 torch==2.15.0 numpy==2.4.6
cat > "$folder/trial.py" <<'PY'
import sys

import torch
from torchmetrics import MeanMetric

found = {}
for strategy in ("warn", "disable"):
    mean = MeanMetric(nan_strategy=strategy)
    mean.update(torch.tensor(1.0), weight=1)
    mean.update(torch.tensor(4.0), weight=9)
    found[strategy] = round(float(mean.compute()), 3)
    print(f"nan_strategy={strategy}: {found[strategy]}")
sys.exit(found != {"warn": 3.7, "disable": 2.5})
PY
cd "$folder" && venv/bin/python trial.py
