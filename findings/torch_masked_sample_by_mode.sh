#!/bin/sh
# A sample that is all padding is zero while training and NaN in inference.
#
# nn.MultiheadAttention of torch 2.15.0 has three ways to compute the same: the fused one with
# need_weights=False gives a query whose keys are all masked no value, the one that also returns
# weights divides zero by zero, and so does the one it takes in evaluation without gradients. So a
# batch that is filled up with empty samples trains without a hint; under no_grad the same layer
# returns NaN for them, which spreads to whatever averages over the batch.
#
# Seen with torch 2.15.0 on the CPU, output for a sample whose keys are all masked:
#   gradients, need_weights=False: zero
#   gradients, need_weights=True: NaN
#   no gradients, need_weights=False: NaN
#   no gradients, need_weights=True: NaN
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet torch==2.15.0 numpy==2.4.6
cat > "$folder/trial.py" <<'PY'
import sys

import torch
from torch import nn

torch.manual_seed(0)
attention = nn.MultiheadAttention(4, 2, batch_first=True).eval()
tokens = torch.randn(2, 3, 4)
padding = torch.tensor([[False, False, True], [True, True, True]])
found = []
for gradients in (True, False):
    for weights in (False, True):
        with torch.set_grad_enabled(gradients):
            output = attention(
                tokens, tokens, tokens, key_padding_mask=padding, need_weights=weights
            )[0]
        if not output[0].isfinite().all():
            sys.exit("the other sample of the batch is not finite")
        values = output[1]
        found.append("NaN" if values.isnan().all() else "zero" if not values.any() else "other")
        print(f"{'' if gradients else 'no '}gradients, need_weights={weights}: {found[-1]}")
sys.exit(found != ["zero", "NaN", "NaN", "NaN"])
PY
"$folder/venv/bin/python" "$folder/trial.py"
