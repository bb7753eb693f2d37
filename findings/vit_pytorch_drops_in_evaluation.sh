#!/bin/sh
# Two vision transformers in evaluation mode give another output each time.
#
# eval() turns dropout off, but not all of it in vit-pytorch 1.26.14. CaiT draws in every pass which
# layers to leave out (layer_dropout, 0.05 in the README's example), one draw for the whole batch.
# ViViT hands its dropout to PyTorch's scaled_dot_product_attention in either mode, unless
# use_flash_attn=False. Accuracies do not repeat and are those of a thinned model, and a teacher's
# targets change from one pass to the next.
#
# Seen with vit-pytorch 1.26.14 and torch 2.15.0, different outputs in 20 evaluations of the same
# images, and how far these are apart by how far the outputs of different images are:
#   ViT, dropout=0.1: 1, 0 %
#   CaiT, dropout=0.1: 1, 0 %
#   CaiT, layer_dropout=0.05: 5, 15 %
#   ViViT, dropout=0.1, use_flash_attn=False: 1, 0 %
#   ViViT, dropout=0.1: 20, 97 %
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet vit-pytorch==1.26.14 torch==2.15.0 numpy==2.4.6
cat > "$folder/trial.py" <<'PY'
import sys

import torch
from vit_pytorch import ViT
from vit_pytorch.cait import CaiT
from vit_pytorch.vivit import ViViT

torch.set_grad_enabled(False)
torch.manual_seed(0)
common = {"image_size": 32, "num_classes": 10, "dim": 64, "heads": 4, "dim_head": 16, "mlp_dim": 64}
image, video = torch.randn(32, 3, 32, 32), torch.randn(32, 3, 8, 32, 32)
vivit = {"image_patch_size": 8, "frames": 8, "frame_patch_size": 2, "spatial_depth": 2,
         "temporal_depth": 2, "dropout": 0.1}
models = {
    "ViT, dropout=0.1": (ViT, {"patch_size": 8, "depth": 4, "dropout": 0.1}, image),
    "CaiT, dropout=0.1": (CaiT, {"patch_size": 8, "depth": 12, "cls_depth": 2, "dropout": 0.1},
                          image),
    "CaiT, layer_dropout=0.05": (CaiT, {"patch_size": 8, "depth": 12, "cls_depth": 2,
                                        "layer_dropout": 0.05}, image),
    "ViViT, dropout=0.1, use_flash_attn=False": (ViViT, {**vivit, "use_flash_attn": False}, video),
    "ViViT, dropout=0.1": (ViViT, vivit, video),
}
found = {}
for name, (kind, options, batch) in models.items():
    torch.manual_seed(0)
    model = kind(**common, **options).eval()
    outputs = torch.stack([model(batch) for _ in range(20)])
    different = len(outputs.flatten(1).unique(dim=0))
    spread = 100 * float(outputs.std(0).mean() / outputs.std(1).mean())
    found[name] = different > 1 and spread > 5
    print(f"{name}: {different}, {spread:.0f} %")
sys.exit(list(found.values()) != [False, False, True, False, True])
PY
"$folder/venv/bin/python" "$folder/trial.py"
