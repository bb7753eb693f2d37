"""Calls to be timed: a layer or a whole model, optionally as a CUDA graph."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from asap_exp.attention import Attention, LayerInputs, swapped
from asap_exp.core.console import say
from asap_exp.core.cuda_graph import first_line, graphed
from asap_exp.core.devices import autocast
from asap_exp.core.errors import UserError
from asap_exp.timing.latency import Prepare

Key = TypeVar("Key")


def layer_call(attend: nn.Module, inputs: LayerInputs) -> Prepare:
    """Return the call of one attention on recorded inputs."""
    q, k, v, mask = inputs
    return lambda: nullcontext(lambda: attend(q, k, v, key_padding_mask=mask))


def model_call(
    net: nn.Module, replacements: Mapping[str, Attention], inputs: Any, precision: str
) -> Prepare:
    """Return the call of the whole network with `replacements` in place, under autocast."""

    @contextmanager
    def prepare() -> Iterator[Callable[[], Tensor]]:
        with swapped(net, replacements):

            def call() -> Tensor:
                with autocast(precision, inputs.device):
                    return net(inputs)

            yield call

    return prepare


def as_graphs(
    calls: Mapping[Key, Prepare], *, asked_by: str | None = None
) -> tuple[dict[Key, Prepare], bool]:
    """Return the calls as CUDA graphs, and True.

    If one cannot be recorded, say so, and return all as they are, and False: calls are compared
    only with calls that are timed the same way. With `asked_by`, the setting that asked for graphs,
    raise UserError instead.
    """
    pool = torch.cuda.graph_pool_handle() if torch.cuda.is_available() else None
    try:
        return {key: captured(prepare, pool) for key, prepare in calls.items()}, True
    except RuntimeError as error:
        if asked_by:
            raise UserError(
                f"a call cannot be recorded as a CUDA graph ({first_line(error)}); set "
                f"{asked_by}=false, which times the host too"
            ) from error
        say(f"Timing without CUDA graphs: a call cannot be recorded ({first_line(error)})")
        return dict(calls), False


def captured(prepare: Prepare, pool: Any = None) -> Prepare:
    """Return the same call as a CUDA graph; graphs of one `pool` share its memory."""
    with prepare() as call:
        replay = graphed(call, pool)
    return lambda: nullcontext(replay)
