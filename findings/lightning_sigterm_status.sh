#!/bin/sh
# A training stopped by SIGTERM ends with exit status 0.
#
# On SIGTERM, with which schedulers preempt jobs, Lightning 2.6.6 raises a SIGTERMException after
# the current batch. This is a SystemExit without a code: the process ends before the end of its
# script, prints nothing, and has status 0. So `train && evaluate` continues, and a queue that
# requeues failed jobs does not. A process ended by SIGTERM normally has status 143 in a shell.
#
# Seen with lightning 2.6.6 and torch 2.15.0:
#   status 0, printed: nothing
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet lightning==2.6.6 torch==2.15.0 numpy==2.4.6
cat > "$folder/trial.py" <<'PY'
import logging, os, signal, warnings

import lightning as L
import torch

warnings.filterwarnings("ignore")
logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)


class Module(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))

    def training_step(self, batch, index):
        if index == 1:
            os.kill(os.getpid(), signal.SIGTERM)  # as a scheduler does
        return (self.weight * batch).sum()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)


trainer = L.Trainer(accelerator="cpu", max_epochs=1, logger=False, enable_progress_bar=False,
                    enable_checkpointing=False, enable_model_summary=False)
trainer.fit(Module(), torch.utils.data.DataLoader(torch.ones(8)))
print("trained all 8 batches")
PY
status=0
"$folder/venv/bin/python" "$folder/trial.py" > "$folder/out" || status=$?
printed=$(cat "$folder/out")
echo "status $status, printed: ${printed:-nothing}"
[ "$status" = 0 ] && [ -z "$printed" ]
