"""Identity hashes of calibrations as finished runs carry them: recorded once, never to change."""

import pytest
import torch

from asap_exp.core.composing import compose
from asap_exp.core.runs import short_hash
from asap_exp.distill.config import DistillConfig
from asap_exp.distill.distill import artifact_key, with_timing

PATHS = ["blocks.0.attn", "blocks.1.attn"]

RECORDED = {
    "": ("ae28e5f9", "7558fee5"),
    "calibration=kl": ("00d186d5", "44e67fb6"),
    "calibration=kl calibration.kl.lr=1 calibration.end_to_end.updates=7": ("12d29a7a", "1ea478bf"),
    "calibration=learned_slices": ("30382de1", "b4d575a0"),
    "calibration=learned_slices calibration.adaptive=false": ("a421fa1d", "0e4b5a93"),
    "calibration=learned_slices calibration.logits=true calibration.seed=3": (
        "a654611a",
        "81bfc96d",
    ),
    "calibration=learned_slices calibration.refine=1 calibration.relaxed=true": (
        "11ae715c",
        "c033e2f5",
    ),
    "calibration=learned_slices calibration.learned_slices.updates=20 calibration.kl.updates=3": (
        "0b37e36c",
        "f40c261c",
    ),
    "calibration=sequential": ("2bb780c9", "93225b84"),
    "calibration=end_to_end": ("65bb612c", "b85e52e3"),
    "calibration=end_to_end calibration.refine=1 "
    "calibration.slices=4 calibration.end_to_end.lr=0.002": (
        "3786d3a7",
        "6eaefad0",
    ),
    "calibration.steps=[ridge,kl,learned_slices,end_to_end] calibration.query_features=true": (
        "2fab2e3a",
        "5b99bccc",
    ),
    "calibration.relaxed=true calibration.refine=2": ("f4c33861", "88526001"),
    "calibration.query_features=true calibration.slices=2 calibration.candidates=64": (
        "82501dc7",
        "362bc8ff",
    ),
    "calibration.ridge=1e-3 calibration.memory_mib=64 "
    "calibration.samples=32 calibration.batch_size=16": (
        "7bfef8d2",
        "38d424a8",
    ),
    "budget.accuracy_drop=1": ("ae28e5f9", "c51a4bd2"),
    "calibration=learned_slices budget.latency_ratio=0.5 budget.refine=[0,2]": (
        "30382de1",
        "79c11439",
    ),
    "calibration=kl calibration.relaxed=true budget.accuracy_drop=0.2 calibration.refine=3": (
        "e8928229",
        "5ee16c16",
    ),
}
"""By overrides of `distill`: the hash of the calibration's identity, and of the artifact's key."""


@pytest.mark.parametrize("overrides", RECORDED)
def test_hashes_are_those_of_finished_runs(overrides: str) -> None:
    config = compose("distill", overrides.split(), DistillConfig)
    config = with_timing(config, torch.device("cpu"))
    identity, key = config.calibration.identity(), artifact_key(config, PATHS)
    assert (short_hash(identity), short_hash(key)) == RECORDED[overrides]
