"""Errors of gradients through the last updates of a trained teacher."""

import pytest

from asap_exp.core.errors import UserError
from asap_exp.evaluate.gradient_error import rows
from tests.conftest import Pipeline


def test_more_updates_are_nearer_to_all_of_them(shared_pipeline: Pipeline) -> None:
    place = shared_pipeline.teacher.path
    all_of_them = shared_pipeline.teacher.config.attention["num_iters"]
    exact, *cut = rows(place, [1, 2, all_of_them], 8)
    assert (exact.updates, exact.relative, exact.cosine) == (None, 0.0, 1.0)
    assert cut[0].relative > cut[1].relative > 0
    assert cut[0].cosine < cut[1].cosine < 1
    assert cut[2].relative == 0
    with pytest.raises(UserError, match=f"--updates {all_of_them + 1} is not allowed"):
        next(rows(place, [all_of_them + 1], 8))
    with pytest.raises(UserError, match="--samples 0 is not allowed"):
        next(rows(place, [1], 0))


def test_another_attention_is_refused(shared_pipeline: Pipeline) -> None:
    with pytest.raises(UserError, match="attention=softmax; give a run with attention=sinkhorn"):
        next(rows(shared_pipeline.softmax.path, [1], 8))
