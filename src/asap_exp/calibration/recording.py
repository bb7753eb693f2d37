"""Single pass over the data: normal equations of all batches, and as many as fit in memory."""

from collections.abc import Iterable
from functools import partial

from torch import Tensor

from asap_exp.attention import attention_layers
from asap_exp.calibration.capture import Recorded, checked_inputs, device_of, sinkhorn
from asap_exp.calibration.coarse import coarse_settings
from asap_exp.calibration.data import Batches, CalibrationData, is_stand_in
from asap_exp.calibration.kept import Kept
from asap_exp.calibration.kl import Target, teacher_target
from asap_exp.calibration.ridge import NormalEquations, random_slices


def record(
    data: CalibrationData, batches: Batches, group: list[str], room: int
) -> tuple[dict[str, NormalEquations], dict[str, list[Target]]]:
    """Return sums over all batches, and as many of the batches themselves as `room` bytes hold.

    None without room, and else those that `Kept` keeps. With several ranks the sums are of all.
    """
    layers = attention_layers(data.net)
    config = data.config
    teachers = {path: sinkhorn(layers[path]) for path in group}
    sums = {
        path: NormalEquations(
            candidates(data, path), config.features, coarse_settings(config, teacher.num_iters)
        )
        for path, teacher in teachers.items()
    }
    name = partial(data.batch_name, batches)
    inputs = checked_inputs(data.net, batches, group, data.precision, data.forward, name)
    what = "Batches to fit on" if batches is data.fit else "Batches to check on"
    passes: Iterable[Recorded] = data.progress.track(inputs, what, len(batches))
    kept: Kept[Target] = Kept(room)
    for number, recorded in enumerate(passes):
        if is_stand_in(batches, number):
            recorded = {
                path: [call.of_samples(slice(0)) for call in recorded[path]] for path in group
            }
        for path, teacher in teachers.items():
            for call in recorded[path]:
                sums[path].add(call, teacher)
        if room and kept.wants(number):
            kept.add(
                {p: [teacher_target(call, t) for call in recorded[p]] for p, t in teachers.items()}
            )
    for equations in sums.values():
        equations.reduce()
    return sums, kept.by_path(group)


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
