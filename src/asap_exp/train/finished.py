"""Check that a run is finished, undamaged and trained on the data found now."""

from typing import Any

from asap_exp.core.console import say, shown, warn
from asap_exp.core.errors import UserError
from asap_exp.core.runs import Run
from asap_exp.core.training_log import kept_curves
from asap_exp.data import TaskDataModule
from asap_exp.data.run_data import place_key
from asap_exp.data.run_files import CLASSES, CLASSES_HASH
from asap_exp.data.sources import DataNotFound
from asap_exp.models import load_weights

CONTENT = {
    "train_sha256": "training data",
    "val_rows_sha256": "rows of the validation split",
    "tokenizer_sha256": "tokenizer",
}


def is_finished(run: Run, data: TaskDataModule, *, mend: bool = True) -> bool:
    """Return True, and say so, if `run` is finished; a damaged run is continued or repeated.

    Files of its data that are missing or have changed are written again unless `mend` is False.
    Raises UserError if it was trained on other data than `data`.
    """
    try:
        if not run.finished:
            return False
        load_weights(run)
        if run.checkpoint.is_file():
            kept_curves(run)  # the checkpoint can restore them
    except UserError as error:
        warn(f"{error}\nThe run is repeated, from its checkpoint if that is intact")
        return False
    advice = "resume=never trains it again"
    try:
        data.setup()
    except DataNotFound as error:
        say(
            f"Already finished: {shown(run.path)} ({advice}). Whether its data is unchanged could "
            f"not be checked: {error}"
        )
        if changed := data.changed_files(run.path, run.manifest.data):
            warn(
                f"{' and '.join(changed)} in {run.path} is missing or has changed; it will be "
                "restored once the data is found"
            )
        return True
    require_same_data(run, data.identity)
    if mend:
        restore(run, data)
    say(f"Already finished: {shown(run.path)} ({advice})")
    return True


def restore(run: Run, data: TaskDataModule) -> None:
    """Rewrite the tokenizer and the class names if they differ from the manifest.

    Raises UserError if `data` has other class names than the run.
    """
    then, now = run.manifest.data.get(CLASSES_HASH), data.identity.get(CLASSES_HASH)
    changed = data.changed_files(run.path, run.manifest.data)
    if not changed:
        return
    files = " and ".join(changed)
    if then is not None and then != now and (CLASSES in changed or now is not None):
        raise UserError(
            f"{files} in {run.path} is missing or has changed, and cannot be restored: the data "
            f"found now has other class names or none. Set {place_key(data.config)} to where the "
            "earlier data is, or train again with resume=never"
        )
    data.save(run.path)
    warn(f"{files} in {run.path} was missing or had changed, and was restored")


def require_same_data(run: Run, now: dict[str, Any]) -> None:
    """Raise UserError with the differences if the run was trained on other data than this."""
    then = run.manifest.data
    differences = [
        f"  {words}: then {str(then[key])[:12]}..., now {str(now[key])[:12]}..."
        for key, words in CONTENT.items()
        if key in then and key in now and then[key] != now[key]
    ]
    if not differences:
        return
    differences += [
        f"  {key.replace('_', ' ')}: then {then.get(key)}, now {now.get(key)}"
        for key in ("source", "train_rows", "val_rows")
        if then.get(key) != now.get(key)
    ]
    raise UserError(
        f"{run.path} was trained on data other than what is found now:\n"
        + "\n".join(differences)
        + "\nTrain on this data with resume=never (the earlier run is moved aside, not deleted), "
        f"or set {place_key(run.config.data)} to where the earlier data is"
    )
