"""Example plans of teacher, ASAP and softmax on one sample."""

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
"""Largest number of rows of a stored plan; a larger plan is averaged over blocks of tokens."""


@torch.no_grad()
def example_plans(
    net: nn.Module, batches: Iterable[Batch], precision: str, path: str, compiled: Attention
) -> dict[str, Any]:
    """Return the plans of teacher, ASAP and softmax on the first sample, in one head.

    The head is the one whose teacher is furthest from row softmax: where the column step matters.
    For long sequences the plans are averaged over blocks of `block` tokens.
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
    """Average a plan `[N, M]` over blocks: mean mass that a block's queries give a block of keys.

    Row sums are then means over the block, and so are column sums if the last block is complete.
    """
    keys = torch.stack([part.sum(dim=1) for part in plan.split(block, dim=1)], dim=1)
    return torch.stack([part.mean(dim=0) for part in keys.split(block, dim=0)], dim=0)


def rounded(plan: Tensor) -> list[list[float]]:
    return [[round(x, DIGITS) for x in row] for row in plan.tolist()]
