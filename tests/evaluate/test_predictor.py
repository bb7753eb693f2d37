"""Predictions by recorded passes are the ordinary ones, and stay when others are made."""

import torch
from torch import nn

from asap_exp.core.cuda_graph import Recorder
from asap_exp.evaluate.accuracy import predictor
from asap_exp.evaluate.variants import Variant

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@torch.inference_mode()
def test_recorded_predictions_are_the_ordinary_ones_and_are_kept() -> None:
    nets = [nn.Linear(3, 5).to(DEVICE) for _ in range(2)]
    variants = [Variant(str(i), str(i), "teacher", net, []) for i, net in enumerate(nets)]
    recorder = Recorder() if DEVICE == "cuda" else Recorder(record=lambda call, pool: call)
    plain = [predictor(variant, "32-true", None) for variant in variants]
    graphs = [predictor(variant, "32-true", recorder) for variant in variants]
    batches = [torch.randn(rows, 3, device=DEVICE) for rows in (4, 4, 4, 2)]
    found = [[predict(batch) for predict in graphs] for batch in batches]
    expected = [[predict(batch) for predict in plain] for batch in batches]
    torch.testing.assert_close(found, expected)
    assert recorder.count == 2
