"""Files are complete or absent, and tensors on disk are checked when they are read."""

import errno
import fcntl
import os
import resource
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from asap_exp.core.errors import UserError, check_name
from asap_exp.core.files import (
    current_umask,
    read_json,
    read_text,
    write_atomically,
    write_bytes,
    write_json,
    write_text,
)
from asap_exp.core.tensors import fingerprint, load_tensors, save_tensors
from asap_exp.engine.checkpoints import load_checkpoint


class Interrupted(BaseException):
    """Error that is not an Exception, like KeyboardInterrupt."""


@pytest.fixture
def below_a_file(tmp_path: Path) -> Path:
    """Return a path that nobody can write, since its folder is a regular file."""
    (tmp_path / "file").write_text("in the way")
    return tmp_path / "file" / "result.json"


@pytest.mark.parametrize("failure", [RuntimeError, Interrupted])
def test_failure_midway_keeps_the_old_file_and_leaves_no_other(tmp_path, failure):
    path = tmp_path / "result.txt"
    path.write_text("old")

    def write(temporary: Path) -> None:
        temporary.write_text("half of the n")
        raise failure

    with pytest.raises(failure):
        write_atomically(path, write)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_disk_that_fails_midway_is_a_sentence_and_keeps_the_old_file(tmp_path):
    path = tmp_path / "result.txt"
    path.write_text("old")

    def write(temporary: Path) -> None:
        temporary.write_text("half of the n")
        raise OSError(28, "No space left on device")

    with pytest.raises(UserError, match=r"(?s)result\.txt.*No space left.*paths\.results"):
        write_atomically(path, write)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@contextmanager
def small_files() -> Iterator[None]:
    """Limit files to 1,000 bytes, so that the kernel refuses as at a quota or a full disk.

    No fixture, since pytest writes before it takes one down, and its output may be a file.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


WRITERS = {
    "bytes": lambda path: write_bytes(path, b"x" * 10_000),
    "tensors": lambda path: save_tensors(path, {"x": torch.zeros(10_000)}),
}


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
def test_full_disk_is_a_sentence_and_keeps_the_old_file(tmp_path, write):
    path = tmp_path / "result"
    path.write_text("old")
    with small_files(), pytest.raises(UserError, match="could not be written"):
        write(path)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_reader_never_sees_half_a_file(tmp_path):
    path = tmp_path / "result.txt"
    seen = []

    def write(temporary: Path) -> None:
        temporary.write_text("first half, ")
        seen.append(path.exists())
        temporary.write_text("first half, second half")

    write_atomically(path, write)
    assert seen == [False]
    assert path.read_text() == "first half, second half"


def test_folders_are_made_and_nothing_else_is_left(tmp_path):
    write_text(tmp_path / "a" / "b" / "result.txt", "naïve")
    assert (tmp_path / "a" / "b" / "result.txt").read_bytes() == "naïve".encode()
    assert [path.name for path in (tmp_path / "a" / "b").iterdir()] == ["result.txt"]


def test_old_content_is_replaced(tmp_path):
    write_bytes(tmp_path / "result", b"a longer old content")
    write_bytes(tmp_path / "result", b"\x00new")
    assert (tmp_path / "result").read_bytes() == b"\x00new"


def test_file_has_the_rights_of_any_new_file(tmp_path):
    # Temporary files are created readable only by their owner.
    write_text(tmp_path / "result.txt", "shared")
    mode = stat.S_IMODE((tmp_path / "result.txt").stat().st_mode)
    assert mode == 0o666 & ~current_umask()


def test_folder_that_cannot_be_written_is_a_sentence(below_a_file):
    with pytest.raises(UserError, match=r"result\.json could not be written"):
        write_json(below_a_file, {})
    with pytest.raises(UserError, match=r"result\.json could not be written"):
        save_tensors(below_a_file, {"x": torch.zeros(1)})


def test_json_round_trip(tmp_path):
    value = {"accuracy": 0.5, "none": None, "name": "é", "list": [1, 2]}
    write_json(tmp_path / "result.json", value)
    assert read_json(tmp_path / "result.json") == value
    assert "é" in (tmp_path / "result.json").read_text(encoding="utf-8")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_json_refuses_what_is_not_finite_and_keeps_the_old_file(tmp_path, value):
    path = tmp_path / "result.json"
    write_json(path, {"loss": 1.0})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(path, {"loss": value})
    assert read_json(path) == {"loss": 1.0}
    assert list(tmp_path.iterdir()) == [path]


def test_json_that_is_missing_or_damaged_is_named(tmp_path):
    with pytest.raises(UserError, match=r"absent\.json does not exist"):
        read_json(tmp_path / "absent.json")
    (tmp_path / "damaged.json").write_text('{"loss": ')
    with pytest.raises(UserError, match=r"damaged\.json is damaged"):
        read_json(tmp_path / "damaged.json")
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match=r"binary\.json is damaged"):
        read_json(tmp_path / "binary.json")


def tensors() -> dict[str, torch.Tensor]:
    x = torch.arange(6, dtype=torch.float32).reshape(2, 3)
    return {"float": x, "bf16": x.bfloat16(), "whole": x.long(), "scalar": x.sum()}


def test_tensors_round_trip(tmp_path):
    save_tensors(tmp_path / "x.safetensors", tensors())
    loaded = load_tensors(tmp_path / "x.safetensors")
    assert loaded.keys() == tensors().keys()
    for name, expected in tensors().items():
        assert loaded[name].dtype == expected.dtype
        assert torch.equal(loaded[name], expected)


def test_tensors_of_any_layout_and_with_gradients_are_saved(tmp_path):
    x = tensors()["float"].clone().requires_grad_()
    save_tensors(tmp_path / "x.safetensors", {"x": x.T})
    loaded = load_tensors(tmp_path / "x.safetensors")["x"]
    assert torch.equal(loaded, x.detach().T)


def test_marked_complex_tensors_keep_their_values(tmp_path):
    x = torch.tensor([1 + 2j, 3 - 4j])
    assert x.conj().is_conj()
    save_tensors(tmp_path / "x.safetensors", {"x": x.conj()})
    loaded = load_tensors(tmp_path / "x.safetensors")
    assert loaded["x"].tolist() == [1 - 2j, 3 + 4j]
    assert fingerprint(loaded) == fingerprint({"x": x.conj()}) != fingerprint({"x": x})


@pytest.mark.parametrize("content", ["truncated", "no header", "garbage", "empty"])
def test_damaged_tensors_are_a_sentence(tmp_path, content):
    path = tmp_path / "x.safetensors"
    save_tensors(path, tensors())
    whole = path.read_bytes()
    damaged = {
        "truncated": whole[:-5],
        "no header": whole[:20],
        "garbage": b"\xff" * len(whole),
        "empty": b"",
    }
    path.write_bytes(damaged[content])
    with pytest.raises(UserError, match=r"x\.safetensors is damaged"):
        load_tensors(path)


def test_tensors_that_are_not_there(tmp_path):
    with pytest.raises(UserError, match=r"x\.safetensors does not exist"):
        load_tensors(tmp_path / "x.safetensors")


def test_fingerprint_is_of_the_content_alone(tmp_path):
    expected = fingerprint(tensors())
    save_tensors(tmp_path / "x.safetensors", tensors())
    assert fingerprint(load_tensors(tmp_path / "x.safetensors")) == expected
    assert fingerprint(dict(reversed(tensors().items()))) == expected
    strided = tensors() | {"float": tensors()["float"].T.contiguous().T}
    assert not strided["float"].is_contiguous()
    assert fingerprint(strided) == expected
    assert len(expected) == 64


@pytest.mark.parametrize("name", tensors())
def test_fingerprint_depends_on_every_value(name):
    changed = tensors()
    changed[name] = changed[name].clone()
    changed[name].view(-1)[-1] += 1
    assert fingerprint(changed) != fingerprint(tensors())


def test_fingerprint_depends_on_names_shapes_and_dtypes():
    x = tensors()["float"]
    others = [
        {"x": x},
        {"y": x},
        {"x": x.reshape(3, 2)},
        {"x": x.view(torch.int32)},
        {"x": x.bfloat16()},
        {"x": x.bfloat16().view(torch.float16)},
        {"x": x, "y": x},
        {"x": x, "y": x[:0]},
        {},
    ]
    assert len({fingerprint(other) for other in others}) == len(others)


SAVERS = {
    "checkpoint": lambda path: torch.save({"x": torch.zeros(10_000)}, path),
    "safetensors": lambda path: save_file({"x": torch.zeros(10_000)}, path),
    "plain": lambda path: path.write_bytes(bytes(40_000)),
}


@pytest.mark.parametrize("save", SAVERS.values(), ids=SAVERS)
def test_every_writer_gives_the_systems_reason(tmp_path, save):
    refused = r"last\.ckpt could not be written \(File too large\).*lim"
    with small_files(), pytest.raises(UserError, match=refused):
        write_atomically(tmp_path / "last.ckpt", save)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("code", [errno.EDQUOT, errno.EIO, errno.ENOSPC, errno.EROFS])
def test_every_error_of_the_disk_is_the_sentence_of_its_file(tmp_path, code):
    def write(temporary: Path) -> None:
        raise OSError(code, os.strerror(code))

    with pytest.raises(UserError, match=rf"last\.ckpt could not be .*{os.strerror(code)}.*unhar"):
        write_atomically(tmp_path / "last.ckpt", write)


def test_failed_writer_keeps_no_space(tmp_path):
    """The space is freed although the traceback keeps the file open, as torch's writer does."""
    held = []

    def write(temporary: Path) -> None:
        held.append(temporary.open("wb"))
        held[0].write(bytes(10_000))
        held[0].flush()
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(UserError):
        write_atomically(tmp_path / "last.ckpt", write)
    assert os.fstat(held[0].fileno()).st_size == 0
    held[0].close()


def test_own_mistake_is_not_taken_for_the_disks(tmp_path):
    """A bug is not mistaken for a disk error, even while a system error is being handled."""

    def write(temporary: Path) -> None:
        raise TypeError("a mistake")

    try:
        raise OSError(errno.ENOSPC, "No space left on device")
    except OSError:
        with pytest.raises(TypeError, match="a mistake"):
            write_atomically(tmp_path / "x", write)


def refusing(code: int) -> Callable[..., None]:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    return refuse


@pytest.mark.parametrize("code", [errno.EPERM, errno.EINVAL, errno.ENOTSUP, errno.EACCES])
def test_rights_are_cosmetic(tmp_path, monkeypatch, code):
    monkeypatch.setattr(Path, "chmod", refusing(code))
    monkeypatch.setattr(os, "chmod", refusing(code))
    write_text(tmp_path / "x", "text")
    assert (tmp_path / "x").read_text() == "text"


@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOTSUP, errno.ENOSYS])
def test_file_system_without_sync_or_locks(tmp_path, monkeypatch, code):
    monkeypatch.setattr(os, "fsync", refusing(code))
    monkeypatch.setattr(fcntl, "flock", refusing(code))
    write_text(tmp_path / "x", "text")
    assert [file.name for file in tmp_path.iterdir()] == ["x"]
    monkeypatch.setattr(os, "fsync", refusing(errno.EIO))
    with pytest.raises(UserError, match="Input/output error"):
        write_text(tmp_path / "x", "other")
    assert (tmp_path / "x").read_text() == "text"


@pytest.mark.parametrize("code", [errno.EPERM, errno.EXDEV, errno.ENOSYS, errno.EINVAL])
def test_file_system_without_renaming_is_said_to_be_one(tmp_path, monkeypatch, code):
    monkeypatch.setattr(Path, "replace", refusing(code))
    with pytest.raises(UserError, match=r"x could not be.*does not support renaming.*paths\.res"):
        write_text(tmp_path / "x", "text")
    assert not list(tmp_path.iterdir())


WRITER = """
import os, signal, sys
from pathlib import Path
from asap_exp.core.files import write_atomically

def write(temporary):
    temporary.write_bytes(bytes(1000))
    print("half", flush=True)
    sys.stdin.read()

write_atomically(Path(sys.argv[1]), write)
"""


def test_partial_file_is_swept_once_its_writer_is_dead(tmp_path):
    path = tmp_path / "last.ckpt"
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert writer.stdout
    assert writer.stdout.readline() == b"half\n"
    write_text(tmp_path / "manifest.json", "{}")
    (left,) = tmp_path.glob(".*.partial")
    assert left.stat().st_size == 1000, "the writer lives"
    writer.kill()
    writer.wait()
    write_text(tmp_path / "manifest.json", "{}")
    assert [file.name for file in tmp_path.iterdir()] == ["manifest.json"]


@pytest.mark.parametrize(("hours", "stays"), [(1, True), (25, False)])
def test_where_no_lock_can_tell_age_does(tmp_path, hours, stays):
    """The file comes from another host, or from a version without locks."""
    left = tmp_path / ".last.ckpt.abcd1234.partial"
    left.write_bytes(b"half")
    os.utime(left, times=(time.time() - hours * 3600,) * 2)
    write_text(tmp_path / "manifest.json", "{}")
    assert left.exists() == stays


NO_JSON = {
    "missing key": ("{", "is damaged"),
    "deep": ("[" * 100_000, "is damaged: it is not JSON"),
    "NaN": ('{"a": NaN}', "NaN is not a JSON number"),
    "infinity": ("-Infinity", "-Infinity is not a JSON number"),
    "overflow": ('{"a": [1e999]}', "1e999 is not a JSON number"),
    "more digits than Python reads": ("9" * 5000, "is not a JSON number"),
    "beyond 64 bits": (str(2**64), f"{2**64} is not a JSON number"),
    "empty": ("", "is damaged"),
}


@pytest.mark.parametrize(("text", "words"), NO_JSON.values(), ids=NO_JSON)
def test_what_is_no_json_is_named(tmp_path, text, words):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(UserError, match=rf"x\.json.*{words}"):
        read_json(tmp_path / "x.json")


def test_whole_numbers_of_64_bits_are_read(tmp_path):
    values = [2**64 - 1, -(2**63), 0, 1.5, 1e308]
    write_json(tmp_path / "x.json", values)
    assert read_json(tmp_path / "x.json") == values


READERS = [read_json, read_text, load_tensors, load_checkpoint]


@pytest.mark.parametrize("read", READERS)
def test_folder_or_unreadable_file_is_named(tmp_path, monkeypatch, read):
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match=r"folder is a folder, not a (file|checkpoint)"):
        read(tmp_path / "folder")
    (tmp_path / "file").write_text("{}")
    for code, words in ((errno.EACCES, "may not be read"), (errno.EIO, "Input/output error")):
        with monkeypatch.context() as patch:  # rights do not bind a superuser
            patch.setattr(Path, "open", refusing(code))
            with pytest.raises(UserError, match=f"file.*{words}"):
                read(tmp_path / "file")
    (tmp_path / "file").write_bytes(b"\xff\xff")
    with pytest.raises(UserError, match=r"file.*damaged"):
        read(tmp_path / "file")


@pytest.mark.parametrize("name", ["digits", "cifar10", "a-b_c.d", "Größe", "x" * 100])
def test_plain_names_pass(name):
    check_name("task.name", name)


BAD_NAMES = ["", None, "*", "..", ".", ".multirun", "../..", "/elsewhere", "a/b", "a\nb", "a b"]


@pytest.mark.parametrize("name", [*BAD_NAMES, "a?", "[a]", "a~1", "a\\b", "a\x00", "x" * 101, 3])
def test_other_names_are_a_sentence(name):
    with pytest.raises(UserError, match=r"task\.name=.* is not allowed; it must be a plain name"):
        check_name("task.name", name)


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize("kind", ["a named pipe", "a socket", "a device"])
def test_what_is_no_regular_file_is_not_waited_for(tmp_path, monkeypatch, read, kind):
    monkeypatch.chdir(tmp_path)  # a socket's path is short
    if kind == "a named pipe":
        os.mkfifo("x")
    elif kind == "a socket":
        socket.socket(socket.AF_UNIX).bind("x")
    else:
        os.symlink("/dev/zero", "x")
    with pytest.raises(UserError, match=f"x is {kind}, not a file"):
        read(Path("x"))


def test_a_pipe_is_not_swept(tmp_path):
    os.mkfifo(tmp_path / ".x.partial")
    write_text(tmp_path / "x", "text")
    assert (tmp_path / "x").read_text() == "text"


def test_a_byte_order_mark_is_no_damage(tmp_path):
    (tmp_path / "x.json").write_bytes(b"\xef\xbb\xbf" + b'{"a": 1}')
    assert read_json(tmp_path / "x.json") == {"a": 1}


def test_a_file_that_cannot_be_written_names_the_keys(tmp_path):
    words = r"choose another folder with paths\.results=FOLDER, out=FOLDER or data\.cache=FOLDER$"
    with small_files(), pytest.raises(UserError, match=words):
        write_bytes(tmp_path / "x", bytes(2000))
