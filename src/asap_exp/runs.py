"""Run directories: one for each task, model, attention, configuration and seed.

RESULTS/runs/TASK/MODEL-ATTENTION/HASH-sSEED/
    config.yaml manifest.json teacher.safetensors checkpoints/ logs/
    distill/HASH/    asap.safetensors asap.json fidelity.json manifest.json
    evaluate/HASH/   metrics.json manifest.json
"""

import hashlib
import json
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from asap_exp.attention import SinkhornAttention, attention_class
from asap_exp.composing import load_saved
from asap_exp.config import PathsConfig, TrainConfig
from asap_exp.errors import UserError
from asap_exp.files import read_json, write_text

LOCATION_KEYS = (
    "data.root",
    "data.cache",
    "paths",
    "logger",
    "resume",
    "callbacks.progress_bar",
    "callbacks.diagnostic_samples",
)
"""Keys that change where things lie or what is shown, not what is computed."""

HARDWARE_KEYS = (
    "trainer.accelerator",
    "trainer.compile",
    "trainer.cpu_threads",
    "trainer.log_every_n_steps",
    "callbacks.checkpoint_seconds",
)
"""Keys that change how fast it is computed."""


def without(tree: dict[str, Any], keys: tuple[str, ...]) -> dict[str, Any]:
    """A copy of a nested dict without the dotted `keys`."""
    result = dict(tree)
    for key in keys:
        head, _, rest = key.partition(".")
        if head not in result:
            continue
        if rest:
            result[head] = without(result[head], (rest,))
        else:
            del result[head]
    return result


def short_hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:8]


def identity(config: TrainConfig) -> dict[str, Any]:
    """The part of a configuration that decides what is computed; the seed is beside it."""
    return without(plain(config), (*LOCATION_KEYS, *HARDWARE_KEYS, "seed"))


def plain(config: Any) -> dict[str, Any]:
    """As a nested dict; without `init_from` where weights are fresh, which needs no word."""
    tree = asdict(config)
    return tree if tree.get("init_from") else without(tree, ("init_from",))


def recipe_hash(config: TrainConfig, initial: "Run | None" = None) -> str:
    """Equal for runs that differ in their attention alone: same data, model, recipe and budget.

    Where weights come from an `initial` run, that holds for it too.
    """
    recipe = without(identity(config), ("attention", "init_from"))
    if initial is not None:
        same = initial.config.attention["name"] == config.attention["name"]
        recipe["initial"] = {"recipe": initial.manifest["recipe_hash"], "same_attention": same}
    return short_hash(recipe)


def public_config(config: Any) -> dict[str, Any]:
    """A configuration as a record shows it: no folder of one machine."""
    return without(plain(config), ("data.root", "data.cache", "paths", "teacher", "artifact"))


def run_directory(config: TrainConfig) -> Path:
    name = f"{config.model.name}-{config.attention['name']}"
    leaf = f"{short_hash(identity(config))}-s{config.seed}"
    return config.paths.runs / str(config.task.name) / name / leaf


@dataclass(frozen=True)
class Run:
    """One training run's directory and what is saved in it."""

    path: Path

    @cached_property
    def config(self) -> TrainConfig:
        """The saved, resolved configuration; never today's defaults."""
        file = self.path / "config.yaml"
        if not file.is_file():
            raise UserError(f"{self.path} is not a run directory: it has no config.yaml")
        return load_saved(file, TrainConfig)

    @property
    def manifest(self) -> dict[str, Any]:
        return read_json(self.path / "manifest.json")

    @property
    def name(self) -> str:
        """TASK/MODEL-ATTENTION/HASH-sSEED."""
        return "/".join(self.path.resolve().parts[-3:])

    @property
    def group(self) -> str:
        """One word for everything that belongs to this run: the tracking group."""
        return self.name.replace("/", "-")

    @property
    def tracking_id(self) -> str:
        """The same for all attempts at this run; another one for each run moved aside."""
        aside = len(list(self.path.parent.glob(f"{self.path.name}~*")))
        return f"{self.group}-{aside}" if aside else self.group

    @property
    def weights(self) -> Path:
        return self.path / "teacher.safetensors"

    @property
    def checkpoint(self) -> Path:
        """The one checkpoint, written over as the training goes on."""
        return self.path / "checkpoints" / "last.ckpt"

    @property
    def finished(self) -> bool:
        file = self.path / "manifest.json"
        if not (file.is_file() and self.weights.is_file()):
            return False
        return self.manifest.get("status") == "finished"


def claim(config: TrainConfig, *, fresh: bool) -> Run:
    """The run directory of `config`, made if need be, with the configuration saved in it.

    With `fresh`, an earlier run of the same configuration is moved aside. A directory that holds
    another configuration is refused.
    """
    path = run_directory(config)
    if fresh and path.exists():
        aside = next(
            p for n in range(1, 10**6) if not (p := path.with_name(f"{path.name}~{n}")).exists()
        )
        path.rename(aside)
        print(f"The earlier run was moved to {aside}")
    run = Run(path)
    if (path / "config.yaml").is_file():
        saved = run.config
        there, asked = ({**identity(c), "seed": c.seed} for c in (saved, config))
        if there != asked:
            raise UserError(
                f"{path} holds a run of another configuration and is not overwritten:\n"
                f"{describe_differences(there, asked)}"
            )
    else:
        write_text(path / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(asdict(config))))
    return run


def describe_differences(saved: dict[str, Any], asked: dict[str, Any]) -> str:
    """One line for each key in which two configurations differ."""
    left, right = flatten(saved), flatten(asked)
    return "\n".join(
        f"  {key}: saved {left.get(key)}, asked for {right.get(key)}"
        for key in sorted(left.keys() | right.keys())
        if left.get(key) != right.get(key)
    )


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def all_runs(paths: PathsConfig, task: str | None = None) -> list[Run]:
    """Every run directory (of `task`, if named), in order of path; those moved aside left out.

    One that is damaged is left out too, and named.
    """
    pattern = f"{task or '*'}/*/*-s*/config.yaml"
    runs = []
    for file in sorted(paths.runs.glob(pattern)):
        run = Run(file.parent)
        if "~" in run.path.name:
            continue
        try:
            _ = run.config, run.finished
            runs.append(run)
        except UserError as error:
            print(f"warning: {run.path} is left out: {error}")
    return runs


def find_teacher(paths: PathsConfig, task: str | None, teacher: str | None) -> Run:
    """The run at `teacher`, or the newest finished Sinkhorn teacher (of `task`); prints which."""
    if teacher is not None:
        run = Run(Path(teacher))
        check_teacher(run, task)
        print(f"Teacher: {run.path}")
        return run
    finished = [run for run in all_runs(paths, task) if run.finished and has_dual(run.config)]
    if not finished:
        raise UserError(
            f"no finished Sinkhorn teacher{f' of task {task}' if task else ''} in {paths.runs}; "
            f"make one with: python -m asap_exp.train task={task or 'digits'}"
        )
    run = max(finished, key=lambda run: run.manifest["ended"])
    print(f"Teacher: {run.path} (the newest finished{f' of task {task}' if task else ''})")
    return run


def has_dual(config: TrainConfig) -> bool:
    """Whether its attention is Sinkhorn's, of one kind or the other."""
    return issubclass(attention_class(config.attention["name"]), SinkhornAttention)


def check_task(run: Run, task: str | None) -> None:
    """UserError where there is no run, or one of another task than `task`, if one is named."""
    trained = run.config.task.name
    if task is not None and trained != task:
        raise UserError(
            f"{run.path} was trained on task {trained}, but task={task} was asked for; "
            f"give task={trained}, or another run"
        )


def check_teacher(run: Run, task: str | None) -> None:
    check_task(run, task)
    config = run.config
    if not run.finished:
        raise UserError(
            f"{run.path} holds no finished teacher; finish it with the command in its "
            "manifest.json (resume=auto continues it)"
        )
    if not has_dual(config):
        raise UserError(
            f"{run.path} was trained with attention={config.attention['name']}; "
            "only a Sinkhorn teacher has a dual to distill"
        )


def check_same_tokenizer(data: dict[str, Any], run: Run) -> None:
    """Refuses data whose token ids mean other tokens than those that `run` was trained on."""
    here, there = data.get("tokenizer_sha256"), run.manifest["data"].get("tokenizer_sha256")
    if here != there:
        raise UserError(
            f"the tokenizer of {run.path} (SHA-256 {str(there)[:8]}...) is not the one of this "
            f"data ({str(here)[:8]}...): token ids mean other tokens. Both need the same "
            "data.name, data.vocab_size and data.lowercase"
        )


def finished_artifacts(run: Run) -> list[Path]:
    """The folders of the finished compiled maps of `run`, from the oldest to the newest."""
    manifests = [(read_json(f), f.parent) for f in run.path.glob("distill/*/manifest.json")]
    finished = [(m["ended"], folder) for m, folder in manifests if m.get("status") == "finished"]
    return [folder for _, folder in sorted(finished)]


def newest_artifact(run: Run) -> Path | None:
    """The folder of the newest finished compiled map of `run`."""
    finished = finished_artifacts(run)
    return finished[-1] if finished else None
