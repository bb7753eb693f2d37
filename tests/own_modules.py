"""Modules of a user that register attentions and steps, and a process that has forgotten them."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

TEMPERED = '''
"""Sinkhorn attention at an inverse temperature."""
from typing import Annotated

from asap_exp.attention import SinkhornAttention, register
from asap_exp.core.config.fields import above


@register("tempered")
class TemperedAttention(SinkhornAttention):
    def __init__(
        self,
        *,
        num_iters: int = 4,
        sharpness: Annotated[float, above(0)] = 2.0,
        label: str | None = None,
    ) -> None:
        super().__init__(num_iters=num_iters, eps=1 / sharpness)
        self.sharpness, self.label = sharpness, label
'''

HALVED = '''
"""Halves the weights of every head."""
from dataclasses import dataclass
from typing import Annotated

from asap_exp.calibration.steps import LayerStep, register
from asap_exp.core.config.fields import above


@dataclass
class Settings:
    factor: Annotated[float, above(0)]
    word: str


@register("scaled")
class Scaled(LayerStep):
    settings = Settings(factor=0.5, word="half")

    def fit(self, attend, scale, data) -> None:
        attend.weight.mul_(self.settings.factor)
'''


@contextmanager
def own_modules(folder: Path, modules: dict[str, str]) -> Iterator[Callable[[], None]]:
    """Write modules that can be imported; yield what makes this process forget them.

    They are forgotten afterwards too.
    """
    from asap_exp.attention import ATTENTIONS
    from asap_exp.calibration.steps import STEPS
    from asap_exp.core import attention_options, plugins
    from tests.composed import _composed

    registries: list[dict] = [ATTENTIONS, STEPS, attention_options.REGISTERED]
    before = [dict(registry) for registry in registries]

    def forget() -> None:
        for registry, entries in zip(registries, before, strict=True):
            registry.clear()
            registry.update(entries)
        plugins._followed.clear()
        _composed.cache_clear()
        for name in modules:
            sys.modules.pop(name, None)

    for name, text in modules.items():
        (folder / f"{name}.py").write_text(text)
    sys.path.insert(0, str(folder))
    try:
        yield forget
    finally:
        forget()
        sys.path.remove(str(folder))
