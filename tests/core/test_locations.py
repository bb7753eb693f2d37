"""Locations: home directories, and a user without one."""

import pwd
from pathlib import Path

import pytest

from asap_exp.core.errors import UserError
from asap_exp.core.locations import cache_dir, data_root, expanded
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


def test_bugs_f16_home_directory_in_the_environments_paths(home, monkeypatch):
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


def test_bugs_f17_without_a_home_the_cache_is_asked_for(home, monkeypatch):
    without_a_home(monkeypatch)
    with pytest.raises(UserError, match=r"no home directory.*data\.cache=.*ASAP_EXP_CACHE="):
        cache_dir(None)
    with pytest.raises(UserError, match=r"data\.root=~/x: the home directory ~ is unknown"):
        expanded("data.root", "~/x")
    assert cache_dir("here") == Path("here")
    assert load_images(IMAGE_DATASETS["digits"], "test", None, None).rows == 540, "needs no cache"
