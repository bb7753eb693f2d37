"""Each file of a finished run damaged in many ways."""

import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

from tests.reliability.altered import FILES, NEEDED, neighbours, trials
from tests.reliability.bench import Base, Bench, Case, Trial

BASES = NEEDED

Change = Callable[[bytes, random.Random], bytes]


def one_bit(data: bytes, rng: random.Random) -> bytes:
    place = rng.randrange(len(data))
    return data[:place] + bytes([data[place] ^ (1 << rng.randrange(8))]) + data[place + 1 :]


def inserted(data: bytes, rng: random.Random) -> bytes:
    place = rng.randrange(len(data))
    return data[:place] + rng.randbytes(rng.randint(1, 9)) + data[place:]


CONTENTS: dict[str, Change] = {
    "empty": lambda data, rng: b"",
    **{f"cut-{n}": lambda data, rng: data[: rng.randrange(1, len(data))] for n in range(6)},
    "cut-last": lambda data, rng: data[:-1],
    **{f"bit-{n}": one_bit for n in range(10)},
    "zeros": lambda data, rng: bytes(len(data)),
    "zero-end": lambda data, rng: data[: len(data) // 2] + bytes(len(data) // 2),
    "random": lambda data, rng: rng.randbytes(len(data)),
    "inserted": inserted,
    "twice": lambda data, rng: data + data,
    "list": lambda data, rng: b"[]\n",
    "null": lambda data, rng: b"null\n",
    "object": lambda data, rng: b"{}\n",
    "number": lambda data, rng: b"7\n",
    "nested": lambda data, rng: b"[" * 100_000,
    "nan": lambda data, rng: b'{"status": NaN, "format": 1e999}\n',
    "not-utf-8": lambda data, rng: b'{"status": "\xff\xfe"}\n',
}
PLACES = ("folder", "dangling", "missing", "another-runs", "forbidden")
"""What is at the file's path in its stead."""

REPEATED = {f"{kind}-{n}" for kind in ("cut", "bit") for n in range(1, 10)}
"""The same damage at another place: the stages of other runs are not asked again."""


def cases(bases: dict[str, Base], *, all_of_them: bool) -> list[Case]:
    names = [*CONTENTS, *PLACES]
    if os.geteuid() == 0:
        names.remove("forbidden")  # root may read everything
    return [
        Case("damages", f"{pattern.replace('*', '_')}/{name}", check, (pattern, name))
        for pattern in FILES
        for name in names
    ]


def check(bench: Bench, case: Case) -> list[Trial]:
    pattern, name = case.detail
    state = bench.rng.getstate()

    def alter(file: Path, other: Path) -> None:
        bench.rng.setstate(state)  # every step meets the same damage
        damage(file, other, name, bench.rng)

    found = list(trials(bench, pattern, alter))
    if (pattern, name) == ("records/*.json", "another-runs"):
        # Whole, and of another run: people exchange records under any name.
        found = [Trial("another valid record", counts=trial.counts) for trial in found]
    of_a_run = not pattern.startswith(("records/", "checkpoints/", "logs/"))
    if of_a_run and name not in REPEATED:
        found += neighbours(bench, pattern, alter)
    return found


def damage(file: Path, other: Path, name: str, rng: random.Random) -> None:
    if name in CONTENTS:
        file.write_bytes(CONTENTS[name](file.read_bytes(), rng))
    elif name == "forbidden":
        file.chmod(0)
    else:
        file.unlink()
        if name == "folder":
            file.mkdir()
        elif name == "dangling":
            file.symlink_to("nowhere")
        elif name == "another-runs":
            shutil.copy(other, file)
