"""Equal attentions get equal configurations, so that they share a run directory."""

import pytest

from asap_exp.attention import canonical_options


@pytest.mark.parametrize(
    "written",
    [
        {"name": "sinkhorn"},
        {"name": "sinkhorn", "eps": 1},
        {"name": "sinkhorn", "num_iters": 20, "eps": 1.0, "backend": "auto"},
    ],
)
def test_defaults_are_filled_in(written: dict) -> None:
    canonical = canonical_options(written)
    assert canonical == {"name": "sinkhorn", "num_iters": 20, "eps": 1.0, "backend": "auto"}
    assert isinstance(canonical["eps"], float)
    assert isinstance(canonical["num_iters"], int)


def test_an_attention_without_options_stays_as_it_is() -> None:
    assert canonical_options({"name": "softmax"}) == {"name": "softmax"}
