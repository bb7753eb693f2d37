"""Locations: home directories, and a user without one."""

import errno
import pwd
from pathlib import Path

import pytest

from asap_exp.core import app, locations
from asap_exp.core.composing import compose
from asap_exp.core.config import EvaluateConfig, ReportConfig, TrainConfig
from asap_exp.core.errors import UserError
from asap_exp.core.files import write_text
from asap_exp.core.locations import cache_dir, check_can_be_made, data_root, expanded
from asap_exp.data.catalog import IMAGE_DATASETS
from asap_exp.data.sources import load_images


@pytest.fixture
def home(monkeypatch, tmp_path) -> Path:
    for name in ("ASAP_EXP_CACHE", "ASAP_EXP_DATA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def without_a_home(monkeypatch) -> None:
    def gone(*_: object) -> None:
        raise KeyError("uid not found")

    monkeypatch.delenv("HOME")
    monkeypatch.setattr(pwd, "getpwuid", gone)


def test_home_directory_in_the_environments_paths(home, monkeypatch):
    assert cache_dir(None) == home / ".cache" / "asap_exp"
    assert data_root(None) is None
    monkeypatch.setenv("ASAP_EXP_CACHE", "~/c")
    monkeypatch.setenv("ASAP_EXP_DATA", "~/d")
    assert cache_dir(None) == home / "c"
    assert data_root(None) == str(home / "d")
    assert cache_dir("~/mine") == home / "mine"
    assert data_root("~") == str(home)
    monkeypatch.setenv("ASAP_EXP_CACHE", "~nobody-of-this-name")
    with pytest.raises(UserError, match="ASAP_EXP_CACHE=~nobody-of-this-name: the home directory"):
        cache_dir(None)


def test_without_a_home_the_cache_is_asked_for(home, monkeypatch):
    without_a_home(monkeypatch)
    with pytest.raises(UserError, match=r"no home directory.*data\.cache=.*ASAP_EXP_CACHE="):
        cache_dir(None)
    with pytest.raises(UserError, match=r"data\.root=~/x: the home directory ~ is unknown"):
        expanded("data.root", "~/x")
    assert cache_dir("here") == Path("here")
    assert load_images(IMAGE_DATASETS["digits"], "test", None, None).rows == 540, "needs no cache"


@pytest.mark.parametrize(
    ("stage", "schema", "key", "words"),
    [
        ("train", TrainConfig, "paths.results", ("task=digits",)),
        ("evaluate", EvaluateConfig, "data.cache", ()),
        ("report", ReportConfig, "out", ()),
    ],
)
def test_file_for_a_folder_to_write_to_is_named_with_its_key_alone(
    tmp_path, stage, schema, key, words
):
    (tmp_path / "a.md").touch()
    for place, what in {"a.md": "is", "a.md/x": f"cannot be made: {tmp_path}/a.md is"}.items():
        given = f"{key}={tmp_path / place}"
        with pytest.raises(UserError) as error:
            compose(stage, [*words, given], schema)
        assert str(error.value) == f"{given} {what} a file; give a folder"


def unwritable(monkeypatch, folder):
    """Refuse new files in a folder, which root may write to whatever its permissions say."""

    def refuse(dir):
        assert dir == folder
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(locations.tempfile, "TemporaryFile", refuse)


def test_folder_that_cannot_be_made_is_refused_before_anything_is_read(tmp_path, monkeypatch):
    check_can_be_made("out", str(tmp_path / "x/y"))
    unwritable(monkeypatch, tmp_path)
    check_can_be_made("out", str(tmp_path))  # it is there, and each stage knows if it writes to it
    words = f"out={tmp_path}/x/y cannot be made: nothing can be written to {tmp_path} "
    with pytest.raises(UserError, match=words + r"\(Read-only file system\); give another folder"):
        check_can_be_made("out", str(tmp_path / "x/y"))


@pytest.mark.parametrize("sweep", [(), ("-m", "seed=0,1")])
def test_stage_begins_with_the_folder_that_it_writes_to(tmp_path, monkeypatch, capsys, sweep):
    unwritable(monkeypatch, tmp_path)
    given = f"paths.results={tmp_path}/x"
    monkeypatch.setattr("sys.argv", ["train", "task=digits", given, *sweep])
    with pytest.raises(SystemExit) as end:
        app.main("train", TrainConfig, lambda _: pytest.fail("it ran"))
    assert end.value.code == 2
    assert f"error: {given} cannot be made" in capsys.readouterr().err


def test_file_that_cannot_be_written_names_the_key_of_its_folder(tmp_path, monkeypatch):
    folders = {"paths.results": tmp_path, "out": tmp_path / "report", "data.cache": tmp_path / "c"}
    monkeypatch.setattr(locations, "written", {key: str(each) for key, each in folders.items()})
    (tmp_path / "report").mkdir()
    (tmp_path / "report/file").touch()
    words = "A file is in place of a folder; move it away, or choose another folder with out=FOLDER"
    with pytest.raises(UserError, match=f"{words}$"):
        write_text(tmp_path / "report/file/x", "")
