#!/bin/sh
# A mask that hides nothing changes what attention reads.
#
# local-attention 1.11.2 and nystrom-attention 0.0.14 take texts of any length and fill the last
# window, or the first landmarks, with zeros by themselves. Without a mask these zeros are tokens
# like all others and take weight from the text; with one, even if it is true everywhere, they are
# masked. So unpadded texts, which need no mask, give numbers that depend on their length. Where all
# tokens have one value, any normalized attention gives that value back.
#
# Seen with local-attention 1.11.2, nystrom-attention 0.0.14 and torch 2.15.0, mean output of equal
# tokens by their value, and difference that a mask of ones makes to the output of random tokens:
#   local attention, windows of 64, 128 tokens: 1.000, with a mask of ones 1.000, difference 0 %
#   local attention, windows of 64, 129 tokens: 0.897, with a mask of ones 1.000, difference 19 %
#   Nystrom attention, 64 landmarks, 128 tokens: 1.000, with a mask of ones 1.000, difference 0 %
#   Nystrom attention, 64 landmarks, 129 tokens: 0.611, with a mask of ones 1.000, difference 38 %
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet local-attention==1.11.2 nystrom-attention==0.0.14 \
    torch==2.15.0 numpy==2.4.6
cat > "$folder/trial.py" <<'PY'
import sys

import torch
from local_attention.transformer import LocalMHA
from nystrom_attention import NystromAttention

torch.set_grad_enabled(False)
torch.manual_seed(0)
local = LocalMHA(dim=16, window_size=64, heads=2, dim_head=8)
nystrom = NystromAttention(dim=16, num_landmarks=64, heads=2, dim_head=8, residual=False)
nystrom.to_out[0].bias.zero_()
token, text = torch.randn(16), torch.randn(1, 129, 16)
found = {}
for name, layer in {"local attention, windows of 64": local,
                    "Nystrom attention, 64 landmarks": nystrom}.items():
    layer.eval()
    value = layer.to_out(layer.to_qkv(token).chunk(3)[2])
    for length in (128, 129):
        mask, same = torch.ones(1, length, dtype=torch.bool), token.expand(1, length, 16)
        bare, masked = (float((layer(same, mask=m) @ value).mean() / value.square().sum())
                        for m in (None, mask))
        right = layer(text[:, :length], mask=mask)
        share = 100 * float((layer(text[:, :length]) - right).norm() / right.norm())
        found[name, length] = (bare, masked, share)
        print(f"{name}, {length} tokens: {bare:.3f}, with a mask of ones {masked:.3f}, "
              f"difference {share:.0f} %")
sys.exit(not all(
    abs(masked - 1) < 1e-3 and (share > 5 and bare < 0.95 if length == 129 else
                                share < 0.1 and abs(bare - 1) < 1e-3)
    for (_, length), (bare, masked, share) in found.items()
))
PY
"$folder/venv/bin/python" "$folder/trial.py"
