"""Recording of what the attention layers of a model receive."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from asap_exp.attention.base import Attention
from asap_exp.attention.swapping import attention_layers


class LayerInputs(NamedTuple):
    """Inputs of one attention layer: q, k, v `[B, H, N, D]` and the mask `[B, N]` or None."""

    q: Tensor
    k: Tensor
    v: Tensor
    key_padding_mask: Tensor | None

    def of_samples(self, part: slice) -> "LayerInputs":
        """Return the inputs of a slice of the batch."""
        q, k, v, mask = self
        return LayerInputs(q[part], k[part], v[part], None if mask is None else mask[part])

    def copied(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return copies of q, k and the mask, whose memory the model does not fill in later passes.

        They are contiguous: q and k may be views that would keep the values' memory too.
        """
        q, k = (x.clone(memory_format=torch.contiguous_format) for x in (self.q, self.k))
        return q, k, None if self.key_padding_mask is None else self.key_padding_mask.clone()


@contextmanager
def record_inputs(model: nn.Module) -> Iterator[dict[str, list[LayerInputs]]]:
    """Record q, k, v and the mask of every layer call, in a list per layer path.

    A layer that runs several times, in one or more forward passes, has as many entries. Compiled
    modules run eagerly meanwhile, because graphs compiled without the hook would skip it.
    """
    recorded: dict[str, list[LayerInputs]] = {}
    layers = attention_layers(model)
    running = ""

    def entering(path: str) -> Callable:
        def hook(*_: Any) -> None:
            nonlocal running
            running = path

        return hook

    def recorder(paths: list[str]) -> Callable:
        def hook(_: nn.Module, args: tuple, kwargs: dict) -> None:
            path = running if running in paths else paths[0]
            q, k, v = (t.detach() for t in args)
            mask = kwargs.get("key_padding_mask")
            recorded.setdefault(path, []).append(LayerInputs(q, k, v, mask))

        return hook

    sharing: dict[Attention, list[str]] = {}  # several layers may share one attention
    for path, layer in layers.items():
        sharing.setdefault(layer.attend, []).append(path)
    handles = [layer.register_forward_pre_hook(entering(path)) for path, layer in layers.items()]
    handles += [
        attend.register_forward_pre_hook(recorder(paths), with_kwargs=True)
        for attend, paths in sharing.items()
    ]
    try:
        with torch.compiler.set_stance("force_eager"):
            yield recorded
    finally:
        for handle in handles:
            handle.remove()
