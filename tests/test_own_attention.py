"""A run with an attention and a step of the user's own, through all stages."""

import re
from dataclasses import asdict
from pathlib import Path

import pytest

import asap_exp
from asap_exp.benchmark import benchmark
from asap_exp.calibration.artifact import load_artifact
from asap_exp.core.composing import compose
from asap_exp.core.config import ReportConfig
from asap_exp.core.errors import UserError
from asap_exp.core.files import read_json
from asap_exp.core.runs import Run
from tests.own_modules import HALVED, TEMPERED, own_modules
from tests.small_model import Classifier, batches
from tests.stages import run_benchmark, run_distill, run_evaluate, run_report, run_train

pytestmark = pytest.mark.slow

MODULE = "attention._module=own_tempered"
STEPS = ("calibration._module=own_steps", "calibration.steps=[ridge,scaled]")


@pytest.fixture
def forget(tmp_path):
    with own_modules(tmp_path, {"own_tempered": TEMPERED, "own_steps": HALVED}) as forget:
        yield forget


@pytest.fixture
def trained(forget, tmp_path) -> Run:
    run = run_train(
        tmp_path / "results",
        attention=("attention=tempered", MODULE, "attention.sharpness=3"),
    )
    forget()
    return run


def test_stages_after_the_training_need_the_module_and_say_so(trained, forget, tmp_path, capsys):
    results = tmp_path / "results"
    assert trained.path.parent.name == "vit-tempered"
    remedy = f"add {MODULE} to the command, if you trust that module"
    named = f"teacher={trained.path}"
    for stage in (run_distill, run_evaluate):
        with pytest.raises(UserError) as error:
            stage(results, named)
        words = "was trained with attention=tempered, which is not known here"
        assert str(error.value) == f"{trained.path} {words}: {remedy}"
        assert error.value.hint == MODULE
    with pytest.raises(UserError, match="no finished Sinkhorn teacher"):
        run_distill(results)
    assert remedy in capsys.readouterr().err

    folder = run_distill(results, MODULE, *STEPS)
    forget()
    record = run_evaluate(results, MODULE)
    forget()
    assert trained.manifest.plugins is not None
    (plugin,) = trained.manifest.plugins
    assert (plugin.name, plugin.module, plugin.distribution) == ("tempered", "own_tempered", None)
    kinds = [p["kind"] for p in read_json(folder / "manifest.json")["plugins"]]
    assert kinds == ["attention", "calibration"]
    identity = load_artifact(folder).identity
    assert identity["calibration"]["scaled"] == {"factor": 0.5, "word": "half"}
    layers = identity["teacher_layers"].values()
    assert {layer["attention"]["sharpness"] for layer in layers} == {3.0}
    assert read_json(record)["run"] == trained.name
    assert run_report(results, MODULE) is not None


def test_configuration_and_name_of_the_run_hold_no_module(trained):
    assert "own_tempered" not in (trained.path / "config.yaml").read_text()
    assert re.fullmatch(r"digits/vit-tempered/[0-9a-f]{8}-s0", str(Path(*trained.path.parts[-3:])))


def test_run_whose_module_has_changed_since_is_pointed_out(trained, forget, tmp_path, capsys):
    (tmp_path / "own_tempered.py").write_text(f"{TEMPERED}\n# changed\n")
    run_distill(tmp_path / "results", MODULE)
    assert "was trained with attention=tempered of own_tempered" in capsys.readouterr().err


def test_attention_without_a_dual_is_trained_and_not_distilled(forget, tmp_path):
    (tmp_path / "own_tempered.py").write_text(
        "from asap_exp.attention import SoftmaxAttention, register\n"
        "@register('tempered')\n"
        "class Tempered(SoftmaxAttention):\n    pass\n"
    )
    run = run_train(tmp_path / "results", attention=("attention=tempered", MODULE))
    with pytest.raises(UserError, match="only a Sinkhorn teacher has a dual to distill"):
        run_distill(tmp_path / "results", f"teacher={run.path}")


def test_benchmark_times_an_own_attention(forget, tmp_path):
    methods = "cpu.methods=[sinkhorn_2,tempered]"
    with pytest.raises(UserError, match="the method tempered is not known"):
        run_benchmark(tmp_path, methods)
    record = read_json(run_benchmark(tmp_path, methods, MODULE))
    cells = [cell for row in record["rows"] for cell in row["cells"]]
    assert {cell["status"] for cell in cells if cell["method"] == "tempered"} <= {"timed", "scaled"}


def test_benchmark_continues_only_with_the_module_that_it_began_with(
    forget, tmp_path, capsys, monkeypatch
):
    def second_fails(config, suite, shape, *rest):
        if shape.n == 8:
            raise MemoryError("too long")
        return row(config, suite, shape, *rest)

    clean = {"commit": "a" * 40, "dirty": False}
    monkeypatch.setattr("asap_exp.core.manifest.code_version", lambda: clean)
    row = benchmark.row
    monkeypatch.setattr(benchmark, "row", second_fails)
    for changed, said in ((False, "n = 4: measured before"), (True, "n = 4: measured again")):
        with pytest.raises(MemoryError):
            run_benchmark(tmp_path, "cpu.methods=[tempered]", MODULE)
        forget()
        if changed:
            (tmp_path / "own_tempered.py").write_text(f"{TEMPERED}\n# changed\n")
        capsys.readouterr()
        with pytest.raises(MemoryError):
            run_benchmark(tmp_path, "cpu.methods=[tempered]", MODULE)
        forget()
        assert said in (out := capsys.readouterr().out)
    assert "since settings.plugins.tempered.sha256 was" in out


def test_library_compiles_an_own_attention_with_an_own_step(forget, tmp_path):
    import own_steps
    import own_tempered

    model = Classifier()
    for layer in (model.first, model.second):
        layer.attend = own_tempered.TemperedAttention(sharpness=1.0)
    settings = own_steps.Settings(factor=0.25, word="quarter")
    plain, scaled = (
        asap_exp.compile(model, batches(1, 2, 3), steps=steps, slices=2, **more)
        for steps, more in ((["ridge"], {}), (["ridge", "scaled"], {"scaled": settings}))
    )
    assert scaled.first.attend.weight.equal(0.25 * plain.first.attend.weight)
    asap_exp.save_compiled(scaled, tmp_path / "map")
    identity = read_json(tmp_path / "map/asap.json")
    assert identity["calibration"]["scaled"] == asdict(settings)
    assert identity["teacher_layers"]["first"]["attention"]["name"] == "tempered"
    assert asap_exp.load_compiled(model, tmp_path / "map")


def test_report_takes_a_module_too(forget):
    assert compose("report", [MODULE], ReportConfig)
