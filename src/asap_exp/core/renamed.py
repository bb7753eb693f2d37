"""Renamed arguments of earlier versions, with their replacements, in one place."""

from fnmatch import fnmatchcase
from pathlib import Path

from asap_exp.core.conf_files import conf_dir, option_file, options
from asap_exp.core.config.trainer import STRATEGIES
from asap_exp.core.errors import UserError

RENAMED = {
    "train": {
        "data=*": "task={option}, whose file sets the data; or keys, as data.name=NAME",
        "model=*": "task={option}, whose file sets the model; or keys, as model.dim=128",
        "recipe=*": "task={option}, whose file sets the recipe; or keys, as recipe.epochs=20",
        "trainer=*": "keys, as trainer.precision=32-true",
        "callbacks=*": "keys, as callbacks.progress_bar=false",
    },
    "*": {"task.name=*": "task={option}"},
}
"""Old arguments per stage, with * for any option, and their replacements."""

FITTED = (
    "attention={name} is not trained: it is fitted to a Sinkhorn teacher. Run\n"
    "  python -m asap_exp.train task=TASK attention=sinkhorn\n"
    "  python -m asap_exp.distill task=TASK\n"
    "  python -m asap_exp.evaluate task=TASK"
)
"""Message for an attention that is compiled and not trained: what to run."""


def check_renamed(stage: str, key: str, option: str, own: Path | None = None) -> None:
    """Raise UserError if `key=option` belongs to an earlier version or to another stage."""
    if option_file(stage, key, option, own):
        return
    given = f"{key}={option}"
    if key == "trainer" and option in STRATEGIES:
        hint = f"trainer.strategy={option} trainer.devices=2"
        raise UserError(
            f"{given} is not allowed: trainer is a group of keys; write {hint}",
            key=key,
            value=option,
            hint=hint,
        )
    if given == "attention=asap":
        raise UserError(FITTED.format(name=option), key=key, value=option)
    for old, new in (RENAMED.get(stage, {}) | RENAMED["*"]).items():
        if fnmatchcase(given, old):
            hint = new.format(option=option)
            raise UserError(
                f"{given} was an argument of an earlier version; now write {hint}",
                key=key,
                value=option,
                hint=hint,
            )
    for other in sorted(folder.name for folder in conf_dir().iterdir() if folder.name != stage):
        folder = conf_dir() / other / key
        if key == "experiment" and option in options(folder):
            hint = f"python -m asap_exp.{other} {given}"
            raise UserError(
                f"{given} is an experiment of another stage: {hint}",
                key=key,
                value=option,
                hint=hint,
            )
