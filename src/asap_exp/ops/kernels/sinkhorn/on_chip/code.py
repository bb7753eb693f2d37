"""What the compiler made of the kernel, as a table: no GPU is needed.

Usage: python -m asap_exp.ops.kernels.sinkhorn.on_chip.code
"""

import re
import subprocess
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import triton

from asap_exp.ops.kernels.sinkhorn.on_chip import nvrtc
from asap_exp.ops.kernels.sinkhorn.on_chip.launch import Variant

VARIANTS = {
    "up to 256 tokens": Variant(1, 1, 64, True, False),
    "up to 512": Variant(2, 2, 64, True, False),
    "up to 1,024": Variant(4, 4, 64, True, False),
    "up to 256, duals kept": Variant(1, 1, 64, True, True),
    "up to 256, 128 channels": Variant(1, 1, 128, True, False),
}
COUNTED = ("HMMA", "LDSM", "LDS", "STS", "BAR", "LDL", "STL")
"""Instructions: matrix units, `ldmatrix`, shared memory, barriers, and spilled registers."""


class Loop(NamedTuple):
    """Instructions of a loop of machine code, between two addresses."""

    first: int
    last: int
    instructions: tuple[str, ...]

    @property
    def counts(self) -> Counter[str]:
        return Counter(name.split(".")[0] for name in self.instructions)


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


def loops(words: str) -> list[Loop]:
    """Return the loops of a program, in the order of their ends: what lies before a jump back."""
    found = re.findall(r"^\s+/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+\s+)?(\S+)([^;]*);", words, re.M)
    places = [(int(address, 16), name, rest) for address, name, rest in found]
    result = []
    for last, name, rest in places:
        target = re.search(r"0x([0-9a-f]+)", rest)
        if name.startswith("BRA") and target and int(target[1], 16) < last:
            first = int(target[1], 16)
            body = tuple(inner for at, inner, _ in places if first <= at <= last)
            result.append(Loop(first, last, body))
    return result


def update_loop(words: str) -> Loop:
    """Return the loop of the updates: the shortest that sums over keys and over queries."""
    sums = [loop for loop in loops(words) if loop.counts["HMMA"] >= 32 and loop.counts["BAR"] >= 2]
    return min(sums, key=lambda loop: len(loop.instructions))


def main() -> None:
    print(f"NVRTC {'.'.join(map(str, nvrtc.version(nvrtc.library())))}, {' '.join(nvrtc.OPTIONS)}")
    columns = ["kernel", "compiled in", "registers", "stack", "an update", *COUNTED]
    print(f"| {' | '.join(columns)} |\n|{' --- |' * len(columns)}")
    for name, variant in VARIANTS.items():
        before = time.perf_counter()
        machine_code = nvrtc.compile_program(nvrtc.library(), variant.source())
        seconds = time.perf_counter() - before
        resources, words = disassembled(machine_code)
        update = update_loop(words)
        usage = re.search(r"REG:(\d+) STACK:(\d+)", resources)
        assert usage is not None
        numbers = [f"{seconds:.1f} s", usage[1], f"{usage[2]} B", len(update.instructions)]
        numbers += [update.counts[instruction] for instruction in COUNTED]
        print(f"| {' | '.join(map(str, [name, *numbers]))} |")


if __name__ == "__main__":
    main()
