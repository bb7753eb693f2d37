#!/bin/sh
# How causal attention is computed decides whether the last tokens read the first one or the future.
#
# The layers of memory-efficient-attention-pytorch 0.1.6 take a context that may be longer than the
# queries. Attention with causal=True then lets the last query read all of it, so that the last
# tokens of a text give what they give in the whole text. memory_efficient=True, the same layer in
# less memory, aligns the queries with the start of the context instead. FlashAttention subtracts
# the difference in length where it has to add it: for the last few tokens all is masked, and the
# result is the mean of all tokens, later ones included. Without a context all three agree.
#
# Seen with memory-efficient-attention-pytorch 0.1.6 and torch 2.15.0, the last 4 tokens with all 64
# as context: difference to the whole text, and how many tokens the first of the 4 reads, of 61:
#   Attention: 0 %, reads 61
#   Attention, memory_efficient=True: 507 %, reads 1
#   FlashAttention: 50 %, reads 64
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet memory-efficient-attention-pytorch==0.1.6 \
    torch==2.15.0 numpy==2.4.6
cat > "$folder/trial.py" <<'PY'
import sys

import torch
from memory_efficient_attention_pytorch import Attention, FlashAttention

LENGTH, LAST = 64, 4
torch.set_grad_enabled(False)
torch.manual_seed(0)
text = torch.randn(1, LENGTH, 16)
queries = text[:, -LAST:]
options = {"dim": 16, "heads": 2, "dim_head": 8, "causal": True}
layers = {"Attention": Attention(**options),
          "Attention, memory_efficient=True": Attention(memory_efficient=True, **options),
          "FlashAttention": FlashAttention(**options)}
weights = layers["Attention"].state_dict()
whole = layers["Attention"](text)
found, out = {}, {}
for name, layer in layers.items():
    layer.load_state_dict(weights)
    assert torch.allclose(layer(text), whole, atol=1e-5)
    out[name] = layer(queries, context=text)
    share = 100 * float((out[name] - whole[:, -LAST:]).norm() / whole[:, -LAST:].norm())
    reads = 0
    for place in range(LENGTH):
        context = text.clone()
        context[0, place] += 1
        reads += not torch.equal(layer(queries, context=context)[:, 0], out[name][:, 0])
    found[name] = (share, reads)
    print(f"{name}: {share:.0f} %, reads {reads}")
plain = layers["Attention"]
mean = plain.to_out(plain.to_kv(text).chunk(2, -1)[1].mean(1, keepdim=True)).expand_as(queries)
right, short, flash = found.values()
same = torch.allclose(out["FlashAttention"], mean, atol=1e-5)
sys.exit(not (right[0] < 0.01 and right[1] == LENGTH - LAST + 1 and short[0] > 50 and short[1] == 1
              and flash[0] > 5 and flash[1] == LENGTH and same))
PY
"$folder/venv/bin/python" "$folder/trial.py"
