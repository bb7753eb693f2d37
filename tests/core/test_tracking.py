"""wandb: chosen or not, online or offline, and an error if it is not installed."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from asap_exp.core.config import LoggerConfig
from asap_exp.core.errors import UserError
from asap_exp.core.tracking import (
    reachable,
    require_tensorboard,
    require_wandb,
    wandb_mode,
    wandb_run,
)

HOST = "api.wandb.ai"


CHOSEN: dict[str, Any] = {"project": "asap_exp_tests", "entity": None, "tags": ["one"]}


def logger(*, wandb: bool) -> LoggerConfig:
    return LoggerConfig(wandb=wandb, **CHOSEN)


@pytest.fixture(autouse=True)
def environment(monkeypatch, tmp_path):
    """Imitate a user without a key, whose home directory is empty."""
    for name in ("MODE", "API_KEY", "BASE_URL", "DIR", "CONFIG_DIR", "IDENTITY_TOKEN_FILE"):
        monkeypatch.delenv(f"WANDB_{name}", raising=False)
    monkeypatch.delenv("NETRC", raising=False)
    monkeypatch.chdir(tmp_path)
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_INIT_TIMEOUT", "20")
    return home


def write_netrc(home, host):
    file = home / ".netrc"
    file.write_text(f"machine {host}\n  login user\n  password {'k' * 40}\n")
    file.chmod(0o600)


def test_offline_unless_there_is_a_key():
    assert wandb_mode() == "offline"


def test_online_with_a_key_in_the_environment(monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    assert wandb_mode() == "online"


def test_online_with_a_key_from_a_login(environment):
    write_netrc(environment, HOST)
    assert wandb_mode() == "online"


def test_key_of_another_server_is_no_key(environment, monkeypatch):
    write_netrc(environment, "wandb.example.org")
    assert wandb_mode() == "offline"
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.org/")
    assert wandb_mode() == "online"


def test_unreadable_login_is_no_key(environment):
    (environment / ".netrc").write_text("machine\n")
    (environment / ".netrc").chmod(0o600)
    assert wandb_mode() == "offline"


@pytest.mark.parametrize("mode", ["offline", "online", "disabled"])
def test_mode_that_the_user_chose_wins(environment, monkeypatch, mode):
    write_netrc(environment, HOST)
    monkeypatch.setenv("WANDB_MODE", mode)
    assert wandb_mode() == mode


def test_missing_wandb_is_a_sentence_with_the_way_out(monkeypatch, tmp_path):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "wandb" else found(name, *a)
    )
    with pytest.raises(UserError, match=r"not installed; install it, or choose logger=csv"):
        require_wandb()
    with pytest.raises(UserError, match="logger=csv"), start(tmp_path, wandb=True):
        pass
    with start(tmp_path, wandb=False) as run:
        assert run is None, "who did not choose wandb does not need it"


def test_missing_tensorboard_is_a_sentence_with_the_way_out(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None)
    with pytest.raises(UserError, match=r"not installed; .*asap_exp\[tensorboard\].*logger=csv"):
        require_tensorboard()


def start(folder, *, wandb):
    return wandb_run(
        logger(wandb=wandb),
        {"seed": 0},
        folder=folder,
        label="digits-vit-s0",
        group="digits-vit",
        job_type="train",
        tags=["two"],
        run_id="digits-vit-s0",
    )


def test_nothing_is_written_where_wandb_was_not_chosen(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    with start(folder, wandb=False) as run:
        assert run is None
    assert list(folder.iterdir()) == []


@pytest.mark.slow
def test_offline_run_writes_below_the_folder(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "run"
    folder.mkdir()
    with start(folder, wandb=True) as run:
        run.log({"loss": 1.0})
        assert (run.group, run.name) == ("digits-vit", "digits-vit-s0-train")
        assert run.id == "digits-vit-s0"
        assert set(run.tags) == {"one", "two"}
        assert run.config["seed"] == 0
    (written,) = (folder / "wandb").glob("offline-run-*")
    assert list(written.glob("*.wandb"))
    assert not (tmp_path / "wandb").exists()
    shown = f"run/wandb/{written.name}"
    assert capsys.readouterr().out == (
        f"wandb, offline: {shown}; upload it with: wandb sync {shown}\n"
    )


@pytest.mark.slow
def test_empty_variable_counts_as_not_set(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    for name in ("WANDB_SILENT", "WANDB_QUIET", "WANDB_INIT_TIMEOUT", "WANDB_RESUME"):
        monkeypatch.setenv(name, "")
    with start(tmp_path, wandb=True) as run:
        assert run.group == "digits-vit"


@pytest.mark.slow
def test_error_inside_a_run_is_not_swallowed(tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("WANDB_MODE", "offline")
    with pytest.raises(RuntimeError, match="diverged"), start(tmp_path, wandb=True):
        raise RuntimeError("diverged")
    assert "Traceback" not in capfd.readouterr().err, "wandb prints none of its own"


def settle(file, **settings):
    """Write wandb's settings as its commands do (`wandb offline`, `wandb disabled`, ...)."""
    file.parent.mkdir(parents=True, exist_ok=True)
    lines = "".join(f"{name} = {value}\n" for name, value in settings.items())
    file.write_text(f"[default]\n{lines}\n")


@pytest.mark.parametrize("mode", ["offline", "disabled", "online"])
@pytest.mark.parametrize("place", ["folder", "WANDB_DIR", "WANDB_CONFIG_DIR", "home", ".wandb"])
def test_mode_of_wandbs_own_settings_wins_over_a_key(
    environment, monkeypatch, tmp_path, mode, place
):
    folder = {
        "folder": tmp_path / "wandb",
        "WANDB_DIR": tmp_path / "elsewhere" / "wandb",
        "WANDB_CONFIG_DIR": tmp_path / "wc",
        "home": environment / ".config" / "wandb",
        ".wandb": tmp_path / ".wandb",
    }[place]
    settle(folder / "settings", mode=mode)
    if place == "WANDB_DIR":
        monkeypatch.setenv(place, str(tmp_path / "elsewhere"))
    if place == "WANDB_CONFIG_DIR":
        monkeypatch.setenv(place, "~/../wc")
    if mode != "online":
        monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    assert wandb_mode() == mode
    monkeypatch.setenv("WANDB_MODE", "dryrun")
    assert wandb_mode() == "offline", "the environment comes first"


def test_folder_wins_over_the_user_and_online_clears_it(environment, tmp_path, monkeypatch):
    settle(environment / ".config" / "wandb" / "settings", mode="disabled")
    settle(tmp_path / "wandb" / "settings", mode="offline")
    assert wandb_mode() == "offline"
    settle(tmp_path / "wandb" / "settings")  # as `wandb online` leaves it
    assert wandb_mode() == "disabled"
    settle(environment / ".config" / "wandb" / "settings", base_url="https://wandb.example.org")
    monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    assert wandb_mode() == "online"


def test_key_of_the_server_that_a_login_names(environment, tmp_path):
    write_netrc(environment, "wandb.example.org")
    settle(environment / ".config" / "wandb" / "settings", base_url="https://wandb.example.org")
    assert wandb_mode() == "online"


def test_settings_that_cannot_be_read_are_none(tmp_path):
    (tmp_path / "wandb").mkdir()
    (tmp_path / "wandb" / "settings").write_bytes(b"\xff[[[")
    assert wandb_mode() == "offline"


def test_disabled_makes_no_run_and_no_file(tmp_path):
    settle(tmp_path / "wandb" / "settings", mode="disabled")
    folder = tmp_path / "run"
    folder.mkdir()
    with start(folder, wandb=True) as run:
        assert run is None
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(
    ("variable", "mode"),
    [("run", "online"), ("dryrun", "offline"), ("shared", "shared"), ("disabled", "disabled")],
)
def test_words_of_old_are_modes(monkeypatch, variable, mode):
    monkeypatch.setenv("WANDB_MODE", variable)
    assert wandb_mode() == mode


def test_mode_that_is_none_is_a_sentence(tmp_path, monkeypatch):
    settle(tmp_path / "wandb" / "settings", mode="sometimes")
    with pytest.raises(UserError, match=r"mode in .*settings=sometimes is not allowed.*offline"):
        wandb_mode()
    monkeypatch.setenv("WANDB_MODE", "foo")
    with pytest.raises(UserError, match="WANDB_MODE=foo is not allowed; choose one of online"):
        wandb_mode()
    with pytest.raises(UserError, match="WANDB_MODE=foo"), start(tmp_path, wandb=True):
        pass


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("tags", ["x" * 80], "80 characters"),
        ("tags", [""], "is empty"),
        ("project", "a/b", "Invalid project name"),
        ("project", "p" * 129, "exceeded 128 characters"),
    ],
)
def test_what_wandb_refuses_is_a_sentence(tmp_path, monkeypatch, key, value, words):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setitem(CHOSEN, key, value)
    sentence = pytest.raises(UserError, match=rf"wandb did not start \(.*{words}.*logger=csv")
    with sentence as error, start(tmp_path, wandb=True):
        pass
    assert "\n" not in str(error.value)
    with sentence as checked:
        reachable(logger(wandb=True))
    assert str(checked.value) == str(error.value)


def test_check_finds_a_variable_that_wandb_refuses(monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert reachable(logger(wandb=True)) == "offline"
    monkeypatch.setenv("WANDB_INIT_TIMEOUT", "soon")
    with pytest.raises(UserError, match=r"init_timeout: .* valid number.*a WANDB_ variable"):
        reachable(logger(wandb=True))


@pytest.mark.parametrize("error", [RuntimeError, ValueError, OSError, TimeoutError, KeyError])
def test_whatever_init_raises_is_the_sentence(tmp_path, monkeypatch, error):
    """RuntimeError occurs for a user without a home directory."""
    import wandb

    def refuse(**_: object) -> None:
        raise error("Could not determine home directory.")

    monkeypatch.setattr(wandb, "init", refuse)
    sentence = pytest.raises(UserError, match=r"wandb did not start \(.*home directory.*logger=csv")
    with sentence, start(tmp_path, wandb=True):
        pass


@pytest.mark.slow
def test_no_network_is_a_sentence(tmp_path):
    """The mode is online because of a key, but the server does not answer."""
    server = {"WANDB_API_KEY": "0" * 40, "WANDB_BASE_URL": "http://127.0.0.1:9"}
    done = alone(NO_NETWORK, tmp_path, WANDB_INIT_TIMEOUT="1", **server)
    assert "wandb did not start (" in done.stdout, done.stderr


def alone(program: str, folder: Path, **environment: str) -> subprocess.CompletedProcess:
    """Runs in a separate process, which shares no wandb service with this one."""
    own = {name: value for name, value in os.environ.items() if name != "WANDB_SERVICE"}
    return subprocess.run(
        [sys.executable, "-c", program, str(folder)],
        env=own | environment,
        capture_output=True,
        text=True,
        timeout=100,
    )


NO_NETWORK = """
import sys
from pathlib import Path
from asap_exp.core.config import LoggerConfig
from asap_exp.core.errors import UserError
from asap_exp.core.tracking import wandb_run
try:
    with wandb_run(LoggerConfig(True, "p", None, []), {}, folder=Path(sys.argv[1]), label="n",
                   group="g", job_type="train", tags=[], run_id="x"):
        pass
except UserError as error:
    print(error)
"""
KILLED = """
import os, sys, time
from pathlib import Path
from asap_exp.core.config import LoggerConfig
from asap_exp.core.tracking import wandb_run
with wandb_run(LoggerConfig(True, "p", None, []), {}, folder=Path(sys.argv[1]), label="n",
               group="g", job_type="train", tags=[], run_id="x") as run:
    run.log({"early loss": 1.0})
    time.sleep(2.5)
    os.kill(os.getpid(), 9)
"""


@pytest.mark.slow
def test_killed_run_keeps_what_it_logged_seconds_before(tmp_path):
    alone(KILLED, tmp_path, WANDB_MODE="offline")
    (file,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    assert b"early loss" in file.read_bytes()
