"""Compile a model: read batches, fit the maps of its Sinkhorn layers, swap them in."""

import copy
import inspect
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import nn

from asap_exp.attention import swap_attention
from asap_exp.calibration.artifact import make_artifact
from asap_exp.calibration.batches import call, content_hash, num_samples, on_copies, read
from asap_exp.calibration.calibrate import calibrate
from asap_exp.calibration.capture import Forward
from asap_exp.calibration.config import FORMS, CalibrationConfig, calibration_schema
from asap_exp.calibration.data import CalibrationData
from asap_exp.calibration.drift import column_errors
from asap_exp.compiling.arguments import (
    PREFIX,
    check_forward,
    check_has_weights,
    check_loader,
    check_more,
    check_relaxed,
    check_shares,
    check_steps,
    check_switches,
    check_whole_numbers,
    in_words_of_arguments,
    sinkhorn_paths,
)
from asap_exp.compiling.coarse import check_not_given, compile_coarse
from asap_exp.compiling.drifting import PRECISIONS
from asap_exp.compiling.saving import in_words_of_the_library, remember, teacher_identity
from asap_exp.compiling.summary import summary
from asap_exp.compiling.wrappers import check_model
from asap_exp.core.agreement import apart
from asap_exp.core.console import Progress
from asap_exp.core.devices import device_of
from asap_exp.core.errors import check_choice, check_range
from asap_exp.core.schema import check_fields
from asap_exp.ops.backend import BACKENDS

METHODS = ("asap", "coarse")

CANDIDATES = 32
"""Random slices among which those of a map are chosen, if it has no more than these."""


@torch.inference_mode(False)
@apart()
def compile(
    model: nn.Module,
    loader: Iterable[Any] | None = None,
    *,
    method: str = "asap",
    steps: Sequence[str] = ("ridge",),
    slices: int = 8,
    candidates: int | None = None,
    query_features: bool = True,
    adaptive: bool = True,
    logits: bool = False,
    refine: int = 0,
    one_pass: bool = False,
    relaxed: bool = False,
    sequential: bool = False,
    ridge: float = 1e-6,
    layers: Sequence[str] | None = None,
    samples: int = 512,
    holdout: float = 0.2,
    memory_mib: int = 4096,
    precision: str = "32-true",
    forward: Forward = call,
    backend: str = "auto",
    seed: int = 0,
    progress: bool = True,
    **more: Any,
) -> nn.Module:
    """Return a copy of `model` with its Sinkhorn layers compiled to ASAP, or made coarse.

    The copy is in evaluation mode and frozen (`requires_grad_()` lets it train); `model`, which
    holds layers with `SinkhornAttention`, is left unchanged. `layers` names the paths of those to
    compile; the default is all. `loader` yields batches: tensors, or tuples, lists, mappings or
    dataclasses of them. It is read once until there are two batches and `samples` samples; labels
    are not needed. The last of these batches, a share of `holdout`, are used to stop the gradient
    steps early and for what is printed. `forward` runs a model on one batch; for `end_to_end` it
    must return predictions `[..., classes]`. `precision` is that of inference: 32-true, bf16-mixed
    or 16-mixed. `backend` is that of the operators; `torch.export` can trace "reference" on a GPU.

    With `one_pass` a map predicts the dual of the keys instead of that of the queries: row softmax
    with it as a bias of the keys is the whole operator, without a column step, so that columns are
    as even as the map is exact (calibration.form=one_pass; docs/coarse.md).

    The default is a regression on the best of 32 random `candidates`, or of as many as `slices`. It
    takes seconds; docs/own_model.md says what other choices cost and gain. The other keywords are
    the keys of conf/distill/calibration/; `more` are the settings of the steps by name, for example
    `kl=asap_exp.calibration.steps.AdamFit(updates=300, lr=0.03)`, and
    `coarse=asap_exp.calibration.config.CoarseKeys(tokens=64)` makes coarse duals a feature.
    `end_to_end` overfits a thousand samples: pass several thousand. A layer that runs more than
    once in a forward pass is fitted to all its calls. The function also works under `no_grad`.

    With `progress` it shows, on stderr, what it does and how close each layer came.

    `method="coarse"` fits nothing and takes no loader: the layers become `CoarseAttention` with
    their own T and eps. It reads `layers`, `backend`, `seed` and, in `more`, the other options of
    that attention: tokens, subset, weights and grid_width, and `one_pass`. `save_compiled` and
    `load_compiled` take such a model, whose state_dict has no other tensors than the teacher's
    beside what the layers are; `drift` refuses it.

    Raises UserError if the model has no Sinkhorn layer or is in a wrapper (`torch.compile`, DDP),
    the loader yields fewer than two batches, or queries and keys are not finite on one of them.
    """
    numbers: dict[str, Any] = {
        "slices": slices,
        "refine": refine,
        "memory_mib": memory_mib,
        "seed": seed,
    }
    switches = {
        "query_features": query_features,
        "adaptive": adaptive,
        "logits": logits,
        "relaxed": relaxed,
        "sequential": sequential,
    }
    check_model(model, "compile")
    check_choice("method", method, METHODS)
    if method == "coarse":
        fit_alone = {name: value for name, value in numbers.items() if name != "seed"}
        check_not_given(
            compile,
            loader=loader,
            steps=steps,
            ridge=ridge,
            samples=samples,
            holdout=holdout,
            precision=precision,
            forward=forward,
            candidates=candidates,
            **fit_alone,
            **switches,
        )
        check_switches(progress=progress)
        options = {"one_pass": one_pass, **more}
        return compile_coarse(model, layers, options, seed=seed, backend=backend, progress=progress)
    check_loader(loader)
    check_whole_numbers(samples=samples, **numbers)
    numbers["candidates"] = max(CANDIDATES, slices) if candidates is None else candidates
    check_whole_numbers(candidates=numbers["candidates"])
    steps = check_steps(steps)
    check_more(more, steps, inspect.signature(compile).parameters)
    check_switches(progress=progress, one_pass=one_pass, **switches)
    check_relaxed(relaxed, refine, steps)
    check_shares(holdout=holdout, ridge=ridge)
    check_range("samples", samples, minimum=2)
    check_forward(forward)
    check_choice("precision", precision, PRECISIONS)
    check_choice("backend", backend, BACKENDS)
    check_has_weights(model)
    paths = sinkhorn_paths(model, layers)
    teacher = teacher_identity(model, paths)  # before the fit, which takes longer
    assert loader is not None, "checked"
    forward = on_copies(forward)
    batches = read(loader, samples, device_of(model))
    first_held_out = len(batches) - math.ceil(holdout * (len(batches) - 1))
    fit, held_out = batches[:first_held_out], batches[first_held_out:]
    keys = numbers | switches | more
    keys |= {"steps": steps, "ridge": ridge, "form": FORMS[one_pass]}
    config = configured(fit, held_out, keys)
    shown = Progress(shown=progress)
    shown.line(
        f"Compiling {len(paths)} layers: {', '.join(steps)} on {config.samples} samples, "
        f"{config.holdout} to check on"
    )
    compiled = copy.deepcopy(model).eval().requires_grad_(False)
    data = CalibrationData(compiled, fit, held_out, config, precision, forward, shown)
    with in_words_of_the_library():
        result = calibrate(data, paths)
        words = summary(data, result) if progress else []
    swap_attention(compiled, result.maps)
    with in_words_of_the_library():
        column_error = column_errors(compiled, held_out, paths, precision, forward)
    identity = {
        **teacher,
        **result.identity(config),
        "calibration_set": {"rows": config.samples, "sha256": content_hash(fit)},
        "column_error": column_error,
    }
    for line in words:
        shown.line(line)
    remember(compiled, make_artifact(result.maps, result.controls, identity), backend)
    return compiled


def configured(
    fit: Sequence[Any], held_out: Sequence[Any], keys: dict[str, Any]
) -> CalibrationConfig:
    """Return the configuration of a calibration; UserError for a value that is not allowed."""
    schema = calibration_schema()
    with in_words_of_arguments():
        config = schema(
            **{
                **keys,
                "name": "sequential" if keys["sequential"] else keys["steps"][-1],
                "samples": sum(map(num_samples, fit)),
                "holdout": sum(map(num_samples, held_out)),
                "batch_size": max(map(num_samples, [*fit, *held_out])),
            }
        )
        check_fields(schema, asdict(config), PREFIX)
    return config
