"""Training with coarse duals, on images and on texts of several lengths."""

from pathlib import Path

import pytest

from asap_exp.core.errors import UserError
from asap_exp.core.training_log import training_curves
from tests.data.sentences import text_root
from tests.stages import run_text, run_train

pytestmark = pytest.mark.slow

FORMS = pytest.mark.parametrize("one_pass", ["false", "true"])
COARSE = ("attention=coarse", "attention.num_iters=4")


def check(run: Path) -> None:
    curves = training_curves(run)
    assert curves[-1]["train/loss_epoch"] < curves[0]["train/loss_epoch"]
    for layer in (0, 1):
        assert 0 < curves[-1][f"plan/{layer}/column_error"] < 1
        assert 0 < curves[-1][f"plan/{layer}/entropy"] <= 1


@FORMS
def test_images(tmp_path: Path, one_pass: str) -> None:
    chosen = ("attention.tokens=4", "attention.subset=grid", f"attention.one_pass={one_pass}")
    run = run_train(tmp_path, "model.patch_size=2", attention=(*COARSE, *chosen))
    assert run.manifest.config["attention"]["one_pass"] == (one_pass == "true")
    check(run.path)


@FORMS
def test_texts(tmp_path: Path, one_pass: str) -> None:
    chosen = ("attention.tokens=8", "attention.subset=random", f"attention.one_pass={one_pass}")
    root = text_root(tmp_path, "agnews")
    run = run_text(tmp_path / "results", root, "task=agnews", attention=(*COARSE, *chosen))
    check(run.path)


GRID = ("attention.tokens=4", "attention.subset=grid", "attention.grid_width=3")


def test_a_grid_that_the_tokens_do_not_fill_is_refused(tmp_path: Path) -> None:
    """Images with other rows and texts, whose padded batches would stop at some later step."""
    words = r"^attention\.subset='grid' cannot lay out 4 tokens in rows of attention\.grid_width=3;"
    with pytest.raises(UserError, match=words):
        run_train(tmp_path, "model.patch_size=4", attention=(*COARSE, *GRID))
    root = text_root(tmp_path, "agnews")
    with pytest.raises(UserError, match=r"^attention.subset=grid is for images, and this model"):
        run_text(tmp_path / "results", root, "task=agnews", attention=(*COARSE, *GRID))


def test_as_many_tokens_as_an_image_has_are_warned_of(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_train(tmp_path, "model.patch_size=4", attention=(*COARSE, "attention.tokens=3"))
    assert "takes all" not in capsys.readouterr().err
    run_train(tmp_path, "model.patch_size=4", attention=(*COARSE, "attention.tokens=4"))
    words = "attention.tokens=4 takes all 4 tokens of an image, which is Sinkhorn itself"
    assert capsys.readouterr().err.count(words) == 1
