#!/bin/sh
# One setting makes a model read the padding that its mask hides.
#
# LinearAttentionTransformerLM of linear-attention-transformer 0.19.1 takes an input_mask and, with
# linformer_settings, layers of the package linformer in place of its own. LinformerSelfAttention of
# linformer 0.2.3 accepts any further arguments and uses none of them, so the mask is dropped
# without a word: what a text gives depends on how far and with what it was padded.
#
# Seen with linear-attention-transformer 0.19.1, linformer 0.2.3 and torch 2.15.0, change of the
# output of 20 tokens:
#   linear attention: padded to 128 0 %, other padding 0 %
#   linformer_settings: padded to 128 5 %, other padding 5 %
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet linear-attention-transformer==0.19.1 \
    linformer==0.2.3 local-attention==1.11.2 axial-positional-embedding==0.3.12 \
    product-key-memory==0.3.0 torch==2.15.0 numpy==2.4.6
cat > "$folder/trial.py" <<'PY'
import sys

import torch
from linear_attention_transformer import LinearAttentionTransformerLM, LinformerSettings

WORDS, TOKENS, LENGTH = 50, 20, 128
torch.set_grad_enabled(False)
torch.manual_seed(0)
text = torch.randint(1, WORDS, (1, TOKENS))
padded = torch.nn.functional.pad(text, (0, LENGTH - TOKENS))
mask = padded > 0
other = torch.where(mask, padded, torch.randint(WORDS, padded.shape))
found = []
for name, settings in {"linear attention": None,
                       "linformer_settings": LinformerSettings(k=32)}.items():
    torch.manual_seed(0)
    model = LinearAttentionTransformerLM(num_tokens=WORDS, dim=32, depth=2, heads=4, dim_head=8,
                                         max_seq_len=LENGTH, linformer_settings=settings).eval()
    alone = model(text, input_mask=mask[:, :TOKENS])
    beside, another = (model(one, input_mask=mask)[:, :TOKENS] for one in (padded, other))
    found.append([100 * float((left - right).norm() / right.norm())
                  for left, right in ((beside, alone), (another, beside))])
    print(f"{name}: padded to {LENGTH} {found[-1][0]:.0f} %, other padding {found[-1][1]:.0f} %")
sys.exit(not (max(found[0]) < 0.01 and min(found[1]) > 1))
PY
"$folder/venv/bin/python" "$folder/trial.py"
