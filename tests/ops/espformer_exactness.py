"""How exact ESPFormer's kernels must be: as the reference, and as operands in float16 allow."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from unittest.mock import patch

import torch
from torch import Tensor

from asap_exp import ops
from asap_exp.ops.reference import espformer as reference
from tests.ops.inputs import Inputs, Operator, make_cotangents, relative_rms


def espformer_operator(learned: bool, **fixed) -> Operator:
    """Return the operator along the axes, or along the `theta` of the inputs."""

    def call(q: Tensor, k: Tensor, v: Tensor, theta: Tensor | None = None, **options) -> Tensor:
        return ops.espformer_attention(q, k, v, theta=theta, **options)

    return Operator(call, ("q", "k", "v", *(["theta"] if learned else [])), ((2,),), fixed)


def assert_exact(operator: Operator, inputs: Inputs, *, more: float = 1e-6, **options) -> None:
    """Compare the output and all gradients with float64.

    For 16-bit inputs an error is at most twice the reference's in their dtype, which is their own
    rounding, four times what `through_rounded_plan` explains, and `more`: the kernels round each
    slice's gradient too, and share sums between sides. In float32 it is at most four times the
    reference's and `more`: a GPU's exponentials and three TF32 passes have relative errors of 2^-22
    instead of 2^-24.
    """
    times = 4 if has_float32(inputs) else 2
    for name, (error, usual, explained) in errors(operator, inputs, **options).items():
        assert error <= times * usual + 4 * explained + more, name


def has_float32(inputs: Inputs) -> bool:
    return torch.float32 in (inputs.q.dtype, inputs.v.dtype)


def errors(operator: Operator, inputs: Inputs, **options) -> dict[str, tuple[float, float, float]]:
    """Return the errors of the kernels and of the reference, and what operands in float16 explain.

    All are of the same inputs and the same cotangent, rounded to the dtype of v: of the output
    ("out") and of each gradient.
    """
    doubles = inputs.map(Tensor.double)
    cotangents = tuple(x.to(inputs.v.dtype) for x in make_cotangents(operator(doubles, **options)))
    exact_cotangents = tuple(map(Tensor.double, cotangents))
    expected = results_of(operator, doubles, exact_cotangents, **options)
    found = results_of(operator, inputs, cotangents, backend="triton", **options)
    usual = results_of(operator, inputs, cotangents, backend="reference", **options)
    rounded = expected
    if not has_float32(inputs):
        by_plan = replace(operator, function=through_rounded_plan)
        with sorts_in_float16():
            rounded = results_of(by_plan, doubles, exact_cotangents, **options)
    return {
        name: (
            relative_rms(found[name], exact),
            relative_rms(usual[name], exact),
            relative_rms(rounded[name], exact),
        )
        for name, exact in expected.items()
    }


def results_of(
    operator: Operator, inputs: Inputs, cotangents: tuple[Tensor, ...], **options
) -> dict[str, Tensor]:
    (out,), gradients = operator.run(inputs, cotangents, **options)
    return {"out": out, **gradients}


@contextmanager
def sorts_in_float16() -> Iterator[None]:
    """Round the entries of the reference's sorts to float16, and compute with them as before."""
    exact = reference.sort_matrix

    def rounded(*arguments) -> Tensor:
        P = exact(*arguments)
        return P + (P.half().to(P) - P).detach()

    with patch.object(reference, "sort_matrix", rounded):
        yield


def through_rounded_plan(
    q: Tensor, k: Tensor, v: Tensor, theta: Tensor | None = None, **options
) -> Tensor:
    """Compute the attention from the reference's plan, whose gradient is rounded to float16.

    It is without its mean and relative to its largest entry.
    """
    options = {"temperature": 10.0, "tau": 1e-3, "key_padding_mask": None} | options
    plan = reference.espformer_plan(q, k, theta=theta, **options)

    def rounded(gradient: Tensor) -> Tensor:
        centred = gradient - gradient.mean(dim=(-1, -2), keepdim=True)
        size = centred.abs().amax(dim=(-1, -2), keepdim=True).clamp_min(1e-300)
        return (centred / size).half().to(size) * size

    plan.register_hook(rounded)
    return plan @ v
