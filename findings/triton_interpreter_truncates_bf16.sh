#!/bin/sh
# Triton's interpreter rounds bfloat16 towards zero, the GPU to the nearest.
#
# With TRITON_INTERPRET=1, in which kernels are tested without a GPU, triton 3.9.0 makes a bfloat16
# of a float32 by cutting off half of its bits. Compiled, the same cast is cvt.rn.bf16, which
# rounds to the nearest, as torch does. About half of all values are one step too small, so errors
# no longer cancel: a sum of weights loses a quarter of a percent on the CPU and nothing on the GPU.
#
# Seen with triton 3.9.0 and torch 2.15.0 for 65,536 numbers between 1 and 2:
#   compiled: cvt.rn.bf16
#   interpreted: 50.2 % differ from torch, mean error -0.00391 (torch: 0.00001)
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet triton==3.9.0 torch==2.15.0 numpy==2.4.6
cat > "$folder/kernel.py" <<'PY'
import triton
import triton.language as tl


@triton.jit
def cast(x, out, N: tl.constexpr):
    i = tl.arange(0, N)
    tl.store(out + i, tl.load(x + i).to(tl.bfloat16))
PY
cat > "$folder/compiled.py" <<'PY'
import re

import triton
from kernel import cast
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

signature = {"x": "*fp32", "out": "*bf16", "N": "constexpr"}
kernel = triton.compile(ASTSource(cast, signature, {"N": 1024}), target=GPUTarget("cuda", 90, 32))
print("compiled:", *sorted(set(re.findall(r"cvt\.\w+\.bf16", kernel.asm["ptx"]))))
PY
cat > "$folder/interpreted.py" <<'PY'
import sys

import torch
from kernel import cast

torch.manual_seed(0)
x = 1 + torch.rand(65536)
found = torch.empty(65536, dtype=torch.bfloat16)
cast[(1,)](x, found, 65536)
expected = x.bfloat16()
share = (found != expected).float().mean()
errors = [float((each.double() - x).mean()) for each in (found, expected)]
print(f"interpreted: {share:.1%} differ from torch, mean error {errors[0]:.5f} "
      f"(torch: {abs(errors[1]):.5f})".replace("%", " %"))
sys.exit(not (share > 0.4 and errors[0] < -0.003 and abs(errors[1]) < 0.0001))
PY
cd "$folder"
compiled=$(TRITON_CACHE_DIR="$folder/cache" venv/bin/python -W ignore compiled.py)
echo "$compiled"
[ "$compiled" = "compiled: cvt.rn.bf16" ]
TRITON_INTERPRET=1 venv/bin/python -W ignore interpreted.py
