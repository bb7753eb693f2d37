#!/bin/sh
# A learning rate that should fall at epoch 30 falls at 29 with one schedule of two.
#
# create_scheduler_v2 takes decay_milestones=(30, 60) for sched="multistep" and decay_epochs=30 for
# sched="step". Called as its training script does, timm 1.0.31 lowers the rate for the former from
# epoch 29 on, one whole epoch earlier than for the latter and than PyTorch's MultiStepLR with the
# same milestones. Stepped by updates it is early by one update only: the same settings train
# another model with sched_on_updates.
#
# Seen with timm 1.0.31 and torch 2.15.0, first epochs with a lower rate:
#   torch MultiStepLR: 30 60
#   timm step: 30 60
#   timm multistep: 29 59
#   timm multistep by updates: update 2999 of 3000, 5999 of 6000
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet timm==1.0.31 torch==2.15.0 numpy==2.4.6
cat > "$folder/trial.py" <<'PY'
import sys

import torch
from timm.scheduler import create_scheduler_v2


def falls(rates):
    """Return the places at which a list of rates falls."""
    return [place for place in range(1, len(rates)) if rates[place] < rates[place - 1]]


def optimizer():
    """Return an optimizer of one weight."""
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)


sgd = optimizer()
schedule = torch.optim.lr_scheduler.MultiStepLR(sgd, [30, 60])
rates = []
for _ in range(70):
    rates.append(sgd.param_groups[0]["lr"])
    sgd.step()
    schedule.step()
found = {"torch MultiStepLR": falls(rates)}
for name in ("step", "multistep"):
    sgd = optimizer()
    schedule = create_scheduler_v2(
        sgd, sched=name, num_epochs=90, decay_epochs=30, decay_milestones=(30, 60)
    )[0]
    rates = []
    for epoch in range(70):
        rates.append(sgd.param_groups[0]["lr"])
        schedule.step(epoch + 1)
    found[f"timm {name}"] = falls(rates)
for name, places in found.items():
    print(f"{name}:", *places)
sgd = optimizer()
schedule = create_scheduler_v2(
    sgd, sched="multistep", num_epochs=90, decay_milestones=(30, 60), step_on_epochs=False,
    updates_per_epoch=100,
)[0]
rates = []
for update in range(7000):
    rates.append(sgd.param_groups[0]["lr"])
    schedule.step_update(update + 1)
updates = falls(rates)
print(f"timm multistep by updates: update {updates[0]} of 3000, {updates[1]} of 6000")
sys.exit((list(found.values()), updates) != ([[30, 60], [30, 60], [29, 59]], [2999, 5999]))
PY
"$folder/venv/bin/python" "$folder/trial.py"
