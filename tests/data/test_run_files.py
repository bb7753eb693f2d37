"""Class names and tokenizer in a run directory: checked against the manifest and restored."""

import json
import shutil
from pathlib import Path

import pytest

from asap_exp.core.errors import UserError
from asap_exp.core.files import read_json
from asap_exp.core.runs import Run
from asap_exp.core.sealed import write_sealed
from asap_exp.data.catalog import TEXT_DATASETS
from asap_exp.data.run_files import as_trained, names_hash
from asap_exp.data.tokenizer import save_tokenizer, train_tokenizer
from tests.data.sentences import text_root
from tests.fake_runs import fake_run
from tests.stages import run_distill, run_evaluate, run_text

AGNEWS = TEXT_DATASETS["agnews"]
NAMES = ["a", "b", "c", "d"]
COMMAND = "python -m asap_exp.train task=agnews"


@pytest.mark.parametrize("content", ['["b", "a", "c", "d"]', "[]", "{}", "[1]", "[", '["a", "a"]'])
def test_changed_class_names_of_a_run_are_refused(tmp_path: Path, content: str) -> None:
    run = fake_run(tmp_path, data={"classes_sha256": names_hash(NAMES)}, command=COMMAND)
    file = run.path / "classes.json"
    file.write_text(json.dumps(NAMES))
    assert as_trained(AGNEWS, run.path).trained_names == tuple(NAMES)
    file.write_text(content)
    with pytest.raises(UserError) as error:
        as_trained(AGNEWS, run.path)
    assert str(file) in str(error.value)
    assert str(error.value).endswith(f"it is written again by: {COMMAND}")


def test_missing_class_names_of_a_run_are_refused(tmp_path: Path) -> None:
    run = fake_run(tmp_path, data={"classes_sha256": names_hash(NAMES)}, command=COMMAND)
    with pytest.raises(UserError, match=r"classes\.json, .* is missing.* again by: python"):
        as_trained(AGNEWS, run.path)


def test_manifest_without_a_hash_stays_readable(tmp_path: Path) -> None:
    run = fake_run(tmp_path)
    assert as_trained(AGNEWS, run.path) == AGNEWS
    (run.path / "classes.json").write_text(json.dumps(NAMES))
    assert as_trained(AGNEWS, run.path).trained_names == tuple(NAMES)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Run]:
    root = text_root(tmp_path_factory.mktemp("texts"), "agnews")
    return root, run_text(root / "results", root, "task=agnews")


@pytest.fixture
def results(trained: tuple[Path, Run], tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained[0] / "results", tmp_path / "results"))


def permuted(file: Path) -> None:
    file.write_text(json.dumps(read_json(file)[::-1]))


def emptied(file: Path) -> None:
    file.write_text("[]")


def another(file: Path) -> None:
    save_tokenizer(file, train_tokenizer(["other texts, other tokens"], 330, lowercase=True))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("classes.json", permuted),
        ("classes.json", emptied),
        ("classes.json", Path.unlink),
        ("tokenizer.json", another),
        ("tokenizer.json", emptied),
        ("tokenizer.json", Path.unlink),
    ],
)
def test_same_training_repairs_what_a_stage_refuses(
    trained: tuple[Path, Run], results: Path, capsys: pytest.CaptureFixture[str], name, change
) -> None:
    root, whole = trained
    manifest = whole.manifest.data
    assert manifest["classes_sha256"] == names_hash(["0", "1", "2", "3"])
    file = results / whole.path.relative_to(root / "results") / name
    before = file.read_bytes()
    change(file)
    with pytest.raises(UserError, match=r"it is written again by: ") as error:
        run_distill(results)
    assert str(file) in str(error.value)
    for warned in (True, False):
        run_text(results, root, "task=agnews")
        output = capsys.readouterr()
        assert "Already finished" in output.out
        assert ("was restored" in output.err) is warned
        assert file.read_bytes() == before
    assert Run(file.parent).manifest.teacher_sha256 == whole.manifest.teacher_sha256


@pytest.mark.slow
def test_evaluation_refuses_another_order_of_the_classes(
    trained: tuple[Path, Run], results: Path
) -> None:
    run_distill(results)
    permuted(results / trained[1].path.relative_to(trained[0] / "results") / "classes.json")
    with pytest.raises(UserError, match=r"classes\.json has changed: .* written again by: "):
        run_evaluate(results)


@pytest.mark.slow
def test_repair_that_would_need_other_data_is_refused(
    trained: tuple[Path, Run], results: Path
) -> None:
    file = results / trained[1].path.relative_to(trained[0] / "results") / "manifest.json"
    manifest = read_json(file)
    manifest["data"]["classes_sha256"] = names_hash(NAMES)
    write_sealed(file, manifest)
    with pytest.raises(UserError, match=r"classes\.json .* has other class names"):
        run_text(results, trained[0], "task=agnews")


@pytest.mark.slow
def test_damage_is_told_where_the_data_is_gone(
    trained: tuple[Path, Run], results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = results / trained[1].path.relative_to(trained[0] / "results") / "tokenizer.json"
    file.unlink()
    run_text(results, trained[0], "task=agnews", f"data.root={tmp_path}", "data.cache=null")
    output = capsys.readouterr()
    assert "could not be checked" in output.out
    assert "tokenizer.json in" in output.err
    assert "restored once the data is found" in output.err
    assert not file.exists()
