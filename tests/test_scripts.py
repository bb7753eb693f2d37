"""The scripts: what reproduces a task, and what fetches data, without any training or network."""

import importlib.util
import re
import subprocess
import sys
import tomllib
from copy import deepcopy
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import datasets
import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from asap_exp.core.config import EvaluateConfig, TrainConfig
from asap_exp.core.runs import drop_keys, recipe_hash
from asap_exp.core.score import Score
from asap_exp.data.catalog import DATASETS, TEXT_DATASETS
from asap_exp.data.raw_texts import load_texts
from asap_exp.distill.config import DistillConfig
from tests.composed import composed
from tests.data.sentences import make_texts

ROOT = Path(__file__).resolve().parents[1]


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


sys.path.append(str(ROOT / "scripts"))
from rows import (  # noqa: E402
    Row,
    attention_overrides,
    estimate,
    load_row,
    makes,
    not_recorded,
    published,
    row_names,
    row_of,
    swept,
    trained_beside,
)

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


@pytest.mark.parametrize("version", ["3.9.18", "3.10.13", "3.11.0", "3.12.1", "3.13.9", "3.14.0"])
def test_setup_takes_the_pythons_that_the_package_takes(version: str, tmp_path: Path) -> None:
    """A stand-in says that it is `version`, and as pip or uv it installs nothing."""
    numbers = tuple(map(int, version.split(".")))
    python = tmp_path / "python"
    python.write_text(
        f"""#!/bin/sh
case "$1" in
    --version) echo "Python {version}" ;;
    -c) exec {sys.executable} -c "import sys; sys.version_info = {numbers}
$2" ;;
esac
"""
    )
    (tmp_path / "uv").write_text("#!/bin/sh\n")
    for stand_in in (python, tmp_path / "uv"):
        stand_in.chmod(0o755)
    done = subprocess.run(
        ["sh", "scripts/setup.sh"],
        cwd=ROOT,
        env={"PYTHON": str(python), "VENV": str(tmp_path / "venv"), "PATH": f"{tmp_path}:/bin"},
        capture_output=True,
        text=True,
    )
    if version in SpecifierSet(PROJECT["requires-python"]):
        assert (done.returncode, done.stderr) == (0, "")
    else:
        assert done.returncode == 2
        assert f"is Python {version}; Python 3.11, 3.12 or 3.13 is needed. Choose" in done.stderr


@pytest.mark.parametrize(
    ("index", "installed", "commands"),
    [
        ("", "2.15.0", ["-c constraints.txt -e"]),
        ("", "2.15.0+cpu", ["-c VENV/kept.txt -e"]),
        (
            "https://a.test/cpu",
            "2.15.0+cpu",
            [
                "--no-deps --index-url https://a.test/cpu -c constraints.txt torch torchvision",
                "-c VENV/kept.txt -e",
            ],
        ),
    ],
)
def test_setup_keeps_a_build_of_torch_that_is_not_from_pypi(
    index: str, installed: str, commands: list[str], tmp_path: Path
) -> None:
    """A stand-in for uv notes its commands; one for Python says that `installed` is there."""
    venv = tmp_path / "venv"
    (venv / "bin").mkdir(parents=True)
    stand_ins = {
        tmp_path / "python": "exit 0",
        tmp_path / "uv": f'echo "$*" >>{tmp_path}/commands',
        venv / "bin" / "python": f"echo {installed}",
    }
    for path, text in stand_ins.items():
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)
    subprocess.run(
        ["sh", "scripts/setup.sh"],
        cwd=ROOT,
        env={
            "PYTHON": str(tmp_path / "python"),
            "VENV": str(venv),
            "TORCH_INDEX": index,
            "PATH": f"{tmp_path}:/bin",
        },
        check=True,
        capture_output=True,
    )
    start = f"pip install --python {venv}/bin/python "
    made, *lines = (tmp_path / "commands").read_text().splitlines()
    assert made.startswith("venv ")
    assert "--seed" in made.split(), "the pages say `pip install` of extras"
    found = [line.removeprefix(start) for line in lines]
    wanted = [words.replace("VENV", str(venv)) for words in commands]
    assert [line[: len(start)] for line, start in zip(found, wanted, strict=True)] == wanted
    if "+" in installed:
        kept = (venv / "kept.txt").read_text()
        assert "torchmetrics==" in kept
        assert "\ntorch" not in kept.replace("\ntorchmetrics", "")


def test_python_is_bounded_alike_everywhere() -> None:
    assert SpecifierSet(PROJECT["requires-python"]) == SpecifierSet(">=3.11,<3.14")
    assert "Python 3.11, 3.12 or 3.13 and `make`" in (ROOT / "README.md").read_text()


@pytest.mark.parametrize(
    ("name", "refused", "taken"),
    [
        ("lightning", ["2.6.1", "2.6.2", "2.6.3", "2.6.5"], "2.6.6"),
        ("wandb", ["0.23.1"], "0.24.0"),
        ("pydantic", ["1.10.0"], "2.10.0"),
    ],
)
def test_unsafe_versions_are_not_installed(name: str, refused: list[str], taken: str) -> None:
    required = {r.name: r.specifier for r in map(Requirement, PROJECT["dependencies"])}
    assert taken in required[name]
    assert not [version for version in refused if version in required[name]]
    lines = map(Requirement, (ROOT / "constraints.txt").read_text().splitlines())
    (pinned,) = (line.specifier for line in lines if line.name == name)
    (version,) = (each.version for each in pinned)
    assert version in required[name]


class Done:
    """What `main` of reproduce.py would have done, its stages left out."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
        self.trained: list[TrainConfig] = []
        self.distilled: list[DistillConfig] = []
        self.evaluated: list[EvaluateConfig] = []
        self.checked: list[TrainConfig] = []
        module = script("reproduce")
        monkeypatch.setattr(module, "compose", composed)
        monkeypatch.setattr(module, "train", self.train)
        monkeypatch.setattr(module, "check", self.check)
        monkeypatch.setattr(module, "compile_teacher", self.distill)
        monkeypatch.setattr(module, "evaluate", self.evaluated.append)
        monkeypatch.setattr(sys, "argv", ["reproduce.py", *arguments])
        module.main()

    def train(self, config: TrainConfig) -> SimpleNamespace:
        self.trained.append(config)
        return SimpleNamespace(path=Path(f"/run{len(self.trained)}"))

    def check(self, config: TrainConfig) -> Score:
        self.checked.append(config)
        return Score(name="estimated time", value=90.0, lower_is_better=True)

    def distill(self, config: DistillConfig) -> Path:
        self.distilled.append(config)
        return Path(f"/map{len(self.distilled)}")


@pytest.mark.slow
def test_softmax_and_sinkhorn_start_from_encoders_trained_alike(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    done = Done(
        monkeypatch,
        *("imdb", "model.depth=2", "--pretrain", "recipe.epochs=20", "--seeds", "3"),
        *("--results", "elsewhere", "--train", "softmax", "sinkhorn"),
    )
    trained = done.trained
    assert [c.task.name for c in trained] == ["imdb_mlm", "imdb"] * 2
    assert [c.attention["name"] for c in trained] == ["softmax"] * 2 + ["sinkhorn"] * 2
    assert [c.init_from for c in trained] == [None, "/run1", None, "/run3"]
    assert {c.seed for c in trained} == {3}
    assert [c.recipe.epochs for c in trained[::2]] == [20, 20]
    assert [c.model.depth for c in trained[1::2]] == [2, 2]
    assert [c.calibration.name for c in done.distilled] == [
        *["coarse"] * 2,
        "ridge",
        *["end_to_end"] * 3,
    ]
    assert [c.calibration.seed for c in done.distilled[3:]] == [1, 2, 0]
    assert {c.teacher for c in done.distilled} == {"/run4"}
    (evaluation,) = done.evaluated
    assert (evaluation.artifact, evaluation.maps) == ("/map6", "all")
    configs: list[Any] = [*trained, *done.distilled, evaluation]
    assert {c.paths.results for c in configs} == {"elsewhere"}


@pytest.mark.slow
def test_one_attention_alone_is_trained_and_softmax_has_no_map(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    softmax = Done(monkeypatch, "cifar_plain", "--train", "softmax")
    assert {c.attention["name"] for c in softmax.trained} == {"softmax"}
    assert not softmax.distilled
    assert not softmax.evaluated
    sinkhorn = Done(monkeypatch, "cifar_qknorm", "--train", "sinkhorn", "--seeds", "0")
    assert [c.attention["name"] for c in sinkhorn.trained] == ["sinkhorn"]
    assert [c.calibration.name for c in sinkhorn.distilled] == ["coarse", "coarse", "ridge"]
    assert [c.maps for c in sinkhorn.evaluated] == ["all"]
    assert [c.artifact for c in sinkhorn.evaluated] == ["/map3"], "the table's is the fitted one"


@pytest.mark.slow
def test_coarse_models_start_from_encoders_of_their_own_attention(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    done = Done(monkeypatch, "agnews_coarse", "--seeds", "2", "recipe.epochs=3")
    assert [c.task.name for c in done.trained] == ["agnews_mlm", "agnews"] * 4
    for first, last in zip(done.trained[::2], done.trained[1::2], strict=True):
        assert (first.seed, last.seed) == (0, 2)
        assert last.recipe.epochs == 3
        assert drop_keys(first.attention, ("num_iters",)) == drop_keys(
            last.attention, ("num_iters",)
        )
    assert [c.init_from for c in done.trained[1::2]] == ["/run1", "/run3", "/run5", "/run7"]
    coarse = [c.attention for c in done.trained if c.attention["name"] == "coarse"]
    assert [a["one_pass"] for a in coarse] == [False, False, True, True]
    assert {(a["tokens"], a["eps"], a["subset"]) for a in coarse} == {(32, 0.5, "sequence")}


@pytest.mark.parametrize(
    "arguments",
    [
        ("recipe.epochs=9", "--seeds", "1", "2", "--train", "softmax"),
        ("--seeds", "1", "2", "recipe.epochs=9", "--train", "softmax"),
        ("--seeds", "1", "2", "--train", "softmax", "recipe.epochs=9"),
        ("--seeds", "1", "2", "1", "--train", "softmax", "softmax", "recipe.epochs=9"),
    ],
)
def test_words_may_follow_any_option_and_count_once(
    arguments: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    done = Done(monkeypatch, "digits_qknorm", *arguments)
    assert [(c.seed, c.attention["name"]) for c in done.trained] == [
        (1, "softmax"),
        (2, "softmax"),
    ]
    assert {c.recipe.epochs for c in done.trained} == {9}


def test_a_baseline_with_options_is_no_override(monkeypatch: pytest.MonkeyPatch) -> None:
    given = ("coarse attention.tokens=3 attention.eps=0.5", "recipe.epochs=9")
    (config,) = Done(monkeypatch, "digits_qknorm", "--seeds", "0", "--train", *given).trained
    assert (config.attention["tokens"], config.recipe.epochs) == (3, 9)


def test_a_seed_that_is_none_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    with pytest.raises(SystemExit):
        Done(monkeypatch, "digits_qknorm", "--seeds", "one")
    assert "--seeds one: give whole numbers that are not negative" in capsys.readouterr().err


@pytest.mark.slow
def test_a_task_runs_all_its_rows_and_says_first_how_long_they_take(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    done = Done(monkeypatch, "recipe.batch_size=16", "--task", "digits", "--seeds", "3")
    assert {c.seed for c in done.trained} == {3}
    assert {c.recipe.batch_size for c in done.trained} == {16}
    assert [c.model.qk_norm for c in done.trained] == [False, False, False, True, True]
    printed = capsys.readouterr().out
    times = re.findall(r"== (digits_\w+): about \d+\.\d h on CPU", printed)
    assert times == ["digits_plain", "digits_plain_pareto", "digits_qknorm"]
    assert "asap_exp.distill teacher=RUN calibration=ridge" in printed


@pytest.mark.slow
@pytest.mark.parametrize(
    ("row", "words"),
    [
        ("imdb", "(1 of 3 seeds); pre-training not counted; not counted, since no record has them"),
        ("agnews", "(3 seeds); pre-training not counted; not counted, since no record has them"),
        ("cifar_plain_ridge", "(1 seed)\n"),
        ("cifar_rivals", "no published record says how long it takes: its rivals are not trained"),
    ],
)
def test_what_the_time_leaves_out_is_said(
    row: str, words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    Done(monkeypatch, row, "--dry-run")
    assert words in capsys.readouterr().out


@pytest.mark.slow
def test_a_dry_run_runs_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    done = Done(monkeypatch, "cifar_1024", "--dry-run")
    assert not done.trained
    lines = capsys.readouterr().out.splitlines()
    trainings = [line.split("asap_exp.train ")[1] for line in lines if "asap_exp.train" in line]
    assert trainings == [
        "seed=0 experiment=cifar_256",
        "seed=0 experiment=cifar_1024 init_from=RUN",
    ]
    assert any("calibration.refine=0" in line for line in lines)


@pytest.mark.slow
def test_check_looks_at_every_training_and_runs_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    given = ("digits_qknorm", "recipe.epochs=9", "check=true", "--seeds", "1", "2")
    done = Done(monkeypatch, *given)
    assert [(c.seed, c.attention["name"], c.recipe.epochs) for c in done.checked] == [
        (seed, attention, 9) for seed in (1, 2) for attention in ("softmax", "sinkhorn")
    ]
    assert [*done.trained, *done.distilled, *done.evaluated] == []
    printed = capsys.readouterr().out
    assert "python -m asap_exp.train seed=2 attention=softmax task=digits" in printed
    assert "Checked 4 trainings: about 6 min 00 s in all" in printed
    row = load_row("digits_qknorm")
    later = 2 * len([*row.calibrations, *row.evaluations])
    assert f"Not checked: {later} commands of distill and evaluate, which need the" in printed


def test_check_false_trains(monkeypatch: pytest.MonkeyPatch) -> None:
    given = ("digits_qknorm", "check=false", "--seeds", "1", "--train", "softmax")
    done = Done(monkeypatch, *given)
    assert (len(done.trained), done.checked) == (1, [])


@pytest.mark.slow
def test_check_of_what_is_not_pre_trained_yet_takes_random_weights(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, tmp_path: Path
) -> None:
    given = ("imdb", "check=true", "--seeds", "1", "--train", "softmax", "--results", str(tmp_path))
    done = Done(monkeypatch, *given)
    assert [(c.task.name, c.init_from) for c in done.checked] == [
        ("imdb_mlm", None),
        ("imdb", None),
    ]
    printed = capsys.readouterr().out
    assert "starts from the weights of this one; it is checked with random ones" in printed
    assert "Checked 2 trainings" in printed
    assert "Not checked" not in printed, "a baseline alone has no map"


@pytest.mark.slow
def test_check_of_a_row_is_that_of_its_trainings(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, tmp_path: Path
) -> None:
    given = ["digits_qknorm", "check=true", "--seeds", "1", "--results", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["reproduce.py", *given])
    script("reproduce").main()
    printed = capsys.readouterr().out
    assert len(re.findall(r"Checked, nothing was written. Would run: \d+ epochs", printed)) == 2
    assert f"Run directory: {tmp_path}" in printed
    assert not [*tmp_path.iterdir()]


@pytest.mark.slow
@pytest.mark.parametrize("dry", [(), ("--dry-run",)])
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("imdb", "--train", "softmax", "lotfromer"), "Did you mean lotformer?"),
        (("imdb", "recipe.epoch=1"), "Did you mean epochs?"),
        (("imdb", "--pretrain", "recipe.epochs=1"), "give recipe.warmup_epochs=0"),
        (("digits_plain", "recipe.epochs=1"), "give recipe.warmup_epochs=0"),
        (("digits_plain", "--pretrain", "recipe.epochs=9"), "nothing is pre-trained for digits_pl"),
        (("imdb", "cifar_256"), "cifar_256 is no override of the training"),
    ],
)
def test_what_no_training_can_have_is_refused_before_the_first_one(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
    arguments: tuple[str, ...],
    dry: tuple[str],
    words: str,
) -> None:
    monkeypatch.setattr(Done, "train", pytest.fail)
    with pytest.raises(SystemExit) as stopped:
        Done(monkeypatch, *arguments, *dry)
    assert stopped.value.code == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("seed=3",), "seed=3 is not allowed: a row has seeds of its own; give --seeds 3\n"),
        (("seed=3,4", "--dry-run"), "give --seeds 3 4\n"),
        (("++seed=3", "check=true"), "give --seeds 3\n"),
        (("paths.results=foo",), "that of the trainings alone; give --results foo\n"),
        (("attention=softmax",), "a row trains several; give --train softmax\n"),
        (("attention.name=softmax",), "a row trains several; give --train softmax\n"),
        (("task=digits",), "imdb is of task imdb; choose a row of the other, as --task digits\n"),
        (("experiment=agnews",), "imdb has its own; choose another row, or give single keys"),
        (("init_from=RUN",), "imdb starts from a run that it pre-trains; leave it out\n"),
        (("--train", "coarse seed=3"), '--train "coarse seed=3" is not allowed: a row has'),
        (("--pretrain", "paths.results=foo"), "give --results foo\n"),
        (("--pretrain", "experiment=agnews_mlm"), "--pretrain experiment=agnews_mlm is not"),
        (("--results", "README.md"), "--results README.md is not allowed: README.md is a file; g"),
        (("--results", "README.md/x"), "README.md is a file; give a folder\n"),
        (("--results", ""), "--results is empty, as from a shell variable that is not set"),
    ],
)
def test_what_the_script_sets_itself_is_refused_before_anything_is_printed(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
    arguments: tuple[str, ...],
    words: str,
) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(Done, "train", pytest.fail)
    with pytest.raises(SystemExit) as stopped:
        Done(monkeypatch, "imdb", *arguments)
    assert stopped.value.code == 2
    printed = capsys.readouterr()
    assert words in printed.err
    assert printed.out == ""


def test_words_that_agree_with_the_row_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    given = ("digits_plain", "task=digits", "init_from=RUN", "--train", "softmax", "--seeds", "3")
    (config,) = Done(monkeypatch, *given).trained
    assert (config.task.name, config.init_from, config.seed) == ("digits", "RUN", 3)
    row, words = load_row("imdb"), script("reproduce")
    shared = SimpleNamespace(overrides=["experiment=imdb"], train=[], pretrain=["seed=0"])
    words.check_not_set_here([row], shared)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "name a row, one of agnews"),
        ((), "by --task TASK (make reproduce row=ROW, or task=TASK)"),
        (("cifar_plane",), "Did you mean cifar_plain?"),
        (("--task", "yelp"), "choose one of agnews"),
        (("cifar_plain", "--task", "cifar"), "(got the row cifar_plain and --task cifar)"),
    ],
)
def test_what_is_no_row_is_refused(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
    arguments: tuple[str, ...],
    words: str,
) -> None:
    with pytest.raises(SystemExit) as stopped:
        Done(monkeypatch, *arguments)
    assert stopped.value.code == 2
    assert words in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("name", row_names())
def test_every_row_composes(name: str) -> None:
    row = load_row(name)
    fine = composed("train", row.train, TrainConfig)
    assert fine.task.name == row.task
    assert name.startswith(row.task)
    for baseline in row.baselines:
        config = composed("train", [*row.train, *attention_overrides(baseline)], TrainConfig)
        assert recipe_hash(config) == recipe_hash(fine)
        if config.attention["name"] == "coarse":
            for key in ("eps", "num_iters"):
                assert config.attention[key] == fine.attention[key], "those of the teacher"
    for given in row.distill:
        calibrations = swept([*row.distill_all, *given])
        for calibration in (calibrations[0], calibrations[-1]):  # the first and last of each sweep
            assert composed("distill", calibration, DistillConfig)
    for evaluation in row.evaluations:
        assert composed("evaluate", evaluation, EvaluateConfig)
    if row.pretrain:
        first = composed("train", row.pretrain, TrainConfig)
        weightless: dict[str, Any] = {"dropout": 0.0, "drop_path": 0.0}
        if first.task.name != "cifar":
            weightless["pooling"] = "mean"
            for key in ("name", "vocab_size", "lowercase", "max_length"):
                assert getattr(first.data, key) == getattr(fine.data, key)
        assert replace(first.model, **weightless) == replace(fine.model, **weightless)


RECORDS = published(ROOT / "results")


@cache
def record_of(row: str) -> dict[str, Any]:
    """The first record of a row, not to be changed."""
    return next(record for record in RECORDS if row_of(record) == row)


@pytest.mark.slow
def test_every_published_record_is_of_a_row() -> None:
    """By the hash of its training, its calibration and its images; each row says if it has none."""
    rows = {record["run"] + record["sha256"]: row_of(record) for record in RECORDS}
    assert None not in rows.values(), [run for run, row in rows.items() if row is None]
    assert set(rows.values()) == {name for name in row_names() if not load_row(name).unpublished}
    for record in RECORDS:
        row = rows[record["run"] + record["sha256"]]
        assert row is not None
        # An evaluation shows every run of its recipe, those of other rows of its teacher too.
        mine = load_row(row)
        alike = [each for each in map(load_row, row_names()) if same_teacher(each, mine)]
        baselines = {baseline.split()[0] for each in alike for baseline in each.baselines}
        assert set(trained_beside(record)) <= baselines


def same_teacher(one: Row, other: Row) -> bool:
    return (one.task, one.pretrain, one.train) == (other.task, other.pretrain, other.train)


@pytest.mark.slow
def test_baselines_without_a_record_are_told_and_those_with_one_are_not() -> None:
    row, record = load_row("imdb"), deepcopy(record_of("imdb"))
    assert not_recorded(row, [record]) == ["lotformer", "differential"]
    before = estimate(row, [record])
    softmax = record["manifests"]["softmax"]
    rivals = {}
    for name in ("lotformer", "differential"):
        attention = {"name": name}
        rivals[name] = {**softmax, "config": {**softmax["config"], "attention": attention}}
    record["manifests"]["rivals"] = rivals
    assert not_recorded(row, [record]) == []
    after = estimate(row, [record])
    assert before is not None
    assert after is not None
    assert after.hours - before.hours == pytest.approx(2 * softmax["wall_seconds"] / 3600)


@pytest.mark.slow
def test_of_two_coarse_baselines_one_may_lack_a_record() -> None:
    record = deepcopy(record_of("imdb"))
    row = replace(load_row("imdb"), baselines=["softmax", "coarse", "coarse attention.tokens=8"])
    assert not_recorded(row, [record]) == row.baselines[1:]
    record["manifests"]["coarse"] = record["manifests"]["softmax"]
    assert not_recorded(row, [record]) == row.baselines[2:]
    record["manifests"]["more_coarse"] = [record["manifests"]["softmax"]]
    assert not_recorded(row, [record]) == []


@pytest.mark.slow
def test_maps_without_a_fit_take_no_time() -> None:
    row, record = load_row("imdb"), record_of("imdb")
    alone = replace(row, distill=row.distill[1:])
    assert len(row.calibrations) > len(alone.calibrations)
    assert estimate(row, [record]) == estimate(alone, [record])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("key", "value"),
    [
        (("run",), "digits/vit-sinkhorn/00000000-s0"),
        (("seed",), 77),
        (("artifact", "calibration", "slices"), 31),
        (("artifact", "calibration", "adaptive"), True),
        (("artifact", "budget"), {"accuracy_drop": 1}),
        (("corruption",), {"name": "noise", "severity": 5}),
    ],
)
def test_a_record_of_something_else_is_of_no_row(key: tuple[str, ...], value: object) -> None:
    record = deepcopy(record_of("digits_qknorm"))
    place = record
    for part in key[:-1]:
        place = place[part]
    place[key[-1]] = value
    assert row_of(record) is None


@pytest.mark.slow
def test_an_initial_run_of_something_else_is_of_no_row() -> None:
    record = deepcopy(record_of("imdb"))
    record["manifests"]["train"]["config"]["init_from"] = "imdb_mlm/encoder-sinkhorn/0-s0"
    assert row_of(record) is None


@pytest.mark.slow
def test_a_record_is_not_of_another_row_of_its_teacher() -> None:
    record = record_of("cifar_256")
    assert makes(load_row("cifar_256"), record)
    assert not makes(load_row("cifar_256_coarse"), record)


def test_options_of_a_baseline_are_part_of_its_command() -> None:
    row = replace(load_row("digits_qknorm"), baselines=["coarse attention.one_pass=true"])
    first = next(row.commands(row.baselines))
    assert first.startswith("python -m asap_exp.train seed=0 attention=coarse attention.one_pass=")


@pytest.mark.parametrize("name", ["agnews", "wikitext2"])
def test_fetched_texts_are_found_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    module, dataset = script("download_data"), TEXT_DATASETS[name]
    texts, labels = make_texts(30, dataset.num_classes)
    asked = []

    def hub(*where: str, split: str) -> datasets.Dataset:
        asked.append((*where, split))
        columns = {"text": texts} | ({"label": labels} if dataset.num_classes else {})
        return datasets.Dataset.from_dict(columns)

    monkeypatch.setattr(datasets, "load_dataset", hub)
    monkeypatch.setattr(module, "require_reachable", lambda url: None)
    module.download(dataset, tmp_path)
    assert dataset.hub is not None
    assert asked == [(*dataset.hub, split) for split in dataset.rows]
    monkeypatch.undo()
    assert load_texts(dataset, "train", str(tmp_path), str(tmp_path / "cache")).texts == texts


def test_every_data_set_on_the_hub_can_be_fetched() -> None:
    fetched = [d.name for d in DATASETS.values() if d.hub]
    images, texts = ["cifar100", "cifar10", "catsdogs"], ["agnews", "dbpedia", "yelp", "imdb"]
    assert fetched == [*images, *texts, "wikitext2"]


def test_an_undivided_data_set_is_fetched_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, asked = script("download_data"), list[str]()
    monkeypatch.setattr(module, "fetch", lambda hub, split, folder: asked.append(split))
    monkeypatch.setattr(module, "require_reachable", lambda url: None)
    module.download(DATASETS["catsdogs"], tmp_path)
    assert asked == ["train"]
