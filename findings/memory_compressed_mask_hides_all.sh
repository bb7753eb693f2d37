#!/bin/sh
# A mask that hides nothing turns attention off.
#
# MemoryCompressedAttention of memory-compressed-attention 0.0.7 takes an input_mask, true for
# tokens and false for padding. It compares those of queries and keys by `<`, where both have to be
# true. Only padding passes: it reads the text, and a token of the text nothing but the learned null
# key, whose value starts as zero. So with any mask, even one of ones, no token reads another, and
# the rest of the model trains on without it. Without a mask the layer is right.
#
# Seen with memory-compressed-attention 0.0.7 and torch 2.15.0, size of what the tokens of a text
# read, and of its difference to what they read in another text:
#   no mask: tokens 0.058, changed 0.052
#   a mask of ones: tokens 0.000, changed 0.000
#   the last 36 masked: tokens 0.000, changed 0.000, padding 0.061
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet memory-compressed-attention==0.0.7 torch==2.15.0 \
    numpy==2.4.6
cat > "$folder/trial.py" <<'PY'
import sys

import torch
from memory_compressed_attention import MemoryCompressedAttention

TOKENS, PADDING = 96, 36
torch.manual_seed(0)
torch.set_grad_enabled(False)
layer = MemoryCompressedAttention(dim=64, heads=4, compression_factor=3).eval()
layer.to_out.bias.zero_()
text, other = torch.randn(2, 1, TOKENS, 64)
ones = torch.ones(1, TOKENS, dtype=torch.bool)
padded = torch.arange(TOKENS)[None] < TOKENS - PADDING


def size(tensor):
    """Return the root mean square."""
    return float(tensor.square().mean().sqrt())


found = {}
for name, mask in {"no mask": None, "a mask of ones": ones,
                   f"the last {PADDING} masked": padded}.items():
    tokens = ones if mask is None else mask
    read = layer(text, input_mask=mask)
    found[name] = size(read[tokens]), size((read - layer(other, input_mask=mask))[tokens])
    line = f"{name}: tokens {found[name][0]:.3f}, changed {found[name][1]:.3f}"
    if not tokens.all():
        found["padding"] = size(read[~tokens])
        line += f", padding {found['padding']:.3f}"
    print(line)
plain, padding = found.pop("no mask"), found.pop("padding")
sys.exit(not (min(*plain, padding) > 0.01 and set(found.values()) == {(0.0, 0.0)}))
PY
"$folder/venv/bin/python" "$folder/trial.py"
