#!/bin/sh
# Causal LSH attention gives a token another output when later tokens change.
#
# LSHSelfAttention(causal=True) of reformer-pytorch 1.4.4 sorts all tokens into buckets and cuts the
# sorted row into chunks of one size. Later tokens are masked, but they take places in the chunks,
# and so decide which earlier ones a token may see. The past's output changes with the future: what
# was computed while a text was generated is not what training computes of the whole text.
#
# Seen with reformer-pytorch 1.4.4 and torch 2.15.0, 64 tokens, 4 rounds of hashing by the same
# random rotations: change of the first 32 outputs when the last 32 tokens change, as a share:
#   buckets of 8: 39 %
#   full attention of the same layer: 0 %
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet reformer-pytorch==1.4.4 torch==2.15.0 numpy==2.4.6
cat > "$folder/trial.py" <<'PY'
import sys

import torch
from reformer_pytorch import LSHSelfAttention

torch.set_grad_enabled(False)
torch.manual_seed(0)
text = torch.randn(2, 64, 64)
other = torch.cat([text[:, :32], torch.randn(2, 32, 64)], dim=1)
found = {}
for name, settings in {
    "buckets of 8": {"bucket_size": 8},
    "full attention of the same layer": {"bucket_size": 8, "full_attn_thres": 64},
}.items():
    torch.manual_seed(1)
    layer = LSHSelfAttention(dim=64, heads=4, n_hashes=4, causal=True, **settings).eval()
    outputs = []
    for each in (text, other):
        torch.manual_seed(2)  # the same rotations
        outputs.append(layer(each)[:, :32])
    found[name] = 100 * float((outputs[1] - outputs[0]).norm() / outputs[0].norm())
    print(f"{name}: {found[name]:.0f} %")
sys.exit(not (found["buckets of 8"] > 10 and found["full attention of the same layer"] < 0.01))
PY
"$folder/venv/bin/python" -W ignore "$folder/trial.py"
