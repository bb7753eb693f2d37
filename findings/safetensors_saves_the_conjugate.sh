#!/bin/sh
# A complex tensor comes back from a file as its conjugate.
#
# conj() of PyTorch only marks a tensor; its memory still holds the values before. safetensors 0.8.0
# refuses tensors that are not contiguous, but writes the memory of a marked one as it is and
# forgets the mark. The signs of all imaginary parts, phases and frequencies with them, are turned
# round, with no error. torch.save keeps the values.
#
# Seen with safetensors 0.8.0 and torch 2.15.0:
#   tensor: [(1-2j), (3+4j)]
#   torch.save: [(1-2j), (3+4j)]
#   safetensors: [(1+2j), (3-4j)]
#   safetensors, after resolve_conj(): [(1-2j), (3+4j)]
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet safetensors==0.8.0 torch==2.15.0 numpy==2.4.6
cat > "$folder/trial.py" <<'PY'
import io
import sys

import torch
from safetensors.torch import load, save

tensor = torch.tensor([1 + 2j, 3 - 4j]).conj()
file = io.BytesIO()
torch.save(tensor, file)
file.seek(0)
found = {
    "tensor": tensor,
    "torch.save": torch.load(file),
    "safetensors": load(save({"tensor": tensor}))["tensor"],
    "safetensors, after resolve_conj()": load(save({"tensor": tensor.resolve_conj()}))["tensor"],
}
for name, each in found.items():
    print(f"{name}: {each.tolist()}")
kept = [bool(torch.equal(each, tensor)) for each in found.values()]
sys.exit(kept != [True, True, False, True])
PY
"$folder/venv/bin/python" "$folder/trial.py"
