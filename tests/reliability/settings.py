"""Absurd values of every key: a sentence that names the key, or a stage that runs."""

import dataclasses
import random
import re
import typing
from typing import Any

from tests.reliability.bench import COMMANDS, MASKED, Base, Bench, Case, Trial
from tests.reliability.child import Ended
from tests.reliability.verdicts import broken, sentence

STARTS = {"distill": "train", "evaluate": "map", "report": "evaluated"}
BASES = {*STARTS.values()}
EACH = {"train": 200, "masked": 80, "distill": 110, "evaluate": 90, "report": 40, "benchmark": 90}
"""Cases of each stage, drawn from all."""
TIMEOUT = 30
"""Seconds; a stage with these settings takes one or two."""

STAGES = {
    **{stage: (stage, command) for stage, command in COMMANDS.items()},
    "masked": ("train", MASKED),
}

VALUES = (
    *("-1", "0", "1e38", "1e-38", str(10**20), "nan", "inf", "null", "''", "[]", "[1,[2]]"),
    *("{a:1}", "text", "true", "'*'", "'../..'", "'~'", "'a/b'", "'${oc.env:HOME}'"),
)
FORMS = ("~{key}", "+{key}.nothing=1", "{key}x=1", "+{key}.{key}=1", "{key}@x=1")
"""Overrides that are no values: a deletion, keys that are not there."""
UNKNOWN = (
    *("nothing=1", "+nothing=1", "++a.b.c=1", "=1", "+=1", "a=b=c", "experiment=nothing"),
    *("hydra=nothing", "--nothing", "-x", "'", "{", "seed=", "+x='", "-m", "seed=1,2"),
)

ASKED_FOR = re.compile(r"epochs|updates|rounds|samples|compile|max_test_rows|cpu\.|methods")
"""Keys by which a stage may be asked to take for ever."""
PATHS = re.compile(r"paths|out$|data\.(root|cache)|teacher|artifact|run$|resume|init_from")
"""Keys that name places: a refusal names the place, and files go where they say."""


def cases(bases: dict[str, Base], *, all_of_them: bool) -> list[Case]:
    found = []
    for name, count in EACH.items():
        overrides = [
            *(f"{key}={value}" for key in keys(name) for value in VALUES),
            *(form.format(key=key) for key in keys(name) for form in FORMS),
        ]
        drawn = random.Random(name).sample(overrides, count - len(UNKNOWN))
        found += [
            Case("settings", f"{name}/{override}", check, (name, override))
            for override in [*UNKNOWN, *(overrides if all_of_them else drawn)]
        ]
    return found


def keys(name: str) -> list[str]:
    """Every key and group of the schema of a stage's configuration."""
    from asap_exp.core import config
    from asap_exp.distill.config import DistillConfig

    schema: type = {
        "train": config.TRAIN_SCHEMAS["vit"],
        "masked": config.TRAIN_SCHEMAS["encoder"],
        "distill": DistillConfig,
        "evaluate": config.EvaluateConfig,
        "report": config.ReportConfig,
        "benchmark": config.BenchmarkConfig,
    }[name]
    attention = [f"attention.{key}" for key in ("name", "num_iters", "eps")]
    return [*keys_of(schema), *(attention if schema in config.TRAIN_SCHEMAS.values() else [])]


def keys_of(schema: Any, prefix: str = "") -> list[str]:
    found = []
    for key, kind in typing.get_type_hints(schema).items():
        found.append(f"{prefix}{key}")
        if dataclasses.is_dataclass(kind):
            found += keys_of(kind, f"{prefix}{key}.")
    return [key for key in found if key != "logger.wandb"]  # what it starts is not ours to test


def check(bench: Bench, case: Case) -> list[Trial]:
    """The whole stage, as it is started: most of these values never get far."""
    name, override = case.detail
    stage, command = STAGES[name]
    if stage in STARTS:
        bench.copy(STARTS[stage])
    ended = bench.run(stage, *command, override, timeout=TIMEOUT)
    bench.anywhere = bool(PATHS.match(key_of(override)))
    trial = judged(ended, override)
    return [Trial(trial.outcome, trial.failure, {f"{name}: {trial.outcome}": 1})]


def key_of(override: str) -> str:
    return re.split(r"[=@]", override)[0].strip("+~-")


def judged(ended: Ended, override: str) -> Trial:
    key = key_of(override)
    if ended.timed_out:
        if ASKED_FOR.search(key):
            return Trial("no end, as asked for")
        return Trial("hang", f"killed after {ended.seconds:.0f} s: {ended.out[-100:]!r}")
    if ended.status == 1 and "Traceback" not in ended.text and ended.err.strip():
        return Trial("Hydra's own words")
    if ended.status == 2 and "usage:" in ended.err:
        return Trial("Hydra's own words")
    if failed := broken(ended):
        return failed
    if ended.status == 0:
        return Trial("accepted")
    said = sentence(ended)
    value = override.split("=", 1)[-1].strip("'")
    names = {key, key.split(".")[-1], value} - {"", "x", "1"}
    if not names or PATHS.match(key) or any(name in said for name in names) or "finite" in said:
        return Trial("sentence")
    return Trial("sentence without the key", ended.last_words)
