"""Column errors on a model's own activations, and their ratio to those at calibration."""

import pytest
import torch
from torch import Tensor, nn

from asap_exp.attention import SinkhornAttention, SoftmaxAttention, attention_layers, swapped
from asap_exp.attention.diagnostics import column_error
from asap_exp.calibration.drift import column_errors, drift_ratios
from asap_exp.core.errors import UserError
from tests.small_model import Classifier, batches


def test_errors_are_those_of_the_plans_that_the_model_itself_runs() -> None:
    """Of the second layer behind a changed first one, over samples and heads alike."""
    net = Classifier().eval()
    data = batches(1, rows=10) + batches(2, rows=30)
    with swapped(net, {"first": SoftmaxAttention()}):
        found = column_errors(net, data, ["second"], "32-true")
        x = torch.cat([batch for batch, _ in data])
        hidden = x + net.first(x)
    q, k, _ = net.second.qkv(hidden).unflatten(-1, (3, 2, 8)).permute(2, 0, 3, 1, 4)
    plan = SinkhornAttention(num_iters=8).plan(q, k)
    assert found == pytest.approx({"second": column_error(plan).mean().item()}, rel=1e-4)
    teacher = column_errors(net, data, attention_layers(net), "32-true")
    assert teacher["second"] != pytest.approx(found["second"], rel=1e-2)


def test_errors_are_means_over_all_calls_of_a_layer() -> None:
    net, data = Classifier().eval(), batches(1, 2)

    def again(model: nn.Module, batch: tuple[Tensor, None]) -> Tensor:
        return model.first(model.first(batch[0]))

    def second_call(model: nn.Module, batch: tuple[Tensor, None]) -> Tensor:
        return model.first(first_output[id(batch)])

    first_output = {id(batch): net.first(batch[0]).detach() for batch in data}
    once, last, both = (
        column_errors(net, data, ["first"], "32-true", forward)["first"]
        for forward in (lambda model, batch: model.first(batch[0]), second_call, again)
    )
    assert once != pytest.approx(last, rel=1e-2)
    assert both == pytest.approx((once + last) / 2)


def test_layer_that_does_not_run_is_refused() -> None:
    with pytest.raises(UserError, match=r"did not run the attention layer at second on batch 1"):
        column_errors(
            Classifier(), batches(1), ["second"], "32-true", lambda net, batch: net.first(batch[0])
        )


def test_ratio_is_now_over_then() -> None:
    assert drift_ratios({"a": 0.3, "b": 0.2}, {"a": 0.1, "b": 0.2, "c": 1}) == pytest.approx(
        {"a": 3, "b": 1}
    )


def test_columns_without_error_have_not_drifted_and_may_drift() -> None:
    """Of one token, or of uniform attention, the columns are exact."""
    exact = {"a": 0.0, "b": 0.0}
    assert drift_ratios(exact, exact) == {"a": 1, "b": 1}
    drifted = drift_ratios({"a": 0.1, "b": 1e-9}, exact)
    assert 1e5 < drifted["a"] < float("inf")
    assert drifted["b"] == 1
