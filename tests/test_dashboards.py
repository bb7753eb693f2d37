"""The script that makes a workspace and a report on wandb, without a network or an account."""

import importlib.util
import sys
from pathlib import Path

import pytest

from asap_exp.core.errors import UserError
from asap_exp.engine.diagnostics import PLAN_NUMBERS

sys.path.append(str(Path(__file__).resolve().parents[1] / "scripts"))
import dashboards


@pytest.fixture(autouse=True)
def no_account(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))


def with_package(monkeypatch: pytest.MonkeyPatch, *, installed: bool) -> None:
    spec = object() if installed else None
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: spec)


def test_missing_package_is_a_sentence_with_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    with_package(monkeypatch, installed=False)
    with pytest.raises(UserError, match=r"not installed; .*asap_exp\[dashboards\]"):
        dashboards.check("me", "mine", None, account=False)


def test_missing_login_is_a_sentence_with_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    with_package(monkeypatch, installed=True)
    with pytest.raises(UserError, match=r"wandb login.*WANDB_API_KEY.*--dry-run"):
        dashboards.check("me", "mine", None, account=True)
    dashboards.check("me", "mine", None, account=False)
    monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    dashboards.check("me", "mine", "digits", account=True)


@pytest.mark.parametrize(("key", "place"), [("--entity", 0), ("--project", 1), ("--task", 2)])
def test_bad_name_is_refused(key: str, place: int) -> None:
    names = ["me", "mine", "digits"]
    names[place] = 'no"name'
    with pytest.raises(UserError, match=f'{key} no"name is not allowed'):
        dashboards.check(*names, account=False)


@pytest.mark.parametrize("task", [None, "digits"])
def test_workspace_and_report_are_built_offline(task: str | None) -> None:
    pytest.importorskip("wandb_workspaces")
    parts = dashboards.all_parts()
    workspace = dashboards.make_workspace("me", "mine", task, parts)
    made = workspace._to_model().model_dump_json(by_alias=True, exclude_none=True)
    names = ["val/accuracy", "train/loss_epoch", "plan/example", "asap/model_speedup", "fidelity"]
    for name in (*names, *(f"plan/[0-9]+/{what}" for what in PLAN_NUMBERS)):
        assert name in made, name
    assert '"grouping":[{"section":"run","name":"group"},' in made
    assert ('"value":["digits"]' in made) == (task is not None)
    report = dashboards.make_report("me", "mine", task, parts)
    grids = [block for block in report.blocks if hasattr(block, "runsets")]
    assert [grid.runsets[0].name for grid in grids] == [part.stage for part in parts]
    assert all(grid.panels for grid in grids)


def test_dry_run_says_what_would_be_made(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    pytest.importorskip("wandb_workspaces")
    monkeypatch.setattr(sys, "argv", ["dashboards.py", "--entity", "me", "--dry-run"])
    dashboards.main()
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == ["Training", "Plans", "Maps", "Evaluation"]
