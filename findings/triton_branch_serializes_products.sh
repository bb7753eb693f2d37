#!/bin/sh
# A branch that is never taken makes a loop's matrix products wait for each other.
#
# Triton 3.6.0 (and 3.9.0) compiles a loop of two products per step, as in flash attention, into
# Hopper's asynchronous wgmma instructions. With a data-dependent `if` in the loop, say a rescaling
# that is hardly ever needed, the same number of them is there, but ptxas reports C7515: they are
# serialized. Triton does not pass its remark on, so nothing is seen but the time.
#
# Seen with triton 3.6.0 (no GPU needed):
#   without the branch: 16 wgmma, serialized: False
#   with the branch: 16 wgmma, serialized: True
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet triton==3.6.0
cat > "$folder/trial.py" <<'PY'
import subprocess
import sys
from pathlib import Path

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource


@triton.jit
def attention(
    q, k, v, out, m, N: tl.constexpr, M: tl.constexpr, D: tl.constexpr, BRANCH: tl.constexpr
):
    i, d = tl.arange(0, N), tl.arange(0, D)
    queries = tl.load(q + i[:, None] * D + d[None, :])
    shift = tl.zeros([N], tl.float32)
    total = tl.zeros([N], tl.float32)
    values = tl.zeros([N, D], tl.float32)
    for first in range(0, m, M):
        j = first + tl.arange(0, M)
        keys = tl.load(k + j[:, None] * D + d[None, :])
        logits = tl.dot(queries, tl.trans(keys))
        weights = tl.exp2(logits - shift[:, None])
        sums = tl.sum(weights, 1)
        if BRANCH:
            if tl.max(sums) > 1e30:
                higher = tl.maximum(shift, tl.max(logits, 1))
                factor = tl.exp2(shift - higher)
                total *= factor
                values *= factor[:, None]
                shift = higher
                weights = tl.exp2(logits - shift[:, None])
                sums = tl.sum(weights, 1)
        total += sums
        there = tl.load(v + j[:, None] * D + d[None, :])
        values += tl.dot(weights.to(tl.bfloat16), there)
    tl.store(out + i[:, None] * D + d[None, :], values / total[:, None])


ptxas = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "ptxas"
found = []
for branch in (False, True):
    constants = {"N": 128, "M": 64, "D": 64, "BRANCH": branch}
    signature = {"q": "*bf16", "k": "*bf16", "v": "*bf16", "out": "*fp32", "m": "i32"}
    signature |= dict.fromkeys(constants, "constexpr")
    aligned = {(index,): [["tt.divisibility", 16]] for index in range(5)}
    source = ASTSource(attention, signature, constants, aligned)
    kernel = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 4})
    Path("kernel.ptx").write_text(kernel.asm["ptx"])
    command = [ptxas, "-v", "--gpu-name=sm_90a", "kernel.ptx", "-o", "kernel.cubin"]
    remarks = subprocess.run(command, check=True, capture_output=True, text=True).stderr
    serialized = "C7515" in remarks
    count = kernel.asm["ptx"].count("wgmma.mma_async")
    print(f"{'with' if branch else 'without'} the branch: {count} wgmma, serialized: {serialized}")
    found.append((count, serialized))
sys.exit(found != [(16, False), (16, True)])
PY
cd "$folder" && TRITON_CACHE_DIR="$folder/cache" venv/bin/python trial.py
