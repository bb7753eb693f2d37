#!/bin/sh
# The perplexity of half-precision logits is infinite or off.
#
# torchmetrics 1.9.0 takes softmax of the logits in their own type and then the logarithm of what is
# left. In float16 a probability below 3e-8, 17 units behind the likeliest token, is 0, and one such
# token makes the perplexity of a data set infinite; in bfloat16 the rounded probabilities shift it.
# The loss of the same logits is finite: cross entropy does not leave the logarithm.
#
# Seen with torchmetrics 1.9.0 and torch 2.15.0, perplexity of 6,400 tokens:
#   float32: 1893.2 (exp of cross entropy: 1893.2)
#   bfloat16: 1896.0 (exp of cross entropy: 1893.4)
#   float16: inf (exp of cross entropy: 1893.2)
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet torchmetrics==1.9.0 torch==2.15.0 numpy==2.4.6
cat > "$folder/trial.py" <<'PY'
import math
import sys

import torch
from torch.nn import functional
from torchmetrics.text import Perplexity

torch.manual_seed(0)
logits, tokens = torch.randn(64, 100, 50) * 3, torch.randint(0, 50, (64, 100))
found = {}
for dtype in (torch.float32, torch.bfloat16, torch.float16):
    metric = Perplexity()
    for i in range(64):
        metric.update(logits[i : i + 1].to(dtype), tokens[i : i + 1])
    exact = functional.cross_entropy(logits.to(dtype).float().flatten(0, 1), tokens.flatten()).exp()
    found[dtype] = (float(metric.compute()), float(exact))
    print(f"{str(dtype)[6:]}: {found[dtype][0]:.1f} (exp of cross entropy: {found[dtype][1]:.1f})")
full, brain, half = found.values()
right = abs(full[0] - full[1]) < 0.01 and all(1890 < each[1] < 1896 for each in found.values())
sys.exit(not (right and abs(brain[1] - brain[0]) > 1 and math.isinf(half[0])))
PY
"$folder/venv/bin/python" "$folder/trial.py"
