"""Files are whole or not there, and tensors on disk are checked when they are read."""

import resource
import stat
from pathlib import Path

import pytest
import torch

from asap_exp.errors import UserError
from asap_exp.files import (
    current_umask,
    read_json,
    write_atomically,
    write_bytes,
    write_json,
    write_text,
)
from asap_exp.tensors import fingerprint, load_tensors, save_tensors


class Interrupted(BaseException):
    """Like KeyboardInterrupt: not an Exception."""


@pytest.fixture
def below_a_file(tmp_path: Path) -> Path:
    """A path that nobody can write, whatever their rights: its folder is a regular file."""
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


WRITERS = {
    "bytes": lambda path: write_bytes(path, b"x" * 10_000),
    "tensors": lambda path: save_tensors(path, {"x": torch.zeros(10_000)}),
}


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
def test_full_disk_is_a_sentence_and_keeps_the_old_file(tmp_path, write):
    path = tmp_path / "result"
    path.write_text("old")
    # A limit on the size of files fails in the kernel, as a full disk does.
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(UserError, match="could not be written"):
            write(path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
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
    # A temporary file is made for its owner alone.
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
