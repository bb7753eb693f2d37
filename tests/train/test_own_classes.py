"""Callbacks and a LightningModule named by paths, and whose paths are followed."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor, nn

from asap_exp.core import targets
from asap_exp.core.composing import load_saved
from asap_exp.core.config import TrainConfig
from asap_exp.core.errors import UserError
from asap_exp.core.runs import Run
from asap_exp.core.tensors import load_tensors
from asap_exp.engine.module import Classifier
from asap_exp.models import load_net
from asap_exp.train.trainer import train
from tests.conftest import Pipeline
from tests.documents import ROOT, blocks
from tests.stages import run_distill, run_train, train_config

HERE = __name__


class Counter(L.Callback):
    """Callback that counts the steps of the last run."""

    latest: "Counter"

    def __init__(self, start: int, notes: dict[str, Any] | None = None) -> None:
        self.count, self.notes = start, notes
        Counter.latest = self

    def on_train_batch_end(self, *_: Any) -> None:
        self.count += 1


class Halved(Classifier):
    """Classifier that trains on half the loss."""

    def __init__(self, *arguments: Any, factor: float, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.factor = factor

    def loss_of(self, inputs: Any, targets: Tensor) -> Tensor:
        return self.factor * super().loss_of(inputs, targets)


class Plain(L.LightningModule):
    """A LightningModule of its own: only what the documentation asks for."""

    def __init__(
        self, net: nn.Module, recipe: Any, *, num_classes: int, seed: int, objective: Any
    ) -> None:
        super().__init__()
        self.net, self.recipe, self.objective = net, recipe, objective

    def training_step(self, batch: Any, batch_index: int) -> Tensor:
        inputs, targets = batch
        return nn.functional.cross_entropy(self.net(inputs), targets)

    def validation_step(self, batch: Any, batch_index: int) -> None:
        inputs, targets = batch
        right = (self.net(inputs).argmax(-1) == targets).float().mean()
        self.log(self.objective.validation, right, batch_size=len(targets))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.net.parameters(), lr=self.recipe.lr)


class Forgetful(Plain):
    def __init__(self, net: nn.Module, *arguments: Any, **options: Any) -> None:
        super().__init__(nn.Identity(), *arguments, **options)


@pytest.mark.slow
def test_own_callback_is_called(tmp_path: Path) -> None:
    extra = f"callbacks.extra=[{{_target_: {HERE}.Counter, start: 5, notes: {{a: [1, 2]}}}}]"
    run = run_train(tmp_path, extra)
    assert Counter.latest.count == 5 + 12
    assert Counter.latest.notes == {"a": [1, 2]}
    assert run.config.callbacks.extra[0]["start"] == 5
    assert run_train(tmp_path).path != run.path


@pytest.mark.slow
def test_own_subclass_of_the_classifier_trains(tmp_path: Path) -> None:
    module = f"module={{_target_: {HERE}.Halved, factor: 0.5}}"
    whole = run_train(tmp_path, module, "recipe.clip_norm=null")
    assert whole.config.module == {"_target_": f"{HERE}.Halved", "factor": 0.5}
    plain = run_train(tmp_path, "recipe.clip_norm=null")
    assert plain.manifest.teacher_sha256 != whole.manifest.teacher_sha256
    split = run_train(tmp_path / "parts", module, "recipe.clip_norm=null", "trainer.micro_batch=9")
    expected = load_tensors(whole.weights)
    for name, tensor in load_tensors(split.weights).items():
        torch.testing.assert_close(tensor, expected[name], rtol=0, atol=1e-3)


@pytest.mark.slow
def test_own_module_trains_and_its_network_is_the_teacher(tmp_path: Path) -> None:
    run = run_train(tmp_path, f"module={{_target_: {HERE}.Plain}}", "data.augment.mixup=0")
    assert run.finished
    assert run.manifest.best_val_accuracy is not None
    assert not load_net(run).training
    with pytest.raises(UserError, match=r"trainer\.micro_batch=4 needs the Classifier's own"):
        run_train(tmp_path, f"module={{_target_: {HERE}.Plain}}", "trainer.micro_batch=4")


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("module={x: 1}", "must name a class"),
        ("module={_target_: Plain}", "must name a class"),
        ("callbacks.extra=[{_target_: 3}]", "must name a class"),
        ("module={_target_: nowhere.Plain}", "nowhere.Plain cannot be imported (ModuleNotFound"),
        (f"module={{_target_: {HERE}.Missing}}", "Missing cannot be imported"),
        (f"module={{_target_: {HERE}.Counter}}", "Counter is no lightning LightningModule"),
        (f"callbacks.extra=[{{_target_: {HERE}.Plain}}]", "Plain is no lightning Callback"),
        ("callbacks.extra=[{_target_: os.path.join}]", "join is no lightning Callback"),
        (f"callbacks.extra=[{{_target_: {HERE}.Counter}}]", "missing 1 required positional"),
        (f"module={{_target_: {HERE}.Forgetful}}", "must keep the network"),
    ],
)
def test_wrong_path_is_a_sentence_and_leaves_nothing(
    tmp_path: Path, override: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UserError) as error:
        run_train(tmp_path, override)
    assert words in str(error.value)
    assert capsys.readouterr().err == ""  # the command prints the sentence, and nobody else
    assert not list(tmp_path.rglob("*"))


# Whose paths are followed


@pytest.fixture
def strange(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the file that a module would leave if it were imported; nobody names the module."""
    (tmp_path / "strange_classes.py").write_text(
        f"from pathlib import Path\nPath({str(tmp_path / 'imported')!r}).touch()\n"
        "from lightning import Callback\nclass Mine(Callback): pass\n"
        "from asap_exp.engine.module import Classifier\nclass Module(Classifier): pass\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path / "imported"


def altered(run: Run) -> None:
    """Put paths into the configuration that a run has saved."""
    tree = OmegaConf.load(run.path / "config.yaml")
    tree.callbacks.extra = [{"_target_": "strange_classes.Mine"}]
    tree.module = {"_target_": "strange_classes.Module"}
    OmegaConf.save(tree, run.path / "config.yaml")


def test_paths_of_a_saved_configuration_are_not_followed(
    tmp_path: Path, pipeline: Pipeline, strange: Path
) -> None:
    run = pipeline.teacher
    altered(run)
    saved = load_saved(run.path / "config.yaml", TrainConfig)
    assert saved.module == {"_target_": "strange_classes.Module"}
    saved.paths.results = str(tmp_path / "other")
    with pytest.raises(UserError, match=r"strange_classes.* stands in a saved configuration"):
        train(saved)
    load_net(Run(run.path))  # as distill and evaluate do
    assert not strange.exists()


def test_later_stages_and_resuming_do_not_follow_them(
    tmp_path: Path, pipeline: Pipeline, strange: Path
) -> None:
    run = pipeline.teacher
    altered(run)
    with pytest.raises(UserError, match=r"config\.yaml was changed after the run"):
        run_distill(tmp_path / "results", f"teacher={run.path}")
    with pytest.raises(UserError, match="holds a run of another configuration"):
        run_train(tmp_path / "results")
    assert not strange.exists()


@pytest.mark.slow
def test_run_with_own_classes_is_compiled_without_them(tmp_path: Path, strange: Path) -> None:
    """The later stages run in another process, which could import the module but does not."""
    words = (
        "module={_target_: strange_classes.Module}",
        "callbacks.extra=[{_target_: strange_classes.Mine}]",
    )
    run = run_train(tmp_path / "results", *words)
    assert strange.exists()
    strange.unlink()
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from tests.stages import run_distill, run_evaluate\n"
        f"results = Path({str(tmp_path / 'results')!r})\n"
        f"run_distill(results, 'teacher={run.path}')\n"
        f"run_evaluate(results, 'teacher={run.path}')\n"
        "assert 'strange_classes' not in sys.modules\n"
    )
    path = f"{tmp_path}:{Path.cwd()}:{Path(targets.__file__).parents[2]}"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={"PYTHONPATH": path}
    )
    assert done.returncode == 0, done.stderr
    assert not strange.exists()
    assert run_train(tmp_path / "results", *words).path == run.path
    recorded = {(each.kind, each.name, each.module) for each in run.manifest.plugins or []}
    names = {("module", "Module"), ("callback", "Mine")}
    assert recorded == {(kind, name, "strange_classes") for kind, name in names}


@pytest.mark.slow
def test_path_in_a_yaml_file_of_ones_own_is_followed(tmp_path: Path) -> None:
    folder = tmp_path / "conf" / "experiment"
    folder.mkdir(parents=True)
    (folder / "mine.yaml").write_text(
        "# @package _global_\n"
        "callbacks: {extra: [{_target_: my_classes.Mine}]}\nlogger: {wandb: false}\n"
    )
    (tmp_path / "my_classes.py").write_text(
        "import lightning as L\n\nclass Mine(L.Callback):\n"
        "    def on_train_start(self, *_):\n        print('mine is called')\n"
    )
    words = ["task=digits", "experiment=mine", "debug=fast", "--config-dir", str(tmp_path / "conf")]
    done = subprocess.run(
        [sys.executable, "-m", "asap_exp.train", *words],
        cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "mine is called" in done.stdout


def test_only_paths_that_were_given_are_allowed() -> None:
    nested = {"_target_": "a.B", "x": [{"_target_": "c.D"}]}
    assert targets.paths({"module": nested, "other": 1}) == {"a.B", "c.D"}
    train_config(Path("unused"), f"callbacks.extra=[{{_target_: {HERE}.Counter, start: 1}}]")
    value = {"_target_": f"{HERE}.Counter", "start": {"_target_": "os.getpid"}}
    with pytest.raises(UserError, match=r"os\.getpid stands in a saved configuration"):
        targets.instance("callbacks.extra[0]", value, L.Callback)


@pytest.mark.slow
def test_module_of_the_documentation_trains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (code,) = blocks(ROOT / "docs" / "training.md", "python")
    (tmp_path / "focal_module.py").write_text(code)
    monkeypatch.chdir(tmp_path)  # where modules are looked for, too
    run = run_train(tmp_path, "module={_target_: focal_module.Focal, gamma: 2.0}")
    assert run.finished
