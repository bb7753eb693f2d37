"""A sliced map: the tensors from which a dual is predicted, as one object."""

from collections import namedtuple
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from torch import Tensor

from asap_exp.ops.checks import check_device, check_switch, check_tensor
from asap_exp.ops.coarse_settings import CoarseSettings
from asap_exp.ops.features import FEATURES, Feature

if TYPE_CHECKING:

    class _Tensors(NamedTuple):
        theta: Tensor
        weight: Tensor
        query_weight: Tensor | None = None
        adaptive_weight: Tensor | None = None
        logit_weight: Tensor | None = None
        coarse_weight: Tensor | None = None
        relaxation: Tensor | None = None
        coarse: CoarseSettings | None = None
        one_pass: bool = False

else:
    OPTIONAL = [*(feature.weight for feature in FEATURES.values()), "relaxation", "coarse"]
    _Tensors = namedtuple(
        "_Tensors",
        ["theta", "weight", *OPTIONAL, "one_pass"],
        defaults=[*[None] * len(OPTIONAL), False],
    )

MAP_TENSORS = _Tensors._fields[:-2]
"""Fields of a map that are tensors: all but `coarse` and `one_pass`."""


class SlicedMap(_Tensors):
    """A map: its tensors, a field for each kind of features, None where it does not use them.

    `theta` `[H, L, D]` are the slices, at unit norm; `weight` `[H, L]` weighs their potentials.
    `query_weight` `[H, D + 1]`, `adaptive_weight` `[H, 5, L]`, `logit_weight` `[H, 3]` and
    `coarse_weight` `[H, 1]` weigh features (`asap_exp.ops.features`). `relaxation` `[H]` says how
    far each further Sinkhorn update goes; None: plain updates. No tensors are `coarse`, which says
    which tokens the coarse dual is made of, and `one_pass`: whether the map predicts the dual of
    the keys, a bias of row softmax, instead of that of the queries, whose closure is taken. Its
    features are then those of the keys, with queries and keys in each other's place.
    """

    __slots__ = ()

    @classmethod
    def of(cls, fields: Mapping[str, Any]) -> "SlicedMap":
        """Build the map of tensors, and settings, by field; other entries are ignored."""
        defaults = dict.fromkeys(cls._fields) | cls._field_defaults
        return cls(**{name: fields.get(name, default) for name, default in defaults.items()})

    @property
    def tensors(self) -> tuple[Tensor | None, ...]:
        """The tensors in the order of their fields."""
        return cast(tuple[Tensor | None, ...], self[: len(MAP_TENSORS)])

    def present(self) -> dict[str, Tensor]:
        """Return the tensors that there are, by field."""
        named = zip(MAP_TENSORS, self.tensors, strict=True)
        return {name: x for name, x in named if x is not None}

    def features(self) -> Iterator[tuple[Feature, Tensor]]:
        """Yield each kind of features that the map uses, with its weight."""
        for feature in FEATURES.values():
            weight = getattr(self, feature.weight)
            if weight is not None:
                yield feature, weight

    def map(self, change: Callable[[Tensor], Tensor]) -> "SlicedMap":
        """Apply `change` to every tensor."""
        changed = {name: change(x) for name, x in self.present().items()}
        return SlicedMap.of({**self._asdict(), **changed})

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
        check_switch("one_pass", self.one_pass)
        if self.coarse is not None:
            self.coarse.validate()
            if self.coarse_weight is None:
                raise ValueError(
                    f"coarse={self.coarse} chooses the tokens of a coarse dual that no weight adds "
                    "to the map; give coarse_weight [heads, 1] too, or leave coarse out"
                )
        elif self.coarse_weight is not None:
            raise ValueError(
                "coarse_weight weighs a coarse dual, but the map does not say of which tokens; "
                "give coarse=CoarseSettings(tokens) too"
            )
