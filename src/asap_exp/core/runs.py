"""Run directories: one per task, model, attention, configuration and seed.

RESULTS/runs/TASK/MODEL-ATTENTION/HASH-sSEED/
    config.yaml manifest.json teacher.safetensors checkpoints/ logs/
    distill/HASH/    asap.safetensors asap.json fidelity.json manifest.json
    evaluate/HASH/   metrics.json manifest.json
"""

import hashlib
import json
import re
import shlex
from collections.abc import Collection, Iterable, Iterator
from copy import deepcopy
from dataclasses import asdict, dataclass, fields, is_dataclass
from functools import cached_property
from pathlib import Path, PurePath
from typing import Any

from omegaconf import OmegaConf

from asap_exp.core.attention_options import UnknownAttention
from asap_exp.core.composing import load_saved, quoted
from asap_exp.core.config import SAME_RESULTS, PathsConfig, TrainConfig
from asap_exp.core.console import warn
from asap_exp.core.errors import UserError
from asap_exp.core.files import write_text
from asap_exp.core.locks import holder_of, in_use
from asap_exp.core.manifest import LaterManifest, Manifest, TrainManifest
from asap_exp.core.typed import read

DEFAULT_TASK = "digits"

ASIDE = re.compile(r"~\d+$")
"""Suffix of a directory that resume=never has moved aside."""

LOCATION_KEYS = (
    "data.root",
    "data.cache",
    "data.path",
    "data.placement",
    "paths",
    "logger",
    "resume",
    "debug",
    "check",
    "callbacks.progress_bar",
    "callbacks.diagnostic_samples",
    "callbacks.plan_images",
)
"""Keys that change where files are or what is shown, but not what is computed.

`debug` names a file whose other keys say what is computed.
"""

HARDWARE_KEYS = (
    *(f"trainer.{name}" for name in SAME_RESULTS),
    "callbacks.checkpoint_seconds",
)
"""Keys that change how a run is computed, but not what."""


def drop_keys(tree: dict[str, Any], keys: tuple[str, ...]) -> dict[str, Any]:
    """Return a copy of a nested dict without the dotted `keys`."""
    result = dict(tree)
    for key in keys:
        head, _, rest = key.partition(".")
        if head not in result:
            continue
        if rest:
            result[head] = drop_keys(result[head], (rest,))
        else:
            del result[head]
    return result


def short_hash(value: Any) -> str:
    """Return the first 8 hex digits of the SHA-256 of a JSON value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:8]


def identity(config: TrainConfig) -> dict[str, Any]:
    """Return the part of a configuration that decides what is computed, without the seed."""
    return drop_keys(to_dict(config), (*LOCATION_KEYS, *HARDWARE_KEYS, "seed"))


def to_dict(config: Any) -> dict[str, Any]:
    """Return `config` as a nested dict; that of a training has no keys that older runs lack.

    A field with a default in its dataclass is younger than the first published runs, which had that
    value: leaving it out keeps their names and hashes.
    """
    return without_defaults(config) if isinstance(config, TrainConfig) else asdict(config)


def without_defaults(config: Any) -> dict[str, Any]:
    """Return a dataclass as a nested dict, without the fields that have their declared default."""
    tree = {}
    for field in fields(config):
        value = getattr(config, field.name)
        if value == (field.default_factory() if callable(field.default_factory) else field.default):
            continue
        tree[field.name] = without_defaults(value) if is_dataclass(value) else deepcopy(value)
    return tree


def recipe_hash(config: TrainConfig, initial: "Run | None" = None) -> str:
    """Return a hash that matched runs share: same data, model, recipe and budget, any attention.

    If the weights come from an `initial` run, the same holds for that run.
    """
    recipe = drop_keys(identity(config), ("attention", "init_from"))
    if initial is not None:
        same = initial.config.attention["name"] == config.attention["name"]
        recipe["initial"] = {"recipe": initial.manifest.recipe_hash, "same_attention": same}
    return short_hash(recipe)


def public_config(config: Any) -> dict[str, Any]:
    """Return a configuration as records show it, without paths of one machine."""
    here = ("data.root", "data.cache", "data.path", "paths", "teacher", "artifact", "check")
    return drop_keys(to_dict(config), here)


def run_name(config: TrainConfig) -> str:
    """Return TASK/MODEL-ATTENTION/HASH-sSEED, the run's name and its directory below the runs."""
    kind = f"{config.model.name}-{config.attention['name']}"
    return f"{config.task.name}/{kind}/{short_hash(identity(config))}-s{config.seed}"


def run_directory(config: TrainConfig) -> Path:
    """Return the run directory of `config`."""
    return config.paths.runs / run_name(config)


@dataclass(frozen=True)
class Run:
    """Directory of one training run, and the files in it."""

    path: Path

    @cached_property
    def config(self) -> TrainConfig:
        """The saved, resolved configuration; never today's defaults."""
        file = self.path / "config.yaml"
        if not file.is_file():
            raise UserError(f"{self.path} is not a run directory: it has no config.yaml")
        try:
            return load_saved(file, TrainConfig)
        except UnknownAttention as error:
            raise self._of_another_package(error) from error
        except UserError as error:
            if str(file) in str(error):
                raise
            raise UserError(f"{file} is damaged: {error}") from error

    def _of_another_package(self, error: UnknownAttention) -> UserError:
        """Return the UserError for an attention that is not known here: what makes it known."""
        recorded = self.manifest.plugins if self.started else None
        found = [each for each in recorded or [] if each.kind == "attention"]
        if not found:
            return UserError(f"{self.path}: {error}", key=error.key, value=error.value)
        return UserError(
            f"{self.path} was trained with attention={error.value}, which is not known here: "
            f"{found[0].remedy}",
            key=error.key,
            value=error.value,
            hint=found[0].argument,
        )

    @property
    def manifest(self) -> TrainManifest:
        return read(TrainManifest, self.path / "manifest.json")

    @cached_property
    def name(self) -> str:
        """Name given by its configuration, wherever its directory is and whatever it is called."""
        return run_name(self.config)

    @property
    def group(self) -> str:
        """Tracking group: everything that belongs to runs of this recipe, whatever their seed."""
        return self.label.removesuffix(f"-s{self.config.seed}")

    @property
    def label(self) -> str:
        """Name for trackers, whose names have no slashes."""
        return self.name.replace("/", "-")

    @property
    def tracking_id(self) -> str:
        """Tracking id of all attempts at this run; it changes when a run is moved aside."""
        aside = len(list(self.path.parent.glob(f"{self.path.name}~*")))
        return f"{self.label}-{aside}" if aside else self.label

    @property
    def weights(self) -> Path:
        return self.path / "teacher.safetensors"

    @property
    def curves(self) -> Path:
        return self.path / "curves.json"

    @property
    def checkpoint(self) -> Path:
        """The only checkpoint, overwritten as the training goes on."""
        return self.path / "checkpoints" / "last.ckpt"

    @property
    def started(self) -> bool:
        return (self.path / "manifest.json").is_file()

    @property
    def unfinished(self) -> str:
        """Short description of what is missing in an unfinished run."""
        if not self.started:
            return "manifest.json is missing; run the command that started it again"
        manifest = self.manifest
        if manifest.finished:
            return f"{self.weights.name} is missing. {repair(self)}"
        if manifest.status != "running":
            status: str = manifest.status
        elif in_use(self.path):
            return f"still running: {holder_of(self.path)}"
        else:
            status = "killed, perhaps for lack of memory"  # or it would have written how it ended
        return f"{status}; it is continued by: {own_command(self)}"

    @property
    def finished(self) -> bool:
        """True if finished; raises UserError if the configuration and the manifest disagree."""
        return self.finished_manifest() is not None

    def finished_manifest(self) -> TrainManifest | None:
        """Return the manifest of a finished run, read once; None if it is not finished.

        Raises UserError if the configuration and the manifest disagree.
        """
        if not (self.started and self.weights.is_file()):
            return None
        manifest = self.manifest
        check_agrees(self, manifest)
        return manifest if manifest.finished else None


def named_run(paths: PathsConfig, given: str) -> Run:
    """Return the run of a name, TASK/MODEL-ATTENTION/HASH-sSEED as tables print it, or of a path.

    Raises UserError for the folder of something that was made from a run.
    """
    below = paths.runs / given
    path = below if below.is_dir() else Path(given)
    whole = path.absolute().parent.parent
    if path.absolute().parent.name in ("distill", "evaluate") and is_run(whole):
        what = "a compiled map" if path.absolute().parent.name == "distill" else "an evaluation"
        raise UserError(f"{path} is {what} and not a run; its run is {whole}")
    return Run(path)


def is_run(folder: Path) -> bool:
    """Return True if there is a run directory, finished or not."""
    return (folder / "config.yaml").is_file()


def own_command(run: Run) -> str:
    """Return the command that trains `run` in its present location."""
    words = shlex.split(run.manifest.command)
    kept = [w for w in words if not w.startswith(("paths.results=", "resume="))]
    return f"{shlex.join(kept)} {where(str(Path(*run.path.absolute().parts[:-4])))}".strip()


def repair(run: Run) -> str:
    """Return a sentence on how to restore a damaged `run`."""
    if run.path.absolute().parts[-4:] != ("runs", *run.name.split("/")):
        return f"Restore it from a copy, or train {run.name} again"
    return f"Restore it with its command: {own_command(run)} (with resume=never if necessary)"


def stage_command(stage: str, paths: PathsConfig, *words: str) -> str:
    """Return `python -m asap_exp.STAGE`, with the results folder if it is not the default."""
    given = [word for word in (where(paths.results), *words) if word]
    return " ".join(["python", "-m", f"asap_exp.{stage}", *given])


def where(results: str) -> str:
    """Return `paths.results=...` as typed in a shell; empty for the default folder."""
    if Path(results).absolute() == Path("results").absolute():
        return ""
    return word_of("paths.results", results)


def word_of(key: str, path: str | Path) -> str:
    """Return `key=path` as typed in a shell, quoted if it has to be."""
    plain = re.fullmatch(r"[\w./-]+", str(path))
    return f"{key}={path}" if plain else f'"{quoted(key, path)}"'


def check_agrees(run: Run, manifest: TrainManifest) -> None:
    """Raise UserError if the configuration is not the one that made the run."""
    config = run.config
    leaf = PurePath(run.name).name
    named = re.fullmatch(r"([0-9a-f]{8}-s\d+)(~\d+)?", run.path.name)
    if named and named[1] != leaf:
        raise UserError(
            f"{run.path / 'config.yaml'} was changed after the run: it belongs to {leaf}. Use an "
            "unchanged copy, or set the keys you want on the command line of a new run"
        )
    not_compared = (*LOCATION_KEYS, *HARDWARE_KEYS, "seed")
    then, now = drop_keys(manifest.config, not_compared), identity(config)
    then, now = (
        {**tree, "seed": seed} for tree, seed in ((then, manifest.seed), (now, config.seed))
    )
    differences = describe_differences(now, then, among=flatten(then).keys() & flatten(now).keys())
    if differences:
        raise UserError(
            f"{run.path / 'config.yaml'} was changed after the run: its manifest.json "
            f"differs:\n{differences}\nUse an unchanged copy of both"
        )


def claim(config: TrainConfig) -> Run:
    """Return the run directory of `config`, created with the saved configuration if missing.

    A damaged configuration is written again, since the directory's name identifies it.
    """
    run = Run(run_directory(config))
    try:
        if (run.path / "config.yaml").is_file():
            _ = run.config
            return run
    except UserError as error:
        warn(f"{error}; it is written again")
    write_config(config, run.path)
    return Run(run.path)


def refuse_other(config: TrainConfig) -> None:
    """Raise UserError if the run directory of `config` holds another configuration."""
    run = Run(run_directory(config))
    try:
        saved = run.config
    except UserError:
        return  # none, or a damaged one
    there, asked = ({**identity(c), "seed": c.seed} for c in (saved, config))
    if there != asked:
        raise UserError(
            f"{run.path} holds a run of another configuration and is not overwritten:\n"
            f"{describe_differences(there, asked)}\nRestore the original config.yaml, or start "
            "again with resume=never, which moves the run aside"
        )


def write_config(config: TrainConfig, folder: Path) -> None:
    """Write the configuration to config.yaml."""
    write_text(folder / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(asdict(config))))


def describe_differences(
    saved: dict[str, Any], asked: dict[str, Any], among: Collection[str] | None = None
) -> str:
    """Return one line per key (of those `among`, if given) in which two configurations differ."""
    left, right = flatten(saved), flatten(asked)
    return "\n".join(
        f"  {key}: saved {left.get(key)}, asked for {right.get(key)}"
        for key in sorted(left.keys() | right.keys() if among is None else among)
        if left.get(key) != right.get(key)
    )


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten a nested dict to dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def all_runs(paths: PathsConfig, task: str | None = None) -> list[Run]:
    """Return every run directory (of `task`, if given) by path, without runs moved aside.

    Damaged runs are left out with a warning.
    """
    return current(sound_runs(paths, task))


def current(runs: Iterable[Run]) -> list[Run]:
    """Return the runs that were not moved aside, or whose successor has not started."""
    return [
        run
        for run in runs
        if not (aside := ASIDE.search(run.path.name))
        or not Run(run.path.with_name(run.path.name[: aside.start()])).started
    ]


def sound_runs(paths: PathsConfig, task: str | None) -> Iterator[Run]:
    """Yield every run directory (of `task`); skip a damaged one with a warning."""
    return (run for run, _ in sound_runs_with_manifests(paths, task))


def sound_runs_with_manifests(
    paths: PathsConfig, task: str | None
) -> Iterator[tuple[Run, TrainManifest | None]]:
    """Yield every run directory (of `task`), with its manifest if it is finished.

    Skips a damaged one with a warning.
    """
    files = {
        file
        for name in ("config.yaml", "manifest.json")
        for file in paths.runs.glob(f"*/*/*/{name}")
    }
    for folder in sorted({file.parent for file in files}):
        run = Run(folder)
        if any(part.startswith(".") for part in folder.relative_to(paths.runs).parts):
            continue
        try:
            manifest = run.finished_manifest()
            if task in (None, run.config.task.name):
                yield run, manifest
        except UserError as error:
            warn(f"{run.path} is left out: {error}")


def listed(words: str, items: list[str]) -> str:
    """Return further lines of a message, or nothing without items."""
    return "\n".join(["", f"{words}:", *(f"  {item}" for item in items)]) if items else ""


def ended(manifest: Manifest) -> str:
    """Return the time at which a finished stage ended."""
    assert manifest.ended is not None, "only finished stages have an end"
    return manifest.ended


def check_task(run: Run, task: str | None) -> None:
    """Raise UserError if `task` is given and the run is of another task."""
    trained = run.config.task.name
    if task is not None and trained != task:
        raise UserError(
            f"{run.path} was trained on task {trained}, but task={task} was asked for; "
            f"set task={trained}, or choose another run"
        )


def check_same_tokenizer(data: dict[str, Any], run: Run) -> None:
    """Raise UserError if the tokenizer of the data is not the one `run` was trained with."""
    here, there = data.get("tokenizer_sha256"), run.manifest.data.get("tokenizer_sha256")
    if here != there:
        raise UserError(
            f"the tokenizer of {run.path} (SHA-256 {str(there)[:8]}...) differs from that of this "
            f"data ({str(here)[:8]}...), so token ids mean other tokens. Both need the same "
            "data.name, data.vocab_size and data.lowercase"
        )


def finished_artifacts(run: Run) -> list[tuple[str, Path]]:
    """Return the end time and folder of each finished compiled map of `run`, oldest first.

    Maps with a damaged manifest are left out with a warning.
    """
    finished = []
    for file in sorted(run.path.glob("distill/*/manifest.json")):
        try:
            manifest = read(LaterManifest, file)
            check_teacher_of(manifest, file, run)
        except UserError as error:
            warn(f"{file.parent} is left out: {error}")
            continue
        if manifest.finished:
            finished.append((ended(manifest), file.parent))
    return sorted(finished)


def check_teacher_of(manifest: LaterManifest, file: Path, run: Run) -> None:
    """Raise UserError if the manifest of a later stage belongs to another run."""
    if manifest.teacher != run.name:
        raise UserError(
            f"{file} belongs to the run {manifest.teacher} and not to {run.name}; remove "
            f"{file.parent} and run the stage again"
        )


def unfinished_artifacts(run: Run) -> list[Path]:
    """Return the folders of compiled maps of `run` that are not finished."""
    finished = {folder for _, folder in finished_artifacts(run)}
    return [folder for folder in sorted(run.path.glob("distill/*")) if folder not in finished]


def stage_finished(folder: Path) -> bool:
    """Return True if a later stage completed `folder`; raise UserError if it is damaged."""
    file = folder / "manifest.json"
    return file.is_file() and read(LaterManifest, file).finished


def newest_artifact(run: Run) -> tuple[str, Path] | None:
    """Return the end time and folder of the newest finished compiled map of `run`, or None."""
    finished = finished_artifacts(run)
    return finished[-1] if finished else None
