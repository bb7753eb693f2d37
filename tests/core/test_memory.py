"""Memory that is available: by the machine, and by control groups of both versions."""

import resource
from pathlib import Path

import pytest

from asap_exp.core import memory
from asap_exp.core.memory import available_memory, gib, total_memory

GIB = 2**30


@pytest.fixture
def system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder whose proc/ and cgroup/ stand for those of the machine, with 6 GiB free."""
    (tmp_path / "proc" / "self").mkdir(parents=True)
    (tmp_path / "cgroup").mkdir()
    text = f"MemTotal: {8 * 2**20} kB\nMemAvailable: {6 * 2**20} kB\n"
    (tmp_path / "proc" / "meminfo").write_text(text)
    monkeypatch.setattr(memory, "PROC", tmp_path / "proc")
    monkeypatch.setattr(memory, "CGROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(memory, "total_memory", lambda: 8 * GIB)
    return tmp_path


def group(folder: Path, names: tuple[str, str], limit: object, used: int, stat: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in zip(names, (limit, used), strict=True):
        (folder / name).write_text(f"{value}\n")
    (folder / "memory.stat").write_text(stat)


def test_machine_says_what_is_available(system: Path) -> None:
    assert available_memory() == 6 * GIB
    (system / "proc" / "meminfo").unlink()
    assert available_memory() == 8 * GIB


V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes")
V2 = ("memory.max", "memory.current")


def test_group_of_version_2_limits_its_processes_and_cache_does_not_count(system: Path) -> None:
    (system / "proc" / "self" / "cgroup").write_text("0::/jobs/mine\n")
    group(system / "cgroup" / "jobs" / "mine", V2, "max", 3 * GIB, "inactive_file 0\n")
    assert available_memory() == 6 * GIB
    group(system / "cgroup" / "jobs", V2, 4 * GIB, 3 * GIB, f"anon 5\ninactive_file {GIB}\n")
    assert available_memory() == 2 * GIB


def test_group_of_version_1_limits_its_processes(system: Path) -> None:
    lines = "9:name=systemd:/x\n4:memory:/mine\n0::/\n"
    (system / "proc" / "self" / "cgroup").write_text(lines)
    stat = f"total_inactive_file {GIB}\n"
    group(system / "cgroup" / "memory" / "mine", V1, 5 * GIB, 2 * GIB, stat)
    group(system / "cgroup" / "memory", V1, 2**63 - 4096, 7 * GIB, stat)
    assert available_memory() == 4 * GIB


def test_container_whose_group_lies_elsewhere_is_limited_by_what_it_sees(system: Path) -> None:
    (system / "proc" / "self" / "cgroup").write_text("0::/docker/0123\n")
    group(system / "cgroup", V2, 3 * GIB, GIB, "inactive_file 0\n")
    assert available_memory() == 2 * GIB


def test_this_machine_has_memory() -> None:
    assert 0 < available_memory() <= total_memory()


def test_sizes_are_in_words() -> None:
    assert gib(3 * 2**29) == "1.5 GiB"
    assert gib(2**20) == "1.0 MiB"


def test_bounded_memory_is_refused_and_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    left = 300 * 2**20
    monkeypatch.setattr(memory, "available_memory", lambda: left)
    before = resource.getrlimit(resource.RLIMIT_DATA)
    with memory.bounded():
        assert len(bytearray(left // 3)) == left // 3
        with pytest.raises(MemoryError):
            bytearray(2 * left)
    assert resource.getrlimit(resource.RLIMIT_DATA) == before
    assert len(bytearray(2 * left)) == 2 * left
