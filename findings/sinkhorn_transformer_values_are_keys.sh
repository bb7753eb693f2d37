#!/bin/sh
# Sinkhorn attention hands on its keys where it should hand on its values.
#
# sinkhorn-transformer 0.11.4 sorts the buckets of keys and values alike and lets the queries of a
# bucket attend to their own and to a sorted one. Unless causal or n_sortcut is set, the sorted
# values are then overwritten by the sorted keys: half of what a token can read is keys. Nothing
# fails and the layer trains, but as a baseline it is another attention than the paper's. It is
# linear in its values, so with a projection of zero for them its output has to be zero.
#
# Seen with sinkhorn-transformer 0.11.4 and torch 2.15.0, size of the output for values of zero:
#   by default: 0.059 (what keys as values of the sorted bucket give: 0.059)
#   non_permutative=False: 0.215
#   n_sortcut=2: 0.000
#   causal, null values of zero: 0.000
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet sinkhorn-transformer==0.11.4 \
    local-attention==1.11.2 product-key-memory==0.3.0 axial-positional-embedding==0.3.12 \
    torch==2.15.0 numpy==2.4.6
cat > "$folder/trial.py" <<'PY'
import sys

import torch
from sinkhorn_transformer.sinkhorn_transformer import SinkhornSelfAttention

BUCKET = 4
torch.set_grad_enabled(False)
torch.manual_seed(0)
x = torch.randn(2, 4 * BUCKET, 8)


def layer(**options):
    """Return a layer of one head whose keys are its input, whose values are zero."""
    torch.manual_seed(1)
    layer = SinkhornSelfAttention(
        dim=8, bucket_size=BUCKET, max_seq_len=4 * BUCKET, heads=1, **options
    ).eval()
    layer.to_kv.weight.copy_(torch.cat([torch.eye(8), torch.zeros(8, 8)]))
    layer.to_out.weight.copy_(torch.eye(8))
    layer.to_out.bias.zero_()
    return layer


def keys_for_values(layer):
    """Return what the queries read if the sorted bucket, the likeliest one, has keys as values."""
    q, k = (t.unflatten(1, (-1, BUCKET)) for t in (layer.to_q(x), layer.to_kv(x)[..., :8]))
    order = (q.mean(2) @ k.mean(2).mT * 8**-0.5).softmax(-1)
    weight, place = order.max(-1)
    chosen = torch.stack([one[rows] for one, rows in zip(k, place)]) * weight[..., None, None]
    plan = (q @ torch.cat([chosen, k], 2).mT * 8**-0.5).softmax(-1)
    return (plan[..., :BUCKET] @ chosen).flatten(1, 2)


found = {}
for name, options in {
    "by default": {},
    "non_permutative=False": {"non_permutative": False},
    "n_sortcut=2": {"n_sortcut": 2},
    "causal, null values of zero": {"causal": True},
}.items():
    attention = layer(**options)
    if "causal" in options:
        attention.sinkhorn_attention.null_values.zero_()
    found[name] = attention(x)
    size = f"{name}: {found[name].square().mean().sqrt():.3f}"
    if not options:
        wrong = keys_for_values(attention)
        size += (f" (what keys as values of the sorted bucket give: "
                 f"{wrong.square().mean().sqrt():.3f})")
    print(size)
zero = [bool((output == 0).all()) for output in found.values()]
same = torch.allclose(found["by default"], wrong, atol=1e-6)
sys.exit(not (zero == [False, False, True, True] and same))
PY
"$folder/venv/bin/python" "$folder/trial.py"
