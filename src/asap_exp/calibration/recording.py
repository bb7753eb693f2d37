"""Passes over the data: normal equations of all batches, and as many as fit in memory."""

from collections.abc import Iterable, Iterator
from typing import Any

from torch import Tensor

from asap_exp.attention import attention_layers
from asap_exp.calibration.capture import Recorded, checked_inputs, sinkhorn
from asap_exp.calibration.coarse import coarse_settings
from asap_exp.calibration.config import ONE_PASS
from asap_exp.calibration.data import Batches, CalibrationData, in_turns, is_stand_in
from asap_exp.calibration.kept import Kept
from asap_exp.calibration.kl import Target, teacher_target
from asap_exp.calibration.ridge import NormalEquations, random_slices
from asap_exp.core.agreement import alone
from asap_exp.core.devices import device_of


def record(
    data: CalibrationData, batches: Batches, group: list[str], room: int
) -> tuple[dict[str, NormalEquations], dict[str, list[Target]]]:
    """Return sums over all batches, and as many of the batches themselves as `room` bytes hold.

    None without room, and else those that `Kept` keeps. With several ranks the sums are those of
    all, and each rank passes whole batches, so that what it finds of a sample is, to the last bit,
    what a single process does. Of the batches to keep each has its part, for which they pass a
    second time.
    """
    layers = attention_layers(data.net)
    config = data.config
    teachers = {path: sinkhorn(layers[path]) for path in group}
    sums = {
        path: NormalEquations(
            candidates(data, path),
            config.features,
            coarse_settings(config, teacher.num_iters),
            one_pass=config.form == ONE_PASS,
        )
        for path, teacher in teachers.items()
    }
    kept: Kept[Target] = Kept(room)

    def keep(number: int, recorded: Recorded) -> None:
        if room and kept.wants(number):
            kept.add(
                {p: [teacher_target(call, t) for call in recorded[p]] for p, t in teachers.items()}
            )

    for number, recorded in passed(data, batches, in_turns(batches), group):
        for path, teacher in teachers.items():
            for call in recorded[path]:
                sums[path].add(call, teacher)
        if alone():
            keep(number, recorded)
    for equations in sums.values():
        equations.reduce()
    if room and not alone():
        for number, recorded in passed(data, batches, enumerate(batches), group):
            keep(number, without_samples(recorded) if is_stand_in(batches, number) else recorded)
    return sums, kept.by_path(group)


def passed(
    data: CalibrationData, batches: Batches, numbered: Iterable[tuple[int, Any]], group: list[str]
) -> Iterator[tuple[int, Recorded]]:
    """Pass some of the `batches` through the model; yield their numbers and what the layers got."""
    numbers: list[int] = []

    def inputs() -> Iterator[Any]:
        for number, batch in numbered:
            numbers.append(number)
            yield batch

    found = checked_inputs(
        *(data.net, inputs(), group, data.precision, data.forward),
        lambda index: data.batch_name(batches, numbers[index]),
    )
    what = "Batches to fit on" if batches is data.fit else "Batches to check on"
    for recorded in data.progress.track(found, what, len(batches)):
        yield numbers[-1], recorded


def without_samples(recorded: Recorded) -> Recorded:
    """Return what was recorded of no sample at all."""
    return {path: [call.of_samples(slice(0)) for call in calls] for path, calls in recorded.items()}


def candidates(data: CalibrationData, path: str) -> Tensor:
    """Random slices `[H, candidates, D]`; none for a map without slices.

    Each layer has its own seed, which is the same whichever layers are compiled.
    """
    layers = attention_layers(data.net)
    layer, config = layers[path], data.config
    seed = config.seed * 1000 + list(layers).index(path)
    count = config.candidates if config.slices else 0
    theta = random_slices(layer.num_heads, count, layer.head_dim, seed=seed)
    return theta.to(device_of(data.net))
