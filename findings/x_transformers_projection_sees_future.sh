#!/bin/sh
# A causal decoder with orthogonal projections reads the tokens that it has to predict.
#
# BeliefFormer's attention (attn_orthog_projected_values) and orthogonal residual updates
# (orthog_residual) take away from a token's vector its part along another vector of the token.
# x-transformers 2.31.10 flattens tokens, heads and features into one vector per text for that: the
# length and product of the whole text, with the words to come, change the first word's output. So
# the loss of such a language model is not that of predicting the next word, and its probabilities
# of all texts do not sum to 1. For the same reason attn_orthog_projected_values_per_head projects
# no head by itself.
#
# Seen with x-transformers 2.31.10 and torch 2.15.0, summed probability of all 27 texts of three
# words of three, and change of the first word's log-probabilities with the later words:
#   plain: 1.000, 0.000
#   attn_orthog_projected_values: 1.045, 0.402
#   attn_orthog_projected_values_per_head: 1.045, 0.402
#   orthog_residual: 1.042, 0.668
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet x-transformers==2.31.10 torch==2.15.0 numpy==2.4.6
cat > "$folder/trial.py" <<'PY'
import itertools
import sys

import torch
from x_transformers import Decoder, TransformerWrapper

WORDS, LENGTH = 3, 3
torch.set_grad_enabled(False)
texts = torch.tensor(list(itertools.product(range(WORDS), repeat=LENGTH)))
texts = torch.nn.functional.pad(texts, (1, 0), value=WORDS)  # begin with another word
found = {}
for name in (None, "attn_orthog_projected_values", "attn_orthog_projected_values_per_head",
             "orthog_residual"):
    torch.manual_seed(0)
    decoder = Decoder(dim=16, depth=2, heads=2, attn_dim_head=8, **({name: True} if name else {}))
    model = TransformerWrapper(num_tokens=WORDS + 1, max_seq_len=8, attn_layers=decoder).eval()
    for weight in model.parameters():
        weight += 0.3 * torch.randn_like(weight)
    scores = model(texts[:, :-1])[..., :WORDS].log_softmax(-1)
    total = scores.gather(-1, texts[:, 1:, None]).sum((1, 2)).exp().sum()
    change = (scores[:, 0] - scores[:1, 0]).abs().max()  # all texts begin with the same word
    found[name] = float(total), float(change)
    print(f"{name or 'plain'}: {total:.3f}, {change:.3f}")
plain = found.pop(None)
sees = all(abs(total - 1) > 0.01 and change > 0.1 for total, change in found.values())
heads = len({found[name] for name in found if "values" in name})
sys.exit(not (abs(plain[0] - 1) < 1e-5 and plain[1] < 1e-5 and sees and heads == 1))
PY
"$folder/venv/bin/python" -W ignore "$folder/trial.py"
