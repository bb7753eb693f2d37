"""Attentions with parameters of their own, which the layer that they are put into gives a shape."""

from abc import abstractmethod
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from asap_exp.attention.base import Attention
from asap_exp.core.devices import device_of
from asap_exp.core.errors import UserError

GOLDEN = 0.6180339887498949


class LearnedAttention(Attention):
    """Attention with learned parameters, made when it becomes the `attend` of a layer.

    Their shapes are those of the layer's heads, and `build_attention` does not know them. Outside a
    layer it computes with the values of `start` for the heads that it is given, and learns nothing.
    """

    parameter_names: tuple[str, ...]
    """Names of the parameters; set by a subclass."""

    def __init__(self) -> None:
        super().__init__()
        for name in self.parameter_names:
            self.register_parameter(name, None)

    @abstractmethod
    def start(self, heads: int, head_dim: int, normal: Callable[..., Tensor]) -> dict[str, Tensor]:
        """Return the values to start from, by name; `normal(*shape)` makes standard normal ones."""

    def attach(self, layer: nn.Module) -> None:
        """Make the parameters for the heads of `layer`, on its device, from the global seed.

        Parameters that are there already stay. Raises UserError if those are for other heads.
        """
        device = device_of(layer)
        wanted = self.start(*heads_of(layer), lambda *shape: torch.empty(shape, device="meta"))
        found = {name: value for name in wanted if (value := getattr(self, name)) is not None}
        if not found:
            made = self.start(*heads_of(layer), lambda *shape: torch.randn(shape, device=device))
            for name, value in made.items():
                setattr(self, name, nn.Parameter(value))
            return
        check_shapes(self.name, wanted, found)

    def take(self, values: Mapping[str, Tensor]) -> None:
        """Make copies of `values` the parameters, frozen; `attach` refuses those of other heads."""
        for name, value in values.items():
            setattr(self, name, nn.Parameter(value.detach().clone(), requires_grad=False))

    def learned(self, q: Tensor, dtype: torch.dtype) -> dict[str, Tensor]:
        """Return the parameters as `dtype`, or where it has none the values to start from."""
        found = {name: getattr(self, name) for name in self.parameter_names}
        if all(value is None for value in found.values()):
            heads, head_dim = q.shape[1], q.shape[3]
            found = self.start(heads, head_dim, lambda *shape: quasi_normal(shape, q.device))
        return {name: value.to(dtype) for name, value in found.items() if value is not None}


def heads_of(layer: nn.Module) -> tuple[int, int]:
    """Return the number of heads of an attention layer, and their width."""
    heads, head_dim = (getattr(layer, name, None) for name in ("num_heads", "head_dim"))
    if not (isinstance(heads, int) and isinstance(head_dim, int)):
        raise UserError(
            f"an attention with learned parameters needs num_heads and head_dim of "
            f"{type(layer).__name__}; set both before attend"
        )
    return heads, head_dim


def check_shapes(name: str, wanted: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> None:
    """Raise UserError if parameters have other shapes than those heads need."""
    for parameter, value in found.items():
        if value.shape != wanted[parameter].shape:
            raise UserError(
                f"this {name} attention is of another layer: its {parameter} has shape "
                f"{tuple(value.shape)}, and these heads need {tuple(wanted[parameter].shape)}; "
                "build an attention for each layer"
            )


def quasi_normal(shape: tuple[int, ...], device: torch.device) -> Tensor:
    """Return a tensor of fixed values that are distributed as standard normal ones.

    It depends on the shape alone, and takes neither a generator nor a copy from the host.
    """
    count = int(torch.Size(shape).numel())
    order = torch.arange(1, count + 1, device=device, dtype=torch.float32)
    uniform = (order * GOLDEN + (order * order) * (GOLDEN / 7919)).remainder(1.0)
    return torch.special.ndtri(uniform.clamp(1e-4, 1 - 1e-4)).reshape(shape)
