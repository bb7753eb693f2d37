#!/bin/sh
# The saved position of a stateful loader is lost if the optimizer asks for the number of steps.
#
# Lightning 2.6.6 saves the state of a train loader with state_dict and load_state_dict in a
# mid-epoch checkpoint and restores it when training resumes, except when
# configure_optimizers reads trainer.estimated_stepping_batches, as schedules do. Reading it sets
# up the loaders before the loops are restored; the state is then silently never loaded, and the
# resumed epoch starts again with its first batch.
#
# Seen with lightning 2.6.6 and torch 2.15.0:
#   asks for the steps: False, batches after the resume: [2, 3]
#   asks for the steps: True, batches after the resume: [0, 1]
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet lightning==2.6.6 torch==2.15.0 numpy==2.4.6
cat > "$folder/trial.py" <<'PY'
import logging, os, sys, warnings

import lightning as L
import torch

warnings.filterwarnings("ignore")
logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)


class Loader:
    """Loader of four batches with a position to resume from."""

    def __init__(self):
        self.given, self.start = 0, 0

    def __len__(self):
        return 4

    def __iter__(self):
        start, self.start = self.start, 0
        for number in range(start, 4):
            self.given = number + 1
            yield torch.tensor([float(number)])

    def state_dict(self):
        return {"given": self.given}

    def load_state_dict(self, state):
        self.start = state["given"]


class Module(L.LightningModule):
    def __init__(self, asks):
        super().__init__()
        self.asks, self.weight, self.seen = asks, torch.nn.Parameter(torch.ones(1)), []

    def training_step(self, batch, index):
        self.seen.append(int(batch))
        return (self.weight * batch).sum()

    def configure_optimizers(self):
        if self.asks:
            _ = self.trainer.estimated_stepping_batches
        return torch.optim.SGD(self.parameters(), lr=0.01)


class StopAfterTwo(L.Callback):
    def on_train_batch_end(self, trainer, module, outputs, batch, index):
        if index == 1:
            trainer.save_checkpoint("middle.ckpt")
            raise StopIteration


def trainer(*callbacks):
    return L.Trainer(accelerator="cpu", max_epochs=1, logger=False, enable_progress_bar=False,
                     enable_checkpointing=False, enable_model_summary=False,
                     callbacks=list(callbacks))


found = {}
for asks in (False, True):
    trainer(StopAfterTwo()).fit(Module(asks), Loader())
    module = Module(asks)
    trainer().fit(module, Loader(), ckpt_path="middle.ckpt")
    found[asks] = module.seen
    print(f"asks for the steps: {asks}, batches after the resume: {module.seen}")
sys.exit(found != {False: [2, 3], True: [0, 1]})
PY
cd "$folder" && venv/bin/python trial.py
