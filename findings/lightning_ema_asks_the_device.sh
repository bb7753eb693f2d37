#!/bin/sh
# Lightning's EMAWeightAveraging makes the host ask the device after every step, twice.
#
# lightning 2.6.6 hands PyTorch's AveragedModel an `avg_fn`. With one, each update reads from a
# tensor on the model's device how many updates there were (twice: on a GPU the host waits for all
# work each time), and averages tensor by tensor. PyTorch's own `get_ema_multi_avg_fn` averages all
# tensors in one operation.
#
# Seen with torch 2.15.0, lightning 2.6.6, for a module of 20 tensors, in the third update:
#   reads by the host: 2, operations of the average: 80 (with get_ema_multi_avg_fn: 1)
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet torch==2.15.0 lightning==2.6.6 numpy==2.4.6
cat > "$folder/trial.py" <<'PY'
import sys
from collections import Counter

import lightning as L
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils._python_dispatch import TorchDispatchMode

ARITHMETIC = ("mul", "add", "sub", "rsub", "lerp", "copy_", "_foreach_lerp_")


class Count(TorchDispatchMode):
    """Counts the operations that are dispatched."""

    def __init__(self):
        super().__init__()
        self.names = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names[function.overloadpacket.__name__] += 1
        return function(*args, **(kwargs or {}))


class Module(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(*(nn.Linear(4, 4) for _ in range(10)))


def counted(average, module):
    for _ in range(2):
        average.update_parameters(module)
    with Count() as count:
        average.update_parameters(module)
    return count.names


module = Module()
callback = EMAWeightAveraging()
callback.setup(None, module, "fit")
theirs = counted(callback._average_model, module)
torchs = counted(
    AveragedModel(module, multi_avg_fn=get_ema_multi_avg_fn(), use_buffers=True), module
)
reads = theirs["_local_scalar_dense"] + theirs["is_nonzero"]
each = [sum(names[name] for name in ARITHMETIC) for names in (theirs, torchs)]
print(f"reads by the host: {reads}, operations of the average: {each[0]} "
      f"(with get_ema_multi_avg_fn: {each[1]})")
sys.exit((reads, *each) != (2, 80, 1))
PY
"$folder/venv/bin/python" "$folder/trial.py"
