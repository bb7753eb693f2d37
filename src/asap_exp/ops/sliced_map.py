"""A sliced map: the tensors from which a row dual is predicted, as one object."""

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, NamedTuple

from torch import Tensor

from asap_exp.ops.checks import check_device, check_tensor
from asap_exp.ops.features import FEATURES, Feature

if TYPE_CHECKING:

    class _Tensors(NamedTuple):
        theta: Tensor
        weight: Tensor
        query_weight: Tensor | None = None
        adaptive_weight: Tensor | None = None
        logit_weight: Tensor | None = None
        relaxation: Tensor | None = None

else:
    OPTIONAL = [*(feature.weight for feature in FEATURES.values()), "relaxation"]
    _Tensors = NamedTuple(
        "_Tensors",
        [("theta", Tensor), ("weight", Tensor), *((name, Tensor | None) for name in OPTIONAL)],
    )
    _Tensors.__new__.__defaults__ = (None,) * len(OPTIONAL)


class SlicedMap(_Tensors):
    """The tensors of a map: a field for each kind of features, None where it does not use them.

    `theta` `[H, L, D]` are the slices, at unit norm; `weight` `[H, L]` weighs their potentials.
    `query_weight` `[H, D + 1]`, `adaptive_weight` `[H, 5, L]` and `logit_weight` `[H, 3]` weigh
    features (`asap_exp.ops.features`). `relaxation` `[H]` says how far each further Sinkhorn update
    goes; None: plain updates.
    """

    __slots__ = ()

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor | None]) -> "SlicedMap":
        """Build the map of tensors by field; other entries are ignored."""
        return cls(**{name: tensors.get(name) for name in cls._fields})  # type: ignore[arg-type]

    def present(self) -> dict[str, Tensor]:
        """Return the tensors that there are, by field."""
        return {name: x for name, x in self._asdict().items() if x is not None}

    def features(self) -> Iterator[tuple[Feature, Tensor]]:
        """Yield each kind of features that the map uses, with its weight."""
        for feature in FEATURES.values():
            weight = getattr(self, feature.weight)
            if weight is not None:
                yield feature, weight

    def map(self, change: Callable[[Tensor], Tensor]) -> "SlicedMap":
        """Apply `change` to every tensor."""
        return SlicedMap.of({name: change(x) for name, x in self.present().items()})

    def heads(self, heads: slice) -> "SlicedMap":
        """Return the map of some heads."""
        return self.map(lambda x: x[heads])

    def validate(self) -> None:
        """Raise TypeError or ValueError if a tensor has another type, shape or device."""
        check_tensor("theta", self.theta, "[heads, slices, head_dim]", 3)
        heads, slices, head_dim = self.theta.shape
        check_tensor("weight", self.weight, "[heads, slices]", 2)
        layouts: dict[str, tuple[str, tuple[int, ...]]] = {
            "weight": ("[heads, slices]", (heads, slices))
        }
        for feature in FEATURES.values():
            shape = feature.shape(heads, slices, head_dim)
            layouts[feature.weight] = (feature.layout, shape)
        layouts["relaxation"] = ("[heads]", (heads,))
        for name, (layout, shape) in layouts.items():
            x = getattr(self, name)
            if x is None:
                continue
            check_tensor(name, x, layout, len(shape))
            check_device(name, x, self.theta)
            if x.shape != shape:
                raise ValueError(f"{name} must be {layout} = {shape}, got {tuple(x.shape)}")
