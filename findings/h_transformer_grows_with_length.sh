#!/bin/sh
# The longer a text, the larger what hierarchical attention reads from it.
#
# h-transformer-1d 0.1.9 reads distant tokens in groups of 2, 4, 8 and more: it compares a query
# with their mean key and adds up their values. In the sum that normalizes the weights such a group
# counts as one token, so that the weights of a row add up to far more than 1: the more, the longer
# the text and, if causal, the later the token. A model trained at one length is off at another.
# Where all tokens are equal, groups lose nothing, and any normalized attention gives their value
# back.
#
# Seen with h-transformer-1d 0.1.9 and torch 2.15.0, output of equal tokens by their value:
#   64 tokens: 1.00 to 1.00, causal 1.00 to 1.89
#   128 tokens: 1.33 to 1.33, causal 1.00 to 3.40
#   256 tokens: 2.00 to 2.00, causal 1.00 to 5.67
#   512 tokens: 3.20 to 3.20, causal 1.00 to 8.50
#   1024 tokens: 5.33 to 5.33, causal 1.00 to 16.50
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet h-transformer-1d==0.1.9 einops==0.8.2 \
    rotary-embedding-torch==0.9.1 torch==2.15.0 numpy==2.4.6
cat > "$folder/trial.py" <<'PY'
import sys

import torch
from h_transformer_1d.h_transformer_1d import CausalHAttention1D, HAttention1D

WIDTH, BLOCK = 8, 16
torch.set_grad_enabled(False)
torch.manual_seed(0)
token = torch.randn(1, 1, WIDTH)


def output(kind, length, **options):
    """Return what each of so many equal tokens reads, by their value."""
    layer = kind(WIDTH, heads=1, dim_head=WIDTH, block_size=BLOCK, **options)
    layer.to_qkv.weight[-WIDTH:] = layer.to_out.weight[:] = torch.eye(WIDTH)
    layer.to_out.bias.zero_()
    return (layer(token.expand(1, length, WIDTH)) / token).mean(-1)[0]


right = True
for length in (64, 128, 256, 512, 1024):
    both = output(HAttention1D, length)
    causal = output(CausalHAttention1D, length, max_seq_len=length)
    print(f"{length} tokens: {both.min():.2f} to {both.max():.2f}, "
          f"causal {causal.min():.2f} to {causal.max():.2f}")
    right &= bool(causal.max() > length / 64 and (length < 128 or both.min() > 1.3))
sys.exit(not right)
PY
"$folder/venv/bin/python" "$folder/trial.py"
