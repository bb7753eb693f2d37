#!/bin/sh
# The state of an optimizer in a full checkpoint of ModelParallelStrategy belongs to other weights.
#
# PyTorch numbers the weights of an optimizer in the order of its groups. Lightning 2.6.6 numbers
# those of a full checkpoint of ModelParallelStrategy in the order of the module. Where the groups
# have another order, as those with and without weight decay do, a run that continues on one device
# gives weights the averages of others: an error where the shapes differ, none where they agree.
#
# Seen with lightning 2.6.6 and torch 2.15.0, the shapes of the averages by number:
#   plain {0: [3], 1: [3, 2]}
#   sharded {1: [3], 0: [3, 2]}
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet lightning==2.6.6 torch==2.15.0 numpy==2.4.6
cat > "$folder/trial.py" <<'PY'
import logging, sys, warnings

import lightning as L
import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import nn
from torch.distributed.fsdp import fully_shard

warnings.filterwarnings("ignore")
logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
logging.getLogger("lightning.fabric").setLevel(logging.ERROR)


class Module(L.LightningModule):
    """Weight [3, 2] and bias [3], in two groups: the bias first."""

    def __init__(self):
        super().__init__()
        self.net = nn.Linear(2, 3)

    def configure_model(self):
        if "sharded" in sys.argv:
            fully_shard(self.net, mesh=self.device_mesh["data_parallel"])

    def training_step(self, batch, index):
        return self.net(batch).square().sum()

    def configure_optimizers(self):
        return torch.optim.AdamW([{"params": [self.net.bias]}, {"params": [self.net.weight]}])


if __name__ == "__main__":
    sharded = ModelParallelStrategy(1, 1, save_distributed_checkpoint=False)
    trainer = L.Trainer(
        accelerator="cpu",
        devices=1,
        strategy=sharded if "sharded" in sys.argv else "auto",
        max_steps=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Module(), torch.utils.data.DataLoader(torch.ones(4, 2)))
    trainer.save_checkpoint("state.ckpt")
    state = torch.load("state.ckpt", weights_only=True)["optimizer_states"][0]["state"]
    print(sys.argv[1], {number: list(values["exp_avg"].shape) for number, values in state.items()})
PY
cd "$folder"
found=$(venv/bin/python trial.py plain && venv/bin/python trial.py sharded)
echo "$found"
[ "$found" = "plain {0: [3], 1: [3, 2]}
sharded {1: [3], 0: [3, 2]}" ]
