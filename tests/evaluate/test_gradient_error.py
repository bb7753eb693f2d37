"""Errors of cheaper gradients of a trained teacher."""

import pytest
import torch

from asap_exp.core.errors import UserError
from asap_exp.evaluate import gradient_error
from asap_exp.evaluate.gradient_error import Measured, given, row_of, rows
from tests.conftest import Pipeline


@pytest.mark.slow
def test_more_updates_or_steps_are_nearer_to_the_exact_gradient(shared_pipeline: Pipeline) -> None:
    place = shared_pipeline.teacher.path
    all_of_them = shared_pipeline.teacher.config.attention["num_iters"]
    names = ("gradient_updates", "gradient_updates", "gradient_updates", "implicit_steps")
    cases = [dict([case]) for case in zip(names, (1, 2, all_of_them, 9), strict=True)]
    exact, *cut, implicit = rows(place, cases, 8)
    assert (exact.words, exact.relative, exact.kl, exact.time) == ("exact", 0.0, 0.0, 1.0)
    assert exact.cosine == pytest.approx(1.0)
    assert [row.words for row in cut[:2]] == ["gradient_updates=1", "gradient_updates=2"]
    assert cut[0].relative > cut[1].relative > 0
    assert cut[0].cosine < cut[1].cosine < 1
    assert cut[2].relative == 0
    assert implicit.relative > 0
    for row in (*cut, implicit):
        assert row.kl == 0
        assert row.column_error == exact.column_error > 0
        assert row.time > 0
    assert implicit.mib < exact.mib


def test_a_row_compares_with_the_exact_gradient_and_its_predictions() -> None:
    log_p, log_q = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0)).log_softmax(-1)
    exact = Measured(torch.tensor([3.0, 4.0]), log_p, 0.1, 2.0)
    row = row_of("half as long", Measured(torch.tensor([0.0, 4.0]), log_q, 0.2, 1.0), exact, 0.5)
    assert (row.relative, row.cosine) == pytest.approx((3 / 5, 4 / 5))
    assert row.kl == pytest.approx(float((log_p.exp() * (log_p - log_q)).sum() / 5))
    assert (row.column_error, row.time, row.mib) == (0.2, 0.5, 1.0)


@pytest.mark.slow
def test_time_is_relative_to_the_exact_gradients(
    shared_pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    def seconds(net: object, batch: object, attention: dict) -> float:
        return 2.0 if attention.get("gradient_updates") == 1 else 8.0

    monkeypatch.setattr(gradient_error, "seconds", seconds)
    _, row = rows(shared_pipeline.teacher.path, [{"gradient_updates": 1}], 8, passes=3)
    assert row.time == 0.25


@pytest.mark.slow
def test_another_attention_has_other_plans(shared_pipeline: Pipeline) -> None:
    place = shared_pipeline.teacher.path
    cases = [
        {"num_iters": 1},
        given("coarse", ["tokens=2", "refine=1"]),
        given("softmax", []),
        given("coarse", ["tokens=99"]),
    ]
    exact, few, coarse, softmax, everything = rows(place, cases, 8, passes=2)
    assert (few.words, coarse.words) == ("num_iters=1", "coarse tokens=2, refine=1")
    for row in (few, coarse, softmax):
        assert min(row.kl, row.relative, row.column_error - exact.column_error) > 0
    assert everything.relative < 1e-5, "the teacher's own plans"


def test_what_cannot_be_measured_is_refused(shared_pipeline: Pipeline) -> None:
    place = shared_pipeline.teacher.path
    with pytest.raises(UserError, match=r"attention\.gradient_updates=0 is not allowed"):
        next(rows(place, [{"gradient_updates": 0}], 8))
    with pytest.raises(UserError, match="token=3 is not an option of attention=coarse"):
        next(rows(place, [given("coarse", ["token=3"])], 8))
    with pytest.raises(UserError, match="--attention coarse refine is not allowed; write refine="):
        given("coarse", ["refine"])
    for name in ("samples", "passes"):
        with pytest.raises(UserError, match=f"--{name} 0 is not allowed"):
            next(rows(place, [], **{"samples": 8, name: 0}))
    with pytest.raises(UserError, match="attention=softmax; give a run with attention=sinkhorn"):
        next(rows(shared_pipeline.softmax.path, [], 8))
