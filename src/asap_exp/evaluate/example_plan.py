"""One attention plan, three ways, to look at."""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from asap_exp.attention import Attention, SoftmaxAttention, attention_layers
from asap_exp.calibration.capture import layer_inputs
from asap_exp.data.loader import Batch

DIGITS = 5

MOST_ROWS = 128
"""Of a stored plan: one of more tokens is stored by blocks of them."""


@torch.no_grad()
def example_plans(
    net: nn.Module, batches: Iterable[Batch], precision: str, path: str, compiled: Attention
) -> dict[str, Any]:
    """The plans of teacher, ASAP and softmax on the first sample, in the head they differ most in.

    "Most" is the head whose teacher is furthest from row softmax: where the column step matters.
    Of long sequences they are those of blocks of `block` tokens.
    """
    q, k, _, mask = next(iter(layer_inputs(net, batches, precision)))[path][-1]
    methods = {
        "teacher": attention_layers(net)[path].attend,
        "asap": compiled,
        "softmax": SoftmaxAttention(),
    }
    plans = {name: attend.plan(q, k, key_padding_mask=mask)[0] for name, attend in methods.items()}
    distance = (plans["teacher"] - plans["softmax"]).abs().sum(dim=(-1, -2))
    head = int(distance.argmax())
    block = math.ceil(q.shape[2] / MOST_ROWS)
    return {
        "layer": path,
        "head": head,
        "block": block,
        "plans": {name: rounded(by_blocks(plan[head], block)) for name, plan in plans.items()},
    }


def by_blocks(plan: Tensor, block: int) -> Tensor:
    """What a block's queries give on average to a block of keys, from `[N, M]`.

    Row sums are then means over the block, and so are column sums where the last block is whole.
    """
    keys = torch.stack([part.sum(dim=1) for part in plan.split(block, dim=1)], dim=1)
    return torch.stack([part.mean(dim=0) for part in keys.split(block, dim=0)], dim=0)


def rounded(plan: Tensor) -> list[list[float]]:
    return [[round(x, DIGITS) for x in row] for row in plan.tolist()]
