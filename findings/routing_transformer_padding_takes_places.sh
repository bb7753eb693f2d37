#!/bin/sh
# Masked padding takes the places of a text's own tokens.
#
# routing-transformer 1.6.1 lets each cluster attend to the tokens that are nearest to its centre, a
# fixed number of them. Masked tokens are counted among these, and only then masked, so padding
# pushes tokens of the text out of its clusters. What a text becomes depends on what stands in its
# padding, although input_mask hides it.
#
# Seen with routing-transformer 1.6.1 and torch 2.15.0, 40 tokens padded to 64, clusters of 16:
# change of the text's output, by what is in the padding, as a share of its own size:
#   other random vectors: 5 %
#   zeros: 8 %
#   the same vectors: 0 %
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet routing-transformer==1.6.1 torch==2.15.0 \
    numpy==2.4.6
cat > "$folder/trial.py" <<'PY'
import sys

import torch
from routing_transformer import RoutingTransformer

torch.set_grad_enabled(False)
torch.manual_seed(0)
net = RoutingTransformer(
    dim=64, depth=1, heads=4, max_seq_len=64, window_size=16, causal=False, n_local_attn_heads=0
).eval()
text = torch.randn(2, 40, 64)
mask = torch.arange(64).expand(2, 64) < 40


def output(padding):
    """Return what the net makes of the text before such padding."""
    return net(torch.cat([text, padding], dim=1), input_mask=mask)[0][:, :40]


first, second = torch.randn(2, 24, 64), torch.randn(2, 24, 64)
own, found = output(first), {}
for name, padding in {"other random vectors": second, "zeros": 0 * first,
                      "the same vectors": first}.items():
    found[name] = 100 * float((output(padding) - own).norm() / own.norm())
    print(f"{name}: {found[name]:.0f} %")
sys.exit(not (found["other random vectors"] > 2 and found["zeros"] > 2
              and found["the same vectors"] == 0))
PY
"$folder/venv/bin/python" -W ignore "$folder/trial.py"
