#!/bin/sh
# Triton's `/` of float32 numbers rounds otherwise on a GPU than in its interpreter, and than PyTorch.
#
# Compiled for an NVIDIA GPU, `a / b` becomes div.full.f32, which the PTX manual allows to be off by two
# units in the last place. The interpreter (TRITON_INTERPRET=1) divides with NumPy, which rounds to the
# nearest, as PyTorch does with two tensors. A kernel whose quotients must equal PyTorch's therefore passes
# its tests in the interpreter and fails them on the GPU: 69999 / 40000 did, on an H200 with Triton 3.6.
# `tl.div_rn` rounds to the nearest in both.
#
# Seen with triton 3.9.0, torch 2.15.0, numpy 2.4.6, without a GPU:
#   a / b: div.full.f32
#   tl.div_rn(a, b): div.rn.f32
#   interpreter, a / b as PyTorch has it: 10000 of 10000
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
def divide(a, b, out, n, NEAREST: tl.constexpr):
    i = tl.arange(0, 16384)
    x, y = tl.load(a + i, i < n, 1.0), tl.load(b + i, i < n, 1.0)
    tl.store(out + i, tl.div_rn(x, y) if NEAREST else x / y, i < n)


if not interpreted:
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    print("triton", triton.__version__)
    for words, nearest, expected in (
        ("a / b", False, "div.full.f32"),
        ("tl.div_rn(a, b)", True, "div.rn.f32"),
    ):
        source = ASTSource(
            fn=divide,
            signature=dict.fromkeys(("a", "b", "out"), "*fp32") | {"n": "i32", "NEAREST": "constexpr"},
            constexprs={"NEAREST": nearest},
        )
        ptx = triton.compile(source, target=GPUTarget("cuda", 90, 32)).asm["ptx"]
        found = {word for word in ptx.split() if word.startswith("div.")}
        print(f"{words}:", *found)
        assert found == {expected}, found
    sys.exit()

import torch

a, b = torch.rand(2, 10_000, generator=torch.Generator().manual_seed(0)) + 0.5
out = torch.empty_like(a)
divide[(1,)](a, b, out, 10_000, NEAREST=False)
same = int((out == a / b).sum())
print("interpreter, a / b as PyTorch has it:", same, "of 10000")
assert same == 10_000
PY
"$folder/venv/bin/python" "$folder/trial.py" compiled
"$folder/venv/bin/python" "$folder/trial.py" interpreted
