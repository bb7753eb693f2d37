"""The recipes of docs/extending.md: done in a copy of the project, word for word, and run."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from asap_exp.data.catalog import ImageDataset
from tests.data.parquet import write_parquet
from tests.documents import ROOT

PAGE = (ROOT / "docs/extending.md").read_text()
BLOCK = re.compile(r"^```(python|yaml|diff) title=\"(\S+)\"\n(.*?)^```$", re.DOTALL | re.MULTILINE)
MOST_FILES = {"How do I add a feature of the map?": 4}
"""Of code and YAML, per recipe; 3 for the others."""


@dataclass
class Block:
    """A block of a recipe that is a file, or a change of one."""

    language: str
    path: str
    text: str

    def write(self, project: Path) -> None:
        file = project / self.path
        if self.language != "diff":
            assert not file.exists()
            file.write_text(self.text)
            return
        lines = self.text.splitlines(keepends=True)
        old = "".join(line[1:] for line in lines if line[0] != "+")
        new = "".join(line[1:] for line in lines if line[0] != "-")
        text = file.read_text()
        assert text.count(old) == 1, f"{self.path} has changed: {old}"
        file.write_text(text.replace(old, new))


def recipes() -> dict[str, list[Block]]:
    """The blocks of every recipe, by its heading: those of the table at the top of the page."""
    sections = re.split(r"^## (.+)$", PAGE, flags=re.MULTILINE)[1:]
    return {
        heading: [Block(*found) for found in BLOCK.findall(text)]
        for heading, text in zip(sections[::2], sections[1::2], strict=True)
        if heading.startswith("How do I add ")
    }


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project in which every recipe was followed."""
    copy = tmp_path_factory.mktemp("project")
    for folder in ("src", "conf"):
        shutil.copytree(ROOT / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for blocks in recipes().values():
        for block in blocks:
            block.write(copy)
    return copy


SERVER = """
import contextlib, io, json, os, sys, traceback

replies = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)  # what a library prints from C is no reply
for line in sys.stdin:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            exec(json.loads(line), {"__name__": "__main__"})
            failure = ""
        except BaseException:
            failure = err.getvalue() + traceback.format_exc()
    print(json.dumps([out.getvalue(), failure]), file=replies, flush=True)
"""


@pytest.fixture(scope="module")
def run(project: Path) -> Iterator[Callable[[str], str]]:
    """Return a function that gives what code prints in one process, whose package is the copy."""
    environment = {
        **os.environ,
        "PYTHONPATH": f"{project / 'src'}{os.pathsep}{ROOT}",
        "OMP_NUM_THREADS": "1",
        "TRITON_INTERPRET": "1",
        "WANDB_MODE": "offline",
    }
    with subprocess.Popen(
        [sys.executable, "-c", SERVER],
        cwd=project,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None

        def printed(code: str) -> str:
            print(json.dumps(code), file=process.stdin, flush=True)
            out, failure = json.loads(process.stdout.readline())
            assert not failure, failure
            return out

        yield printed


def stage(name: str, *words: str) -> str:
    """Return code that does what `python -m asap_exp.NAME WORDS` does."""
    return f"""
import runpy, sys
sys.argv = {[name, *words]}
runpy.run_module("asap_exp.{name}", run_name="__main__")
"""


@pytest.mark.parametrize("heading", recipes())
def test_recipe_touches_few_files(heading: str) -> None:
    files = {block.path for block in recipes()[heading]}
    assert 1 <= len(files) <= MOST_FILES.get(heading, 3)
    assert f"(#{re.sub(r'[^a-z ]', '', heading.lower()).replace(' ', '-')})" in PAGE


@pytest.mark.slow
def test_task(run: Callable[[str], str]) -> None:
    printed = run(stage("train", "task=cifar10", "model.depth=2", "--cfg", "job"))
    assert "name: cifar10\n" in printed
    assert "depth: 2\n" in printed
    assert "weight_decay: 0.05\n" in printed
    assert "cifar10" in run(stage("distill", "task=cifar10", "--cfg", "job"))


FASHION = ImageDataset(
    name="fashion",
    size=28,
    channels=1,
    num_classes=10,
    rows={},
    mean=(0.5,),
    std=(0.5,),
    image_column="image",
)


@pytest.mark.slow
def test_data_set_and_attention(run: Callable[[str], str], tmp_path: Path) -> None:
    np = pytest.importorskip("numpy")
    pixels = np.random.default_rng(0).integers(0, 256, (400, 28, 28), dtype=np.uint8)
    for split, rows in (("train", 400), ("test", 100)):
        file = tmp_path / "data/fashion" / f"{split}.parquet"
        write_parquet(file, FASHION, pixels[:rows], [row % 10 for row in range(rows)])
    words = (
        *("task=fashion", "attention=sharp", "attention.eps=0.25", "debug=fast"),
        *(f"data.root={tmp_path / 'data'}", f"data.cache={tmp_path / 'cache'}"),
        *("recipe.batch_size=32", "model.depth=1", "trainer.accelerator=cpu"),
        *("trainer.compile=false", f"paths.results={tmp_path / 'results'}"),
    )
    printed = run(stage("train", *words))
    assert "Finished: " in printed
    (config,) = tmp_path.glob("results/runs/fashion/vit-sharp/*/config.yaml")
    assert "eps: 0.25" in config.read_text()


@pytest.mark.slow
def test_calibration_step(run: Callable[[str], str]) -> None:
    printed = run(
        """
import asap_exp
from asap_exp.compiling import artifact_of
from asap_exp.core.composing import compose
from asap_exp.distill.config import DistillConfig
from tests.small_model import Classifier, batches
config = compose("distill", ["calibration.steps=[ridge,rescale]"], DistillConfig)
print([step.name for step in config.calibration.chosen(object)])
options = {"slices": 2, "candidates": 2, "query_features": False, "adaptive": False}
ridge, rescaled = (
    artifact_of(asap_exp.compile(Classifier(), batches(1, 2, 3), steps=steps, **options)).tensors
    for steps in (["ridge"], ["ridge", "rescale"])
)
for path in ("first.weight", "second.weight"):
    factors = rescaled[path] / ridge[path]  # [heads, slices]
    print(all(len({round(float(x), 4) for x in head}) == 1 for head in factors))
    print(sorted({round(float(x), 4) for x in factors[:, 0]}))
""",
    )
    steps, *found = printed.splitlines()
    assert steps == "['ridge', 'rescale']"
    assert found[::2] == ["True", "True"]
    factors = {*ast.literal_eval(found[1]), *ast.literal_eval(found[3])}
    assert factors <= {0.5, 0.8, 0.9, 1.0, 1.1, 1.25}
    assert factors != {1.0}


@pytest.mark.slow
def test_feature_of_the_map(run: Callable[[str], str], tmp_path: Path) -> None:
    printed = run(
        f"""
import torch
import asap_exp
from asap_exp.compiling import artifact_of
from asap_exp.core.composing import compose
from asap_exp.core.records.words import feature_words
from asap_exp.distill.config import DistillConfig
from tests.small_model import Classifier, batches, tokens
config = compose("distill", ["calibration=learned_slices", "calibration.norms=true"], DistillConfig)
print(config.calibration.identity()["norms"], config.calibration.features)
teacher = Classifier()
compiled = asap_exp.compile(teacher, batches(1, 2, 3), steps=["ridge"], slices=2, norms=True)
artifact = artifact_of(compiled)
print(tuple(artifact.tensors["first.norm_weight"].shape), feature_words(artifact.about.calibration))
print(compiled.first.attend.norm_weight.any().item())
asap_exp.save_compiled(compiled, {str(tmp_path)!r})
loaded = asap_exp.load_compiled(teacher, {str(tmp_path)!r})
print(torch.equal(loaded(tokens(9)), compiled(tokens(9))))
""",
    )
    assert printed.splitlines() == [
        "True ['adaptive', 'norms', 'query_features']",
        "(2, 1) query, adaptive and norm",
        "True",
        "True",
    ]


@pytest.mark.slow
def test_column(run: Callable[[str], str]) -> None:
    records = ROOT / "results/records"
    printed = run(
        f"""
import dataclasses, torch
from pathlib import Path
from asap_exp.evaluate.accuracy import compare
from asap_exp.report.groups import grouped
from asap_exp.report.markdown import tables_markdown
from asap_exp.report.records import load_records
logits = torch.tensor([[0.0, 0.0], [0.0, 0.0]])
print(compare(logits, logits, torch.tensor([0, 1]))["confidence"])
record = load_records(Path({str(records)!r}), strict=True)[0]
assert all(row.confidence is None for row in record.rows)
rows = [dataclasses.replace(row, confidence=0.625) for row in record.rows]
print(tables_markdown(grouped([dataclasses.replace(record, rows=rows)])))
""",
    )
    assert printed.startswith("0.5\n")
    table = printed[
        printed.rindex("\n", 0, printed.index("| mean confidence %")) + 1 :
    ].splitlines()
    place = table[0].split("|").index(" mean confidence % ")
    teacher = next(line for line in table if line.startswith("| Sinkhorn teacher"))
    assert teacher.split("|")[place].strip() == "62.5"


@pytest.mark.slow
def test_kernel(run: Callable[[str], str]) -> None:
    printed = run(
        """
import torch
from asap_exp.ops import explain, routes, softmax_attention
q, k, v = torch.randn(3, 1, 2, 40, 24).unbind(0)
call = {"n": 40, "head_dim": 24, "dtype": torch.float32, "capability": (9, 0)}
print([taken.route for taken in explain("softmax_attention", **call).taken])
expected = softmax_attention(q, k, v, backend="reference")
with routes.force("keys per program"), routes.recorded() as taken:
    out = softmax_attention(q, k, v, backend="triton")
    print([each.route for each in taken], float((out - expected).abs().max()) < 1e-5)
print("takes up to 128 keys, got 200" in str(explain("softmax_attention", **call | {"n": 200})))
""",
    )
    assert printed.splitlines() == ["['PyTorch']", "['keys per program'] True", "True"]
