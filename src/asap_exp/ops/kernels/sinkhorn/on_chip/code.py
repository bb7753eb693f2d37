"""What the compiler made of the kernels, as a table: no GPU is needed.

Usage: python -m asap_exp.ops.kernels.sinkhorn.on_chip.code
"""

import re
import subprocess
import tempfile
import time
from collections import Counter
from pathlib import Path

import triton

from asap_exp.ops.kernels.sinkhorn.on_chip import nvrtc
from asap_exp.ops.kernels.sinkhorn.on_chip.launch import Variant

VARIANTS = {
    "up to 256 tokens": Variant(1, 1, 64, True, False),
    "up to 512": Variant(2, 2, 64, True, False),
    "up to 1,024": Variant(4, 4, 64, True, False),
    "up to 256, duals kept": Variant(1, 1, 64, True, True),
    "up to 256, 128 channels": Variant(1, 1, 128, True, False),
    "up to 256, gradient": Variant(1, 1, 64, True, False, gradient=True),
    "up to 512, gradient": Variant(2, 2, 64, True, False, gradient=True),
    "up to 1,024, gradient": Variant(4, 4, 64, True, False, gradient=True),
    "up to 256, 128 channels, gradient": Variant(1, 1, 128, True, False, gradient=True),
}
PRODUCTS = 32
"""Instructions of the matrix units of a warp for both sums of an update."""

COUNTED = ("HMMA", "LDSM", "LDS", "STS", "BAR", "LDL", "STL")
"""Instructions: matrix units, `ldmatrix`, shared memory, barriers, and spilled registers."""


def disassembled(machine_code: bytes) -> tuple[str, str]:
    """Return the resources of the kernel and its machine code in words, by Triton's tools."""
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "plan.cubin"
        file.write_bytes(machine_code)
        words = [
            subprocess.run([tool, option, file], check=True, capture_output=True, text=True).stdout
            for option in ("-res-usage", "-sass")
        ]
    return words[0], words[1]


def loops(words: str) -> list[list[str]]:
    """Return the instructions of all loops: what lies between a jump back and where it leads."""
    found = re.findall(r"^\s+/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+\s+)?(\S+)([^;]*);", words, re.M)
    program = [(int(address, 16), name, rest) for address, name, rest in found]
    result = []
    for last, name, rest in program:
        target = re.search(r"0x([0-9a-f]+)", rest) if name.startswith("BRA") else None
        first = int(target[1], 16) if target else last
        if first < last:
            result.append([inner for at, inner, _ in program if first <= at <= last])
    return result


def updates(words: str) -> Counter[str]:
    """Count the instructions of an update with E in float16, in the loop of the updates.

    Waits that last are moved out of the loop, and seem to be loops around it: the shortest counts.
    """
    sums = [
        loop
        for loop in loops(words)
        if sum(name.startswith("HMMA") for name in loop) == PRODUCTS
        and not any(name.startswith("HMMA") and name.endswith("BF16") for name in loop)
        and any(name.startswith("BAR") for name in loop)
    ]
    update = min(sums, key=len)
    return Counter(name.split(".")[0] for name in update)


def main() -> None:
    print(f"NVRTC {'.'.join(map(str, nvrtc.version(nvrtc.library())))}, {' '.join(nvrtc.OPTIONS)}")
    columns = ["kernel", "compiled in", "registers", "stack", "an update", *COUNTED]
    print(f"| {' | '.join(columns)} |\n|{' --- |' * len(columns)}")
    for name, variant in VARIANTS.items():
        before = time.process_time()
        machine_code = nvrtc.compile_program(nvrtc.library(), variant.source())
        seconds = time.process_time() - before
        resources, words = disassembled(machine_code)
        update = updates(words)
        usage = re.search(r"REG:(\d+) STACK:(\d+)", resources)
        assert usage is not None
        numbers = [f"{seconds:.1f} s", usage[1], f"{usage[2]} B", update.total()]
        numbers += [update[instruction] for instruction in COUNTED]
        print(f"| {' | '.join(map(str, [name, *numbers]))} |")


if __name__ == "__main__":
    main()
