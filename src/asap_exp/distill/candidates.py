"""Options of each layer, timed, and scored with only that layer replaced."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from asap_exp.attention import (
    Attention,
    LayerInputs,
    SinkhornAttention,
    SoftmaxAttention,
    attention_layers,
    swapped,
)
from asap_exp.calibration.calibrate import Calibration, calibrate
from asap_exp.calibration.capture import layer_inputs, sinkhorn
from asap_exp.calibration.coarse import coarse_attention
from asap_exp.calibration.config import FORMS, ONE_PASS, CalibrationConfig, CoarseKeys
from asap_exp.calibration.data import CalibrationData
from asap_exp.calibration.prediction_fit import divergence, log_probabilities
from asap_exp.calibration.truncation import shorter, truncations
from asap_exp.core.config import BudgetConfig
from asap_exp.core.console import progress, warn
from asap_exp.core.records.identity import CoarseRecipe
from asap_exp.core.records.words import coarse_duals_label, form_words, refine_words
from asap_exp.data.loader import BatchLoader
from asap_exp.distill.search import Candidate, ladder
from asap_exp.timing.accuracy_check import gate_error, passes
from asap_exp.timing.calls import as_graphs, layer_call, model_call
from asap_exp.timing.latency import interleaved_latency

SMALLEST_KL = 1e-12

Option = tuple[str, Attention]
"""Label and attention that a layer may become."""


@dataclass
class ValidationScorer:
    """Scores replacements of the teacher's attention on the validation split."""

    data: CalibrationData
    batches: BatchLoader
    budget: BudgetConfig

    def __post_init__(self) -> None:
        self.labels = torch.cat([labels.cpu() for _, labels in self.batches])
        self.teacher = self._log_probabilities({})

    @torch.no_grad()
    def _log_probabilities(self, attends: Mapping[str, Attention]) -> Tensor:
        net, precision, forward = self.data.net, self.data.precision, self.data.forward
        with swapped(net, attends):
            found = [log_probabilities(net, batch, precision, forward) for batch in self.batches]
        return torch.cat(found).cpu()

    def accuracy(self, attends: Mapping[str, Attention]) -> float:
        """Return the accuracy on the validation split, as a share."""
        predicted = (self._log_probabilities(attends) if attends else self.teacher).argmax(dim=-1)
        return (predicted == self.labels).double().mean().item()

    def prediction_kl(self, attends: Mapping[str, Attention]) -> float:
        """Return KL(teacher's predictions || those with `attends` in place), in nats."""
        found = self._log_probabilities(attends)
        return divergence(found, self.teacher).mean().item()

    def alone(self, path: str, attend: Attention) -> float:
        """Return the KL with one layer replaced, kept above the teacher's own, which is 0."""
        return max(self.prediction_kl({path: attend}), SMALLEST_KL)

    def timing_batch(self) -> Tensor:
        size = self.budget.latency.batch_size
        inputs, _ = next(iter(self.batches.first(size, size)))
        return inputs

    @torch.no_grad()
    def layer_ms(self, options: Mapping[str, Sequence[Option]]) -> dict[str, dict[str, float]]:
        """Return median milliseconds by layer and option, interleaved, on the teacher's inputs.

        An option too far from its float64 reference is not timed, and so not taken.
        """
        inputs, precision = self.timing_batch(), self.data.precision
        recorded = next(iter(layer_inputs(self.data.net, [(inputs, inputs)], precision)))
        calls = {
            (path, label): layer_call(attend, recorded[path][-1])
            for path, found in options.items()
            for label, attend in found
            if is_right(f"{path}, {label}", attend, recorded[path][-1])
        }
        ms: dict[str, dict[str, float]] = {path: {} for path in options}
        for (path, label), timing in self._timed(calls).items():
            ms[path][label] = timing["median"]
        return ms

    @torch.no_grad()
    def model_ms(self, plans: Mapping[str, Mapping[str, Attention]]) -> dict[str, float]:
        """Return median milliseconds of the whole model with each plan in it, interleaved."""
        inputs, net, precision = self.timing_batch(), self.data.net, self.data.precision
        calls = {name: model_call(net, plan, inputs, precision) for name, plan in plans.items()}
        return {name: timing["median"] for name, timing in self._timed(calls).items()}

    def _timed(self, calls: Mapping) -> dict:
        device = self.timing_batch().device
        latency = self.budget.latency.on("budget.latency", device.type)
        if latency.cuda_graph:
            # The search adds times of layers and models: one clock for all
            calls, _ = as_graphs(calls, asked_by="budget.latency.cuda_graph")
        return interleaved_latency(calls, device, rounds=latency.rounds)


def is_right(label: str, attend: Attention, inputs: LayerInputs) -> bool:
    """Return True if the attention is accurate enough to be timed; warn if not."""
    error = gate_error(attend, inputs)
    if not passes(error, inputs.v.dtype):
        warn(f"{label} is wrong by {error:.2g} (relative RMS against float64); left out")
        return False
    return True


def make_options(
    data: CalibrationData, paths: Sequence[str], budget: BudgetConfig
) -> tuple[dict[str, list[Option]], dict[str, Calibration]]:
    """Return the options of each layer, the teacher's own attention last, and the fits of ASAP."""
    layers = attention_layers(data.net)
    configs = [
        with_slices(data.config, slices, refine)
        for slices in budget.slices
        for refine in budget.refine
    ]
    fits = {}
    for number, config in enumerate(configs, 1):
        label = option_label(config)
        data.progress.line(f"Candidate {number} of {len(configs)}: {label}")
        fits[label] = calibrate(replace(data, config=config), paths)
    # All layers of a teacher have the same options.
    cuts = shorter(truncations(budget), sinkhorn(layers[paths[0]]).num_iters)
    options: dict[str, list[Option]] = {}
    for path in paths:
        teacher = sinkhorn(layers[path])
        options[path] = [
            ("softmax", SoftmaxAttention()),
            *((cut.label, cut.attention(teacher.eps)) for cut in cuts),
            *((label, fit.maps[path]) for label, fit in fits.items()),
            *coarse_options(teacher, data.config.coarse, budget.coarse_tokens),
            (f"the teacher's, {teacher.updates}", teacher),
        ]
    return options, fits


def coarse_options(
    teacher: SinkhornAttention, keys: CoarseKeys, sizes: Sequence[int]
) -> list[Option]:
    """Return coarse duals without a fit of these sizes, in both forms, labelled with both.

    Which tokens of that number, and how many updates, say `keys`. There are none for an attention
    whose updates are not those of Sinkhorn.
    """
    found: list[Option] = []
    for tokens in sizes if teacher.name == SinkhornAttention.name else ():
        mine = replace(keys, tokens=tokens)
        for form in FORMS:
            label = coarse_duals_label(CoarseRecipe(**mine.identity()), form)
            found.append((label, coarse_attention(teacher, mine, one_pass=form == ONE_PASS)))
    return found


def option_label(config: CalibrationConfig) -> str:
    """Return the label of ASAP with this calibration."""
    form = refine_words(config.refine, config.relaxes)
    if config.form == ONE_PASS:
        form = form_words(config.form)
    return f"ASAP, {config.slices} slices, {form}"


def with_slices(config: CalibrationConfig, slices: int, refine: int) -> CalibrationConfig:
    """Return the calibration with other slices, chosen among at least as many candidates."""
    candidates = max(config.candidates, slices)
    return replace(config, slices=slices, candidates=candidates, refine=refine)


def make_ladders(
    scorer: ValidationScorer,
    options: Mapping[str, Sequence[Option]],
    ms: Mapping[str, Mapping[str, float]],
) -> dict[str, list[Candidate]]:
    """Score every option with only its layer replaced; keep the useful ones per layer."""
    layers = attention_layers(scorer.data.net)
    ladders = {}
    for path, found in progress(options.items(), "Scoring", len(options)):
        own = layers[path].attend
        candidates = [
            Candidate(
                label, attend, ms[path][label], 0.0 if attend is own else scorer.alone(path, attend)
            )
            for label, attend in found
            if label in ms[path]
        ]
        ladders[path] = ladder(candidates)
    return ladders
