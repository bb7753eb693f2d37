#!/bin/sh
# A mean over ranks that have different numbers of samples is wrong.
#
# Lightning 2.6.6 adds up a value that is logged with sync_dist=True and its batch sizes on every
# rank, and divides the sums once both are reduced. The reduction of a mean divides by the number
# of ranks too, and the batch sizes are whole numbers: 10 and 11 samples become 10 instead of 10.5.
#
# Seen with lightning 2.6.6 and torch 2.15.0:
#   mean of 21 losses of 1: 1.050
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet lightning==2.6.6 torch==2.15.0 numpy==2.4.6
cat > "$folder/trial.py" <<'PY'
import logging, warnings

import lightning as L
import torch

warnings.filterwarnings("ignore")
logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
COUNTS = {0: 10, 1: 11}  # samples of each rank, all with a loss of 1


class Module(L.LightningModule):
    def validation_step(self, batch, index):
        count = COUNTS[self.global_rank]
        self.log("loss", torch.ones(()), batch_size=count, sync_dist=True)


class Shown(L.Callback):
    def on_validation_end(self, trainer, module):
        if trainer.is_global_zero:
            found = float(trainer.callback_metrics["loss"])
            print(f"mean of 21 losses of 1: {found:.3f}")


if __name__ == "__main__":
    trainer = L.Trainer(
        accelerator="cpu",
        devices=2,
        strategy="ddp_spawn",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[Shown()],
    )
    trainer.validate(Module(), [torch.zeros(1, 1)], verbose=False)
PY
cd "$folder"
found=$(venv/bin/python trial.py)
echo "$found"
[ "$found" = "mean of 21 losses of 1: 1.050" ]
