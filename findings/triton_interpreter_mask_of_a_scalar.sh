#!/bin/sh
# In Triton's interpreter, a comparison of scalars that is combined with a mask makes it a mask of integers.
#
# `mask & flag`, of a block's mask and a flag such as `n == 0`, is a mask for the compiled kernel. The
# interpreter (TRITON_INTERPRET=1) spreads the flag over the block as the type of the numbers compared,
# int32, so that the mask becomes one of int32, which a store refuses. `tl.where(flag, ..., ...)` of two
# masks means the same and works in both.
#
# Seen with triton 3.9.0, torch 2.15.0, numpy 2.4.6, without a GPU:
#   compiled for a GPU: yes
#   mask & flag: mask has unsupported dtype
#   tl.where(flag, mask, mask): [1, 1, 1, 0]
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet triton==3.9.0 torch==2.15.0 numpy==2.4.6
cat > "$folder/trial.py" <<'PY'
import os
import sys

interpreted = sys.argv[1] == "interpreted"
if interpreted:
    os.environ["TRITON_INTERPRET"] = "1"
import triton
import triton.language as tl


@triton.jit
def fill(x, n, CHOOSE: tl.constexpr):
    i = tl.arange(0, 4)
    inside = i < n
    flag = n > 0
    mask = tl.where(flag, inside, inside) if CHOOSE else inside & flag
    tl.store(x + i, i * 0 + 1, mask=mask)


if not interpreted:
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    for choose in (False, True):
        source = ASTSource(
            fn=fill,
            signature={"x": "*i32", "n": "i32", "CHOOSE": "constexpr"},
            constexprs={"CHOOSE": choose},
        )
        triton.compile(source, target=GPUTarget("cuda", 90, 32))
    print("triton", triton.__version__)
    print("compiled for a GPU: yes")
    sys.exit()

import torch

x = torch.zeros(4, dtype=torch.int32)
try:
    fill[(1,)](x, 3, CHOOSE=False)
    found = "no error"
except Exception as error:
    found = str(error.__cause__ or error)
print("mask & flag:", found)
fill[(1,)](x, 3, CHOOSE=True)
print("tl.where(flag, mask, mask):", x.tolist())
assert "mask has unsupported dtype" in found, found
assert x.tolist() == [1, 1, 1, 0], x
PY
"$folder/venv/bin/python" "$folder/trial.py" compiled
"$folder/venv/bin/python" "$folder/trial.py" interpreted
