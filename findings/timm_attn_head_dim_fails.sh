#!/bin/sh
# attn_head_dim of timm's EVA and BEiT attention fails in forward unless it changes nothing.
#
# Both take the width of a head, attn_head_dim, as an argument ("if None, computed as
# dim // num_heads") and make projections of num_heads * attn_head_dim. But timm 1.0.31 reshapes
# what the heads give to the width of the input, so that any other width than dim // num_heads
# fails. timm.layers.Attention, which has the same argument, takes it.
#
# Seen with timm 1.0.31 and torch 2.15.0:
#   Attention: (1, 3, 8)
#   EvaAttention: shape '[1, 3, 8]' is invalid for input of size 18
#   BEiT's Attention: shape '[1, 3, 8]' is invalid for input of size 18
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet timm==1.0.31 torch==2.15.0 numpy==2.4.6
cat > "$folder/trial.py" <<'PY'
import sys

import torch
from timm.layers import Attention
from timm.models import beit
from timm.models.eva import EvaAttention

found = []
x = torch.randn(1, 3, 8)
for name, attention in {
    "Attention": Attention(8, 2, attn_head_dim=3),
    "EvaAttention": EvaAttention(8, 2, attn_head_dim=3, scale_norm=False),
    "BEiT's Attention": beit.Attention(8, 2, attn_head_dim=3),
}.items():
    try:
        found.append(str(tuple(attention(x).shape)))
    except RuntimeError as error:
        found.append(str(error))
    print(f"{name}: {found[-1]}")
wrong = "shape '[1, 3, 8]' is invalid for input of size 18"
sys.exit(found != ["(1, 3, 8)", wrong, wrong])
PY
"$folder/venv/bin/python" "$folder/trial.py"
