"""Layers of one shape fitted as one layer with all their heads: fewer, larger operations.

Heads share no parameter, so each head's fit is the same alone and among others. On short sequences
it is the number of operations that costs the time, not their size.
"""

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from asap_exp.attention import AsapAttention
from asap_exp.calibration.gradient import restore, values
from asap_exp.calibration.kl import Target
from asap_exp.ops import SlicedMap

MOST_LOGITS = 2**26
"""Upper bound on the logits of a stacked batch: a larger one is no faster and fills the memory."""


def stacks(
    maps: Mapping[str, AsapAttention], targets: Mapping[str, Sequence[Target]]
) -> Iterator[list[str]]:
    """Return the paths of `maps`, in runs that can be fitted as one layer each."""
    run: list[str] = []
    for path in maps:
        together = [*run, path]
        fits = sum(num_logits(targets[p]) for p in together) <= MOST_LOGITS
        if run and not (fits and stackable(maps, targets, run[0], path)):
            yield run
            together = [path]
        run = together
    if run:
        yield run


def stackable(
    maps: Mapping[str, AsapAttention],
    targets: Mapping[str, Sequence[Target]],
    first: str,
    second: str,
) -> bool:
    """Return True if two layers differ only in their number of heads and saw the same tokens.

    A layer that runs more than once in a forward pass has seen more.
    """
    return (
        maps[first].eps == maps[second].eps
        and maps[first].coarse == maps[second].coarse
        and maps[first].one_pass == maps[second].one_pass
        and maps[first].theta.shape[1:] == maps[second].theta.shape[1:]
        and len(targets[first]) == len(targets[second])
        and all(
            a.q.shape[0] == b.q.shape[0]
            and a.q.shape[2] == b.q.shape[2]
            and a.key_padding_mask is b.key_padding_mask
            for a, b in zip(targets[first], targets[second], strict=True)
        )
    )


def num_logits(targets: Sequence[Target]) -> int:
    """Size of the largest batch."""
    return max((t.q[..., 0].numel() * t.q.shape[2] for t in targets), default=0)


def stack_targets(layers: Sequence[Sequence[Target]]) -> list[Target]:
    """Batch by batch, the layers' heads behind each other."""
    if len(layers) == 1:
        return list(layers[0])
    return [
        Target(
            *(
                torch.cat(parts, dim=1) if name != "key_padding_mask" else parts[0]
                for name, parts in zip(Target._fields, zip(*batch, strict=True), strict=True)
            )
        )
        for batch in zip(*layers, strict=True)
    ]


def stack_maps(attends: Sequence[AsapAttention]) -> AsapAttention:
    """Build one map with the heads of all of them."""
    parts = [values(attend) for attend in attends]
    whole = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    first = attends[0]
    map = SlicedMap.of({**whole, "coarse": first.coarse, "one_pass": first.one_pass})
    return AsapAttention.of(map, refine=first.refine, eps=first.eps)


def unstack_into(whole: AsapAttention, attends: Sequence[AsapAttention]) -> None:
    """Copy the values of a stacked map into the maps that it was made of."""
    for attend, part in zip(attends, by_layer(attends, values(whole)), strict=True):
        restore(attend, part)


def by_layer(
    attends: Sequence[AsapAttention], whole: Mapping[str, Tensor]
) -> Iterator[dict[str, Tensor]]:
    """Tensors `[all heads, ...]` cut into those of each layer."""
    start = 0
    for attend in attends:
        heads = slice(start, start + len(attend.theta))
        yield {name: tensor[heads] for name, tensor in whole.items()}
        start = heads.stop
