#!/bin/sh
# The more a text is padded, the less of it Performer attention reads.
#
# performer-pytorch 1.1.4 takes a mask of the tokens that are no padding. It sets the values of the
# others to zero, but still counts their keys in the sum that normalizes the weights: 8 tokens that
# are padded to 64 give an eighth of what they give alone. So an output depends on the longest text
# of its batch. Where all tokens are equal, any normalized attention gives their value back, as the
# linear attention of linear-attention-transformer does.
#
# Seen with performer-pytorch 1.1.4 and torch 2.15.0, output of 8 equal tokens by their value:
#   no padding: performer 1.000, linear attention 1.000
#   padded to 16: performer 0.500, linear attention 1.000
#   padded to 64: performer 0.125, linear attention 1.000
# and for a whole model and 8 different tokens:
#   difference of a model's output when padded to 64: 18 %
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet performer-pytorch==1.1.4 \
    linear-attention-transformer==0.19.1 local-attention==1.11.2 linformer==0.2.3 \
    axial-positional-embedding==0.3.12 product-key-memory==0.3.0 torch==2.15.0 numpy==2.4.6
cat > "$folder/trial.py" <<'PY'
import sys

import torch
from linear_attention_transformer.linear_attention_transformer import linear_attn
from performer_pytorch import PerformerLM, SelfAttention

TOKENS = 8
torch.set_grad_enabled(False)
torch.manual_seed(0)
token = torch.randn(16)
layer = SelfAttention(dim=16, heads=2, dim_head=8, nb_features=256, attn_out_bias=False).eval()
layer.to_out.weight.copy_(torch.eye(16))


def performer(x, mask):
    """Return what the layer of performer-pytorch reads, by the value of the tokens."""
    return layer(x, mask=mask) / layer.to_v(x)


def linear(x, mask):
    """Return what the layer of linear-attention-transformer reads, by the value of the tokens."""
    q, k, v = (to(x).unflatten(-1, (2, 8)).transpose(1, 2)
               for to in (layer.to_q, layer.to_k, layer.to_v))
    out = linear_attn(q, k, v.clone(), mask) * 8**0.5  # it scales its queries by 8^-1/2
    return (out / v).transpose(1, 2).flatten(2)


found = []
for length in (TOKENS, 2 * TOKENS, 8 * TOKENS):
    x, mask = token.expand(1, length, 16), torch.arange(length)[None] < TOKENS
    read = [attention(x, mask)[:, :TOKENS] for attention in (performer, linear)]
    assert all(torch.allclose(share, share.mean(), atol=1e-3) for share in read)
    found.append(tuple(round(float(share.mean()), 3) for share in read))
    name = f"padded to {length}" if length > TOKENS else "no padding"
    print(f"{name}: performer {found[-1][0]:.3f}, linear attention {found[-1][1]:.3f}")

model = PerformerLM(num_tokens=20, max_seq_len=64, dim=32, depth=2, heads=4, dim_head=8).eval()
text = torch.randint(1, 20, (1, TOKENS))
padded = torch.nn.functional.pad(text, (0, 64 - TOKENS))
alone, beside = model(text), model(padded, mask=padded > 0)[:, :TOKENS]
share = float((beside - alone).norm() / alone.norm())
print(f"difference of a model's output when padded to 64: {100 * share:.0f} %")
sys.exit(not (found == [(1.0, 1.0), (0.5, 1.0), (0.125, 1.0)] and share > 0.05))
PY
"$folder/venv/bin/python" "$folder/trial.py"
