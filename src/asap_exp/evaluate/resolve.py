"""Inputs of an evaluation: a compiled map, its teacher, matched baselines and the test data."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from asap_exp.calibration.artifact import Artifact, check_belongs, load_artifact
from asap_exp.calibration.teacher import teacher_identity
from asap_exp.calibration.truncation import truncations
from asap_exp.core.config import EvaluateConfig
from asap_exp.core.console import say, shown, warn
from asap_exp.core.devices import device_name, use_cpu_threads
from asap_exp.core.errors import UserError
from asap_exp.core.records.evaluation import MapPoint
from asap_exp.core.records.row import RowGroup
from asap_exp.core.runs import (
    Run,
    all_runs,
    check_same_tokenizer,
    drop_keys,
    finished_artifacts,
    is_run,
    listed,
    named_run,
    newest_artifact,
    public_config,
    short_hash,
    stage_command,
    stage_finished,
    unfinished_artifacts,
    word_of,
)
from asap_exp.core.team import Team
from asap_exp.data import TaskDataModule
from asap_exp.data.loader import BatchLoader
from asap_exp.data.run_data import check_same_data, run_data
from asap_exp.evaluate.corruption import corrupted
from asap_exp.evaluate.variants import (
    COARSE,
    MATCHED_BASELINES,
    RIVALS,
    Variant,
    further_maps,
    variants,
)
from asap_exp.models import load_net
from asap_exp.models.teachers import (
    CALIBRATIONS,
    SINKHORN,
    TEACHERS,
    check_teacher,
    find_teacher,
    teaches,
)

NOT_MEASURED = ("logger", "accelerator", "task", "devices", "num_nodes")
"""Keys of a configuration that do not change what is measured."""


@dataclass(frozen=True)
class Subject:
    """Everything that an evaluation measures, loaded and checked."""

    run: Run
    folder: Path
    """Folder of the compiled map."""
    artifact: Artifact
    net: nn.Module
    baselines: dict[RowGroup, Run | None]
    """Matched baselines by attention; None if none was trained."""
    more_baselines: list[Run]
    """Matched baselines whose attention has other options than that one: coarse duals."""
    rivals: dict[str, Run]
    """Further models trained like the teacher with another attention, by the key of their row."""
    others: list[Artifact]
    """Further maps of the same layers, with `maps=all`."""
    variants: list[Variant]
    points: dict[str, MapPoint]
    data: TaskDataModule
    test: BatchLoader
    device: torch.device

    @property
    def runs(self) -> list[Run]:
        """The run of every model that is measured, the teacher's first."""
        baselines = [run for run in self.baselines.values() if run is not None]
        return [self.run, *baselines, *self.more_baselines, *self.rivals.values()]

    @property
    def precision(self) -> str:
        return self.run.config.trainer.precision

    def validation(self) -> BatchLoader | None:
        """Return the validation split if the objective is judged on it too, else None.

        Raises UserError if the data is not what the teacher was trained on.
        """
        if not self.run.config.objective.is_perplexity:
            return None
        self.data.setup()
        check_same_data(self.data, self.run)
        return self.data.val_dataloader()

    def out(self, config: EvaluateConfig) -> Path:
        """Return the folder of the record.

        It is the same for evaluations of the same maps on the same samples, kind of device and
        settings. Maps that differ in `refine`, or in what a budget chose, may have the same
        tensors.
        """
        timing = config.latency.on("latency", self.device.type)
        public: dict[str, Any] = public_config(replace(config, latency=timing))
        # Without it the folder is that of evaluations before there was the key.
        unmeasured = NOT_MEASURED if config.behaviour else (*NOT_MEASURED, "behaviour")
        key = {
            "artifacts": [artifact.identity for artifact in (self.artifact, *self.others)],
            "test": self.data.identity["test_sha256"],
            "device": device_name(self.device),
            "config": drop_keys(public, unmeasured),
        }
        return self.run.path / "evaluate" / short_hash(key)


def resolve(config: EvaluateConfig, team: Team) -> Subject:
    """Find, load and check what `config` asks for; print which map and which baselines."""
    check_uncorrupted(config)
    run, folder = find_compiled(config)
    device = team.device
    config.latency.on("latency", device.type)  # refuses what the device cannot do
    use_cpu_threads(team.threads(run.config.trainer.cpu_threads))
    net = load_net(run, device)
    artifact = load_artifact(folder)
    check_belongs(artifact, teacher_identity(run, net), folder)
    matched = {name: matched_baselines(run, name, config) for name in MATCHED_BASELINES}
    baselines = {name: next(iter(found), None) for name, found in matched.items()}
    more = matched[COARSE][1:]
    rivals = [found for name in RIVALS for found in matched_baselines(run, name, config)]
    trained = [found for found in (*baselines.values(), *more, *rivals) if found is not None]
    nets = [load_net(found, device) for found in trained]
    data = run_data(run, config.data, config.batch_size, device)
    test = corrupted(data.test_dataloader(max_rows=config.max_test_rows), config.corruption)
    check_same_tokenizer(data.identity, run)
    rows = variants(net, artifact, truncations(config), nets)
    others = other_maps(run, net, folder, artifact) if config.maps == "all" else []
    further, points = further_maps(net, artifact, others)
    check_enough(config, data)
    rival_rows = [row.key for row in rows if row.group == "rival"]
    return Subject(
        run,
        folder,
        artifact,
        net,
        baselines,
        more,
        dict(zip(rival_rows, rivals, strict=True)),
        others,
        rows + further,
        points if config.maps == "all" else {},
        data,
        test,
        device,
    )


def check_uncorrupted(config: EvaluateConfig) -> None:
    """Refuse to measure behaviour on images that are corrupted already."""
    if config.behaviour and config.corruption.name is not None:
        raise UserError(
            f"behaviour=true predicts corrupted images too, beside those as they are, but "
            f"corruption.name={config.corruption.name} corrupts all of them; set "
            "corruption.name=null, or behaviour=false"
        )


def check_enough(config: EvaluateConfig, data: TaskDataModule) -> None:
    """Refuse sizes that the test split cannot fill, so that the record is true."""
    for key, wanted in (
        ("fidelity_samples", config.fidelity_samples),
        ("latency.batch_size", config.latency.batch_size),
    ):
        if wanted > int(str(data.identity["test_rows"])):
            raise UserError(
                f"{key}={wanted} is more than the {data.identity['test_rows']} test "
                f"{data.sample_name} used; choose fewer, or a larger max_test_rows"
            )


def find_compiled(config: EvaluateConfig) -> tuple[Run, Path]:
    """Return the teacher's run and the map's folder, as chosen or the newest; print which."""
    if config.artifact is not None:
        folder = Path(config.artifact)
        refuse_run(config, config.artifact)
        if not stage_finished(folder):
            raise UserError(
                f"artifact={folder} holds no finished map; give a folder that distill named, "
                "RUN/distill/HASH, or distill again"
            )
        own = folder.resolve().parent.parent
        run = Run(own) if config.teacher is None else named_run(config.paths, config.teacher)
        check_teacher(run, config.task.name, None)
        say(f"Compiled map: {shown(folder)}")
        return run, folder
    if config.teacher is not None:
        candidates = [find_teacher(config.paths, config.task.name, config.teacher, None)]
    else:
        candidates = all_runs(config.paths, config.task.name)
    newest = [(newest_artifact(run), run) for run in candidates]
    found = [(artifact, run) for artifact, run in newest if artifact is not None]
    if not found:
        where = config.teacher or config.paths.runs
        task = [f"task={config.task.name}"] if config.task.name else []
        of_task = f" of task {config.task.name}" if task else ""
        anyone = stage_command("distill", config.paths, *task, *calibration_for(candidates))
        unfinished = [str(folder) for run in candidates for folder in unfinished_artifacts(run)]
        raise UserError(
            f"no compiled map{of_task} in {where}; make one with: "
            + (map_command(config, candidates[0]) if config.teacher else anyone)
            + listed("not finished, or their manifest.json is missing", unfinished)
        )
    (_, folder), run = max(found, key=lambda pair: pair[0])
    debug = run.config.debug
    note = f"; its teacher was shortened by debug={debug}" if debug else ""
    say(f"Compiled map: {shown(folder)} (the newest{note})")
    return run, folder


def refuse_run(config: EvaluateConfig, given: str) -> None:
    """Raise UserError, which lists its maps, if a run was given in the place of a map."""
    path = next((p for p in (Path(given), config.paths.runs / given) if is_run(p)), None)
    if path is None:
        return
    maps = [shown(folder) for _, folder in reversed(finished_artifacts(Run(path)))]
    if not maps:
        raise UserError(
            f"artifact={given} is a run, not a map, and has no map yet; make one with: "
            + map_command(config, Run(path))
        )
    raise UserError(
        f"artifact={given} is a run, not a map; give a map, RUN/distill/HASH, or teacher={given} "
        f"for the newest{listed('Its maps, the newest first', maps)}"
    )


def map_command(config: EvaluateConfig, teacher: Run) -> str:
    """Return the command that compiles the `teacher`."""
    word = word_of("teacher", shown(teacher.path))
    return stage_command("distill", config.paths, word, *calibration_for([teacher]))


def calibration_for(runs: list[Run]) -> list[str]:
    """Return the override of a calibration that fits these runs; none if the usual one does."""
    kinds = [kind for kind in TEACHERS if any(teaches(run.config, kind) for run in runs)]
    return [] if not kinds or SINKHORN in kinds else [f"calibration={CALIBRATIONS[kinds[0]]}"]


def other_maps(run: Run, net: nn.Module, folder: Path, artifact: Artifact) -> list[Artifact]:
    """Return the other finished maps of `run` that replace the same layers, oldest first."""
    others = []
    for _, other in finished_artifacts(run):
        candidate = load_artifact(other)
        if other.name != folder.name and candidate.layers == artifact.layers:
            check_belongs(candidate, teacher_identity(run, net), other)
            others.append(candidate)
    say(f"Other maps of the same layers beside it: {len(others)}")
    return others


def matched_baselines(run: Run, attention: str, config: EvaluateConfig) -> list[Run]:
    """Find the matched baselines: same data, model, recipe and seed, trained with `attention`.

    One, except of coarse duals and rivals: one for each choice of options, so that these can be
    compared. The teacher is none of its own.
    """
    mine, found = run.manifest, list[Run]()
    if attention == run.config.attention["name"] and attention not in RIVALS:
        return found
    for other in all_runs(config.paths, run.config.task.name):
        if (
            other.path == run.path
            or other.config.attention["name"] != attention
            or other.config.seed != run.config.seed
            or (its := other.finished_manifest()) is None
            or its.recipe_hash != mine.recipe_hash
        ):
            continue
        if differing := differing_data(mine.data, its.data):
            warn(
                f"{other.path} is left out: it has the recipe and seed of {run.path}, but was "
                f"trained on other data ({', '.join(differing)}); train it again on this data"
            )
            continue
        say(f"Matched baseline of {attention} attention: {shown(other.path)}")
        found.append(other)
        if attention != COARSE and attention not in RIVALS:
            break
    return found


def differing_data(mine: dict[str, Any], its: dict[str, Any]) -> list[str]:
    """Name the hashes of samples in which two trainings differ; older ones lack some hashes."""
    keys = ("train_sha256", "val_rows_sha256")
    return [key for key in keys if key in mine and key in its and mine[key] != its[key]]
