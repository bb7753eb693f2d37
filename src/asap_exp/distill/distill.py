"""Compile a frozen teacher to a map: capture, fit, check, save."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from asap_exp.attention import Attention, attention_class, attention_layers, swapped
from asap_exp.calibration.artifact import (
    IDENTITY,
    TENSORS,
    Artifact,
    check_belongs,
    layers_fingerprint,
    load_artifact,
    load_fidelity,
    make_artifact,
    save_artifact,
)
from asap_exp.calibration.calibrate import Calibration, calibrate
from asap_exp.calibration.coarse import check_tokens
from asap_exp.calibration.config import CoarseKeys
from asap_exp.calibration.data import CalibrationData
from asap_exp.calibration.drift import column_errors
from asap_exp.calibration.fidelity import Fidelity, plan_fidelity
from asap_exp.calibration.steps import STEPS
from asap_exp.calibration.teacher import teacher_identity
from asap_exp.core import plugins
from asap_exp.core.config import LayerConfig, LoggerConfig, TrainConfig
from asap_exp.core.console import say, shown, warn
from asap_exp.core.devices import use_cpu_threads
from asap_exp.core.errors import UserError
from asap_exp.core.lineage import data_product, makes, map_product, reads, teacher_product, uploads
from asap_exp.core.locks import part_held
from asap_exp.core.manifest import manifest
from asap_exp.core.run_log import run_log
from asap_exp.core.runs import Run, public_config, short_hash, stage_finished
from asap_exp.core.team import Team
from asap_exp.data import TaskDataModule
from asap_exp.data.loader import BatchLoader
from asap_exp.data.run_data import CALIBRATION_SPLIT, check_same_data, run_data
from asap_exp.data.sources import DataNotFound
from asap_exp.distill.config import DistillConfig
from asap_exp.distill.fidelity_table import fidelity_rows, print_fidelity, print_prediction_kl
from asap_exp.distill.tracking import map_run
from asap_exp.models import load_net
from asap_exp.models.teachers import find_teacher, teaches


@dataclass
class Compiled:
    """New attention of the layers, by path, and the calibration of those that were fitted."""

    attends: Mapping[str, Attention]
    calibration: Calibration
    budget: dict[str, Any] | None = None
    """Outcome of a budget, for the artifact's identity."""


Compiler = Callable[[CalibrationData, list[str], TaskDataModule], Compiled]


def compile_layers(data: CalibrationData, paths: list[str], _: TaskDataModule) -> Compiled:
    """Compile every layer by the calibration, to ASAP or to what it fits instead."""
    calibration = calibrate(data, paths)
    return Compiled(calibration.compiled, calibration)


@dataclass(frozen=True)
class Asked:
    """Teacher and layers to compile, as a configuration asks for them, and the result's folder."""

    run: Run
    net: nn.Module
    paths: list[str]
    """Layers to compile."""
    data: TaskDataModule
    team: Team
    config: DistillConfig
    """The configuration with what it leaves to the data."""
    folder: Path

    @property
    def device(self) -> torch.device:
        return self.team.device

    @property
    def precision(self) -> str:
        return self.run.config.trainer.precision


def asked(config: DistillConfig, team: Team, teacher: Path | None = None) -> Asked:
    """Load the teacher, its layers and its data; without a `teacher`, find it and print which."""
    if teacher is None:
        wanted = config.calibration.teacher
        run = find_teacher(config.paths, config.task.name, config.teacher, wanted)
    else:
        run = Run(teacher)
    use_cpu_threads(team.threads(run.config.trainer.cpu_threads))
    net = load_net(run, team.device)
    paths = chosen_layers(config.layer, list(attention_layers(net)))
    coarse, tokens = config.fitted.coarse, tokens_of(run)
    check_tokens(coarse, tokens)
    for size in config.budget.coarse_tokens:
        check_tokens(replace(coarse, tokens=size), tokens, "budget.coarse_tokens")
    data = run_data(run, config.data, config.fitted.batch_size, team.device)
    config = with_timing(with_holdout(config, run, data), team.device)
    folder = run.path / "distill" / short_hash(artifact_key(config, paths))
    return Asked(run, net, paths, data, team, config, folder)


def with_holdout(config: DistillConfig, run: Run, data: TaskDataModule) -> DistillConfig:
    """Return a configuration with the number of samples to check on, where the data decides it."""
    if config.calibration.holdout is not None:
        return config
    holdout = config.calibration.held_out_of(samples_of(run, data))
    return replace(config, calibration=replace(config.calibration, holdout=holdout))


def with_timing(config: DistillConfig, device: torch.device) -> DistillConfig:
    """Return a configuration with how a budget times, where the device decides it."""
    if not config.budget.asked:
        return config
    timing = config.budget.latency.on("budget.latency", device.type)
    return replace(config, budget=replace(config.budget, latency=timing))


def samples_of(run: Run, data: TaskDataModule) -> int:
    """Return how many training samples a calibration has, by the manifest of the run if it can.

    The samples of joined texts are blocks, which only the data itself tells. Where that is gone,
    what was compiled shall still be found, most likely of many.
    """
    then, config = run.manifest.data, run.config.data
    held_back = config.train_on == "train+val" and config.val_fraction is not None
    rows = int(then["train_rows"]) - (int(then["val_rows"]) if held_back else 0)
    if getattr(config, "layout", None) != "blocks":
        return rows
    try:
        data.setup()
    except DataNotFound:
        return rows
    return data.calibration_samples


def loaders(subject: Asked) -> tuple[BatchLoader, BatchLoader]:
    """Return loaders of the samples to fit on and to check on, of which each rank has its part."""
    subject.data.setup()
    check_same_data(subject.data, subject.run)
    calibration = subject.config.fitted
    assert calibration.holdout is not None, "it was chosen with the folder"
    fit, held_out = subject.data.calibration_dataloaders(
        samples=calibration.samples,
        holdout=calibration.holdout,
        batch_size=calibration.batch_size,
        seed=calibration.seed,
    )
    ranks = subject.team.ranks
    return fit.shared(ranks), held_out.shared(ranks)


@run_log("distill")
def distill(config: DistillConfig, compiler: Compiler = compile_layers) -> Path:
    """Compile a teacher's layers; return the artifact's folder.

    On several devices each process calls this, and rank 0 alone writes.
    """
    team = Team(config.together)
    with team.working():
        if team.leads:
            return lead(config, team, compiler)
        return follow(config, team, compiler)


def lead(config: DistillConfig, team: Team, compiler: Compiler) -> Path:
    """Compile as rank 0, which prepares the work and writes its results."""
    subject = asked(config, team)
    run, net, paths, data = subject.run, subject.net, subject.paths, subject.data
    config = subject.config
    calibration, name, folder = config.fitted, run.config.attention["name"], subject.folder
    public = public_config(config) | {"layers": paths}
    orders = str(run.path), str(folder)
    with part_held(run.path, folder):
        if is_compiled(folder, run, net, data):
            team.nothing_to_do = orders
            return folder
        fit_samples, held_out = loaders(subject)
        facts = {
            "stage": "distill",
            "seed": calibration.seed,
            "teacher": run.name,
            "config": public,
            **plugins.origins(
                [
                    ("attention", name, attention_class(name)),
                    *(("calibration", step, STEPS[step]) for step in calibration.steps),
                ]
            ),
        }
        with (
            map_run(config, run, public, folder) as tracker,
            manifest(folder / "manifest.json", **facts) as record,
            team.unbroken(),
        ):
            reads(tracker, data_product(run.config.data.name, "train", run.manifest.data))
            reads(tracker, teacher_product(run))
            team.begin(orders)
            samples = CalibrationData(net, fit_samples, held_out, calibration, subject.precision)
            compiled, artifact, fidelity = compile_and_compare(subject, samples, compiler)
            rows = fidelity_rows(compiled.calibration, fidelity)
            save_artifact(folder, artifact, rows)
            record["data"] = artifact.identity["calibration_set"]
            if tracker is not None:
                log_fidelity(tracker, rows)
            log_map(tracker, config.logger, run, folder)
    print_fidelity(rows, calibration.name.title() if calibration.imitates else "ASAP")
    print_prediction_kl(compiled.calibration)
    say(
        f"Fitted on {fit_samples.num_samples} training {data.sample_name} of "
        f"{run.config.data.name}, checked on {held_out.num_samples} others"
    )
    say(f"Compiled {len(paths)} of {len(attention_layers(net))} layers: {shown(folder)}")
    return folder


def follow(config: DistillConfig, team: Team, compiler: Compiler) -> Path:
    """Compile as another rank than 0, which writes nothing, once rank 0 has prepared the work."""
    path, folder = team.orders()
    if team.works:
        subject = asked(config, team, Path(path))
        fit, held_out = loaders(subject)
        calibration = subject.config.fitted
        samples = CalibrationData(subject.net, fit, held_out, calibration, subject.precision)
        compile_and_compare(subject, samples, compiler)
    return Path(folder)


def compile_and_compare(
    subject: Asked, samples: CalibrationData, compiler: Compiler
) -> tuple[Compiled, Artifact, dict[str, Fidelity]]:
    """Compile the layers, and compare their plans with the teacher's on the held-out samples.

    Every rank does this, and finds the same.
    """
    net, paths = subject.net, subject.paths
    compiled = compiler(samples, paths, subject.data)
    artifact = artifact_of(compiled, samples, subject.run)
    teacher = {path: attention_layers(net)[path].attend for path in paths}
    candidates = {"asap": compiled.attends, "teacher": teacher}
    fidelity = plan_fidelity(net, samples.held_out, subject.precision, candidates)
    return compiled, artifact, fidelity


def is_compiled(folder: Path, run: Run, net: nn.Module, data: TaskDataModule) -> bool:
    """Return True, and print it, if a complete map of this teacher exists; redo a damaged one.

    Raises UserError if the data found now is not the teacher's.
    """
    try:
        if not stage_finished(folder):
            return False
        artifact = load_artifact(folder)
        check_belongs(artifact, teacher_identity(run, net), folder)
        load_fidelity(folder, artifact)
    except UserError as error:
        warn(f"{error}\nIt is compiled again")
        return False
    advice = "remove it to compile again"
    try:
        data.setup()
    except DataNotFound as error:
        say(
            f"Already compiled: {shown(folder)} ({advice}). Whether the data is still the same "
            f"could not be checked: {error}"
        )
        return True
    check_same_data(data, run)
    say(f"Already compiled: {shown(folder)} ({advice})")
    return True


def can_compile(config: TrainConfig) -> bool:
    """Return True if the attention of a training has a dual, which a map is fitted to."""
    return teaches(config)


def chosen_layers(layer: LayerConfig, paths: list[str]) -> list[str]:
    """Return the module paths that `layer` names; UserError if the index is out of range."""
    if layer.which in ("frozen", "all"):
        return paths
    index = {"first": 0, "last": len(paths) - 1, "index": layer.index}[layer.which]
    assert index is not None
    if index >= len(paths):
        raise UserError(
            f"layer.index={index} is not there; the teacher has the layers 0 to {len(paths) - 1}"
        )
    return [paths[index]]


def tokens_of(run: Run) -> int | None:
    """Return the number of tokens of every image; None for texts, whose lengths differ."""
    size = getattr(run.config.data, "image_size", None)
    patch = getattr(run.config.model, "patch_size", None)
    return None if size is None or patch is None else (size // patch) ** 2


def artifact_key(config: DistillConfig, paths: list[str]) -> dict[str, Any]:
    """Return a key that is equal for compilations that give the same artifact."""
    key = {"calibration": config.fitted.identity(), "layers": paths}
    if not config.budget.asked:
        return key
    key["budget"] = config.budget.identity()
    # A map without the feature has no such settings, but a budget's coarse duals have. Usual ones
    # are left out, so that the folders of finished compilations keep their names.
    settings = replace(config.fitted.coarse, tokens=None).identity()
    if config.budget.coarse_tokens and settings != CoarseKeys().identity():
        key["coarse"] = settings
    return key


def artifact_of(compiled: Compiled, data: CalibrationData, run: Run) -> Artifact:
    net, samples = data.net, data.fit
    assert isinstance(samples, BatchLoader)
    paths = list(compiled.attends)
    with swapped(net, compiled.attends):
        column_error = column_errors(net, data.held_out, paths, data.precision)
    identity = {
        **teacher_identity(run, net),
        "layers_sha256": layers_fingerprint(net, paths),
        **compiled.calibration.identity(data.config),
        "calibration_set": {
            "task": run.config.task.name,
            "data": run.config.data.name,
            "split": CALIBRATION_SPLIT,
            "rows": samples.num_samples,
            "sha256": samples.fingerprint(),
        },
        "column_error": column_error,
        "budget": compiled.budget,
    }
    return make_artifact(compiled.attends, compiled.calibration.controls, identity)


def log_map(tracker: Any, logger: LoggerConfig, run: Run, folder: Path) -> None:
    """Log the map in `folder`, of the teacher `run`, to the tracker; None is no tracker."""
    product = map_product(run, load_artifact(folder).identity)
    makes(tracker, product, *uploads(logger, folder / TENSORS, folder / IDENTITY))


def log_fidelity(tracker: Any, rows: list[dict[str, Any]]) -> None:
    import wandb

    tracker.log({"fidelity": wandb.Table(list(rows[0]), [list(row.values()) for row in rows])})
