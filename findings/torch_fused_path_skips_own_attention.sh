#!/bin/sh
# nn.TransformerEncoderLayer never calls an attention of one's own where no gradient is needed.
#
# In evaluation mode, without gradients, torch 2.15.0 computes the whole layer in a fused operator
# from the weights of self_attn. It checks whether hooks are attached, but not whether self_attn
# has a forward of its own: a subclass of nn.MultiheadAttention in its place runs in training and
# is silently replaced by softmax attention in inference. The same input gives another output.
#
# Seen with torch 2.15.0:
#   with gradients: 1 call, without: 0 calls, the outputs differ: True
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet torch==2.15.0 numpy==2.4.6
cat > "$folder/trial.py" <<'PY'
import sys

import torch
from torch import nn


class Mean(nn.MultiheadAttention):
    """Attention by which every token gets the mean of all."""

    calls = 0

    def forward(self, query, key, value, **options):
        Mean.calls += 1
        return value.mean(dim=1, keepdim=True).expand_as(query), None


torch.manual_seed(0)
layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
layer.self_attn = Mean(8, 2, batch_first=True)
layer.eval()
x = torch.randn(1, 3, 8)
expected = layer(x)
calls = Mean.calls
with torch.no_grad():
    found = layer(x)
differ = not torch.allclose(found, expected, atol=0.01)
print(f"with gradients: {calls} call, without: {Mean.calls - calls} calls, "
      f"the outputs differ: {differ}")
sys.exit((calls, Mean.calls - calls, differ) != (1, 0, True))
PY
"$folder/venv/bin/python" "$folder/trial.py"
