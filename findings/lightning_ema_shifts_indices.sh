#!/bin/sh
# A moving average changes the whole numbers of a model, so its attention reads other biases.
#
# Lightning's EMAWeightAveraging averages buffers too, also those of whole numbers: the mean of 14
# and 14 by 0.9 and 0.1 is 13.999999 in float32 and becomes 13. timm's Swin keeps in such a buffer
# which bias a pair of tokens reads. The average is validated, tested and saved, and is another
# model, even if no weight ever changes. Whether it happens depends on the decay: 0.99 and 0.999 do
# no harm, 0.9 and 0.9999 do. PyTorch's AveragedModel does the same with use_buffers=True.
#
# Seen with lightning 2.6.6, timm 1.0.31 and torch 2.15.0, after three averages of equal weights:
#   decay 0.9: 661 of 2401 indices changed, the output differs: True
#   decay 0.999: 0 of 2401 indices changed, the output differs: False
#   decay 0.9999: 417 of 2401 indices changed, the output differs: True
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet lightning==2.6.6 timm==1.0.31 torch==2.15.0 \
    numpy==2.4.6
cat > "$folder/trial.py" <<'PY'
import sys

import lightning as L
import timm
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging
from torch import nn


class Module(L.LightningModule):
    """Small Swin transformer whose attention biases are as they might be after training."""

    def __init__(self):
        super().__init__()
        self.net = timm.create_model(
            "swin_tiny_patch4_window7_224",
            img_size=56,
            num_classes=10,
            depths=(1, 1, 1, 1),
            embed_dim=24,
            num_heads=(1, 2, 4, 8),
        )
        for name, weight in self.net.named_parameters():
            if name.endswith("relative_position_bias_table"):
                nn.init.normal_(weight)


found = {}
for decay in (0.9, 0.999, 0.9999):
    torch.manual_seed(0)
    module = Module().eval()
    callback = EMAWeightAveraging(decay=decay)
    callback.setup(None, module, "fit")
    for _ in range(3):
        callback._average_model.update_parameters(module)
    average = callback._average_model.module
    indices = [each.net.layers[0].blocks[0].attn.relative_position_index
               for each in (module, average)]
    changed = int((indices[0] != indices[1]).sum())
    images = torch.randn(1, 3, 56, 56)
    with torch.no_grad():
        differs = not torch.allclose(module.net(images), average.net(images), atol=1e-4)
    found[decay] = (changed, differs)
    print(f"decay {decay}: {changed} of {indices[0].numel()} indices changed, "
          f"the output differs: {differs}")
sys.exit(found != {0.9: (661, True), 0.999: (0, False), 0.9999: (417, True)})
PY
"$folder/venv/bin/python" "$folder/trial.py"
