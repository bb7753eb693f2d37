"""Fresh start: the earlier run is moved aside once the new one has taken its first step."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path

from asap_exp.core.config import TrainConfig
from asap_exp.core.console import say, shown
from asap_exp.core.locks import HOLDER, LOCK, held, require_free
from asap_exp.core.runs import Run, write_config


@contextmanager
def fresh_run(config: TrainConfig, run: Run, under_way: Callable[[], bool]) -> Iterator[Run]:
    """Open an empty, locked directory in place of `run`, which is moved aside.

    If the work fails or is stopped before it is `under_way`, the earlier run is moved back.
    """
    if not (run.started or run.checkpoint.is_file()):
        yield run  # nothing worth keeping
        return
    parts = [run.path.glob(f"{stage}/*/{LOCK}") for stage in ("distill", "evaluate")]
    require_free(lock.parent for lock in chain(*parts))
    aside = free_name(run.path)
    empty = run.path.with_name(f".{run.path.name}.new")
    shutil.rmtree(empty, ignore_errors=True)  # left by a process that was killed here
    # Create and lock it under another name first, so that no other process can take it.
    with held(empty):
        write_config(config, empty)
        run.path.rename(aside)
        (aside / HOLDER).unlink(missing_ok=True)
        empty.rename(run.path)
        try:
            yield Run(run.path)
        except BaseException:
            if not under_way():
                shutil.rmtree(run.path)
                aside.rename(run.path)
                say(f"The earlier run is back in its place: {shown(run.path)}")
            raise
        finally:
            if aside.exists():
                moved = shown(aside)
                say(f"The earlier run was moved to {moved}; use it with \"teacher='{moved}'\"")


def free_name(path: Path) -> Path:
    """Return the first unused path of the form PATH~1, PATH~2, ..."""
    return next(
        p for n in range(1, 10**6) if not (p := path.with_name(f"{path.name}~{n}")).exists()
    )
