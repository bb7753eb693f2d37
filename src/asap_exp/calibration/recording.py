"""Single pass over the data: normal equations of all batches, and as many as fit in memory."""

from collections.abc import Iterable, Sequence
from functools import partial

from torch import Tensor

from asap_exp.attention import attention_layers
from asap_exp.calibration.capture import Recorded, checked_inputs, device_of, sinkhorn
from asap_exp.calibration.coarse import coarse_settings
from asap_exp.calibration.data import Batches, CalibrationData, is_stand_in
from asap_exp.calibration.kl import Target, teacher_target
from asap_exp.calibration.ridge import NormalEquations, random_slices
from asap_exp.core.agreement import total


def record(
    data: CalibrationData, batches: Batches, group: list[str], room: int
) -> tuple[dict[str, NormalEquations], dict[str, list[Target]]]:
    """Return sums over all batches, and as many of the batches themselves as `room` bytes hold.

    At least one; where not all fit, every second, fourth, ... of them: texts come from short to
    long, and a fit must see both. With several ranks the sums are of all, and of the same batches
    as on one device each rank keeps its part.
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
    kept: list[dict[str, list[Target]]] = []
    stride = 1
    for number, recorded in enumerate(passes):
        if is_stand_in(batches, number):
            recorded = {
                path: [call.of_samples(slice(0)) for call in recorded[path]] for path in group
            }
        for path, teacher in teachers.items():
            for call in recorded[path]:
                sums[path].add(call, teacher)
        if room and number % stride == 0:
            kept.append(
                {p: [teacher_target(call, t) for call in recorded[p]] for p, t in teachers.items()}
            )
        while total(num_bytes(kept)) > room and len(kept) > 1:
            kept = kept[::2]
            stride *= 2
    for equations in sums.values():
        equations.reduce()
    return sums, {path: [target for batch in kept for target in batch[path]] for path in group}


def num_bytes(kept: Sequence[dict[str, list[Target]]]) -> int:
    """Bytes of the kept batches."""
    return sum(t.nbytes for batch in kept for targets in batch.values() for t in targets)


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
