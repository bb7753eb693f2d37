"""The configuration of the stage `distill`."""

from dataclasses import asdict, dataclass, field
from typing import Annotated, Any

from asap_exp.core.config.fields import (
    LARGEST_SETTING,
    MOST_REPEATS,
    Counts,
    Distinct,
    Relaxation,
    above,
    at_least,
    at_most,
    one_of,
    within,
)
from asap_exp.core.config.shared import (
    LatencyConfig,
)
from asap_exp.core.errors import UserError


@dataclass
class LayerConfig:
    which: Annotated[str, one_of("frozen", "all", "first", "last", "index")]
    index: Annotated[int | None, at_least(0)] = None

    def __post_init__(self) -> None:
        if self.which == "index" and self.index is None:
            raise UserError("layer.index is missing; give one, for example layer.index=3")
        if self.which != "index" and self.index is not None:
            raise UserError(
                f"layer.index={self.index} is read only with layer=index, not with {self.which}"
            )


@dataclass
class BudgetConfig:
    """Budget for a compiled model; at most one of the first two fields is set."""

    accuracy_drop: Annotated[float | None, within(0, 100)]
    latency_ratio: Annotated[float | None, above(0), at_most(LARGEST_SETTING)]
    slices: Counts
    refine: Annotated[list[int], at_least(0), at_most(MOST_REPEATS), Distinct()]
    truncations: Counts
    relaxed_truncations: Counts
    relaxation: Relaxation
    latency: LatencyConfig
    coarse_tokens: Counts = field(default_factory=list)

    def __post_init__(self) -> None:
        if None not in (self.accuracy_drop, self.latency_ratio):
            raise UserError(
                f"budget.accuracy_drop={self.accuracy_drop} and "
                f"budget.latency_ratio={self.latency_ratio} are two budgets; give one of them"
            )
        if self.coarse_tokens and not self.asked:
            raise UserError(
                f"budget.coarse_tokens={list(self.coarse_tokens)} has no effect without a budget; "
                "set budget.accuracy_drop or budget.latency_ratio, or for coarse duals alone "
                "calibration=coarse calibration.coarse.tokens=64"
            )

    @property
    def asked(self) -> bool:
        return self.accuracy_drop is not None or self.latency_ratio is not None

    def identity(self) -> dict[str, Any]:
        """Return what decides the result; a key that older runs lack is left out where empty."""
        found = asdict(self)
        return (
            found
            if self.coarse_tokens
            else {k: x for k, x in found.items() if k != "coarse_tokens"}
        )
