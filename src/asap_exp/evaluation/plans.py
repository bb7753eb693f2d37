"""One attention plan, three ways, to look at."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from asap_exp.attention import Attention, SoftmaxAttention, attention_layers
from asap_exp.data.loader import Batch
from asap_exp.distillation.capture import layer_inputs

DIGITS = 5


@torch.no_grad()
def example_plans(
    net: nn.Module, batches: Iterable[Batch], precision: str, path: str, compiled: Attention
) -> dict[str, Any]:
    """The plans of teacher, ASAP and softmax on the first sample, in the head they differ most in.

    "Most" is the head whose teacher is furthest from row softmax: where the column step matters.
    """
    q, k, _, mask = next(iter(layer_inputs(net, batches, precision)))[path]
    methods = {
        "teacher": attention_layers(net)[path].attend,
        "asap": compiled,
        "softmax": SoftmaxAttention(),
    }
    plans = {name: attend.plan(q, k, key_padding_mask=mask)[0] for name, attend in methods.items()}
    distance = (plans["teacher"] - plans["softmax"]).abs().sum(dim=(-1, -2))
    head = int(distance.argmax())
    return {
        "layer": path,
        "head": head,
        "plans": {name: rounded(plan[head]) for name, plan in plans.items()},
    }


def rounded(plan: Tensor) -> list[list[float]]:
    return [[round(x, DIGITS) for x in row] for row in plan.tolist()]
