"""wandb: chosen or not, online or offline, and a sentence where it is not installed."""

import importlib.util

import pytest

from asap_exp.config import LoggerConfig
from asap_exp.errors import UserError
from asap_exp.tracking import require_wandb, wandb_mode, wandb_run

HOST = "api.wandb.ai"


def logger(*, wandb: bool) -> LoggerConfig:
    return LoggerConfig(wandb=wandb, project="asap_exp_tests", entity=None, tags=["one"])


@pytest.fixture(autouse=True)
def environment(monkeypatch, tmp_path):
    """A user without any key, whose home is empty."""
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_BASE_URL", "NETRC"):
        monkeypatch.delenv(name, raising=False)
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


def start(folder, *, wandb):
    return wandb_run(
        logger(wandb=wandb),
        {"seed": 0},
        folder=folder,
        group="digits-vit",
        job_type="train",
        tags=["two"],
        run_id="digits-vit",
    )


def test_nothing_is_written_where_wandb_was_not_chosen(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    with start(folder, wandb=False) as run:
        assert run is None
    assert list(folder.iterdir()) == []


def test_offline_run_writes_below_the_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "run"
    folder.mkdir()
    with start(folder, wandb=True) as run:
        run.log({"loss": 1.0})
        assert (run.group, run.name, run.id) == ("digits-vit", "digits-vit-train", "digits-vit")
        assert set(run.tags) == {"one", "two"}
        assert run.config["seed"] == 0
    (written,) = (folder / "wandb").glob("offline-run-*")
    assert list(written.glob("*.wandb"))
    assert not (tmp_path / "wandb").exists()


def test_error_inside_a_run_is_not_swallowed(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    with pytest.raises(RuntimeError, match="diverged"), start(tmp_path, wandb=True):
        raise RuntimeError("diverged")
