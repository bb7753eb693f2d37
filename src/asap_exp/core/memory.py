"""Memory that this process can still get, from the machine, its control groups and a GPU."""

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PROC, CGROUPS = Path("/proc"), Path("/sys/fs/cgroup")

V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
V2 = ("memory.max", "memory.current", "inactive_file")
"""Files of a control group with its limit and its use, and the key of the cache it can drop."""


def available_memory() -> int:
    """Return how many bytes of main memory this process can still get."""
    return min(of_machine(), *of_groups(), total_memory())


def total_memory() -> int:
    """Return the bytes of main memory of this machine."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def of_machine() -> int:
    """Return what the kernel says is available without swapping, else all memory."""
    try:
        return 1024 * numbers(PROC / "meminfo")["MemAvailable:"]
    except (OSError, KeyError):
        return total_memory()


def of_groups() -> Iterator[int]:
    """Yield what the control groups of this process (version 1 or 2), and those above, leave."""
    try:
        lines = (PROC / "self" / "cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        root, names = CGROUPS, V2
        if controllers:
            if "memory" not in controllers.split(","):
                continue
            root, names = CGROUPS / "memory", V1
        group = root / path.strip("/")
        for folder in (group, *group.parents):
            if folder.is_relative_to(root) and (left := left_in(folder, *names)) is not None:
                yield left


SHARE = 0.9
"""Share of the available memory that is given out: the last of it makes a machine crawl."""


@contextmanager
def bounded() -> Iterator[None]:
    """Let an allocation beyond most of the memory that is available now fail with an error.

    Otherwise Linux grants it, and ends the process without a word once the memory is used.
    """
    try:
        used = 1024 * numbers(PROC / "self" / "status")["VmData:"]
    except (OSError, KeyError):
        yield  # not Linux, where the limit would not count memory of this kind
        return
    before, most = resource.getrlimit(resource.RLIMIT_DATA)
    limits = [
        used + available_memory(),
        *(n for n in (before, most) if n != resource.RLIM_INFINITY),
    ]
    resource.setrlimit(resource.RLIMIT_DATA, (min(limits), most))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (before, most))


def left_in(folder: Path, limit: str, used: str, droppable: str) -> int | None:
    """Return the bytes that a control group may still take; None without a limit."""
    try:
        most, now = ((folder / name).read_text(encoding="utf-8").strip() for name in (limit, used))
        if not most.isdecimal():
            return None  # max
        return int(most) - int(now) + numbers(folder / "memory.stat").get(droppable, 0)
    except OSError:
        return None


def numbers(file: Path) -> dict[str, int]:
    """Return the numbers in lines such as `NAME 1` or `NAME: 1 kB`, by name."""
    words = (line.split() for line in file.read_text(encoding="utf-8").splitlines())
    return {word[0]: int(word[1]) for word in words if len(word) > 1 and word[1].isdecimal()}


def gib(size: float) -> str:
    """Return a number of bytes in GiB or, if that is less than 0.1, in MiB."""
    return f"{size / 2**30:,.1f} GiB" if size >= 0.1 * 2**30 else f"{size / 2**20:,.1f} MiB"
