#!/bin/sh
# A kernel that converts a number it is given compiles for every number but 1.
#
# Triton 3.9.0 compiles an integer argument that is 1 as a constant of that value, unless the kernel
# asks it not to (`do_not_specialize`). For any other number `count.to(tl.int64)`, against offsets
# beyond 2^31, is right; for 1 the constant has no `to`, and the launch ends in a CompilationError.
# The interpreter (TRITON_INTERPRET=1), in which kernels are tested without a GPU, makes a tensor of
# 1 too, and runs. `tl.cast(count, tl.int64)` compiles for every number.
#
# Seen with triton 3.9.0 and torch 2.15.0:
#   interpreted, count = 1: 1
#   compiled, count = 2: yes
#   compiled, count = 1: AttributeError("'int' object has no attribute 'to'")
#   compiled with tl.cast, count = 1: yes
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet triton==3.9.0 torch==2.15.0 numpy==2.4.6
cat > "$folder/kernels.py" <<'PY'
import triton
import triton.language as tl


@triton.jit
def method(out, count):
    tl.store(out, count.to(tl.int64))


@triton.jit
def function(out, count):
    tl.store(out, tl.cast(count, tl.int64))
PY
cat > "$folder/compiled.py" <<'PY'
import kernels
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource


def outcome(kernel, count):
    """Compile as the JIT does: 1 is a constant, another number is an argument."""
    signature, constants = {"out": "*i64", "count": "i32"}, {}
    if count == 1:
        signature["count"], constants["count"] = "constexpr", 1
    try:
        triton.compile(ASTSource(kernel, signature, constants), target=GPUTarget("cuda", 90, 32))
    except triton.compiler.errors.CompilationError as error:
        return str(error).splitlines()[-1]
    return "yes"


found = [outcome(kernels.method, 2), outcome(kernels.method, 1), outcome(kernels.function, 1)]
print("compiled, count = 2:", found[0])
print("compiled, count = 1:", found[1])
print("compiled with tl.cast, count = 1:", found[2])
assert found[0] == found[2] == "yes"
assert "has no attribute 'to'" in found[1], found[1]
PY
cat > "$folder/interpreted.py" <<'PY'
import kernels
import torch

out = torch.zeros(1, dtype=torch.int64)
kernels.method[(1,)](out, 1)
print("interpreted, count = 1:", out.item())
assert out.item() == 1
PY
cd "$folder"
TRITON_INTERPRET=1 venv/bin/python -W ignore interpreted.py
TRITON_CACHE_DIR="$folder/cache" venv/bin/python -W ignore compiled.py
