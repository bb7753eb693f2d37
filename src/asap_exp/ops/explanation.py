"""Explanations of which kernels a call runs, and why: the verdict of every route offered to it."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from asap_exp.ops import backend as backends
from asap_exp.ops.call import Call, Device, device_of, one_wave
from asap_exp.ops.checks import (
    check_count,
    check_gradient_updates,
    check_implicit_steps,
    check_query_key,
    check_refine,
    check_switch,
    check_value,
    gradient_needed,
)
from asap_exp.ops.offers import dual_alone, sinkhorn_call
from asap_exp.ops.products import AS_ALLOWED, IEEE, product_words
from asap_exp.ops.routing import ROUTES, Taken, first, first_of, forced_names
from asap_exp.ops.subsets import Subset

Offers = Iterator[tuple[str, Call]]


def _duals(call: Call) -> Offers:
    yield "sinkhorn", call._replace(value_dim=0, keeps_duals=True)


def _predicted_dual(call: Call) -> Offers:
    yield "sliced_dual", call
    if call.refine > 0 and call.relaxed:
        yield "relaxed_updates", call
    elif call.refine > 0:
        yield "sinkhorn", dual_alone(call, call.refine)


FIRST_OFFERS: dict[str, Callable[[Call], Offers]] = {
    "sinkhorn_attention": lambda call: iter([sinkhorn_call(call, call.num_iters)]),
    "closure_attention": lambda call: iter([sinkhorn_call(call, 1)]),
    "sinkhorn_duals": _duals,
    "relaxed_sinkhorn_attention": lambda call: iter(
        [("relaxed_sinkhorn", call._replace(relaxed=True))]
    ),
    "coarse_attention": lambda call: iter([("coarse_attention", call)]),
    "coarse_duals": lambda call: iter([("coarse_dual", call)]),
    "softmax_attention": lambda call: iter([("softmax", call)]),
    "espformer_attention": lambda call: iter([("espformer", call)]),
    "sliced_potentials": lambda call: iter([("sliced_potentials", call)]),
    "asap_attention": lambda call: iter([("asap", call)]),
    "predicted_dual": _predicted_dual,
}
"""Operators of `routing.ROUTES` that each public operator calls directly."""

SAME_CALL = {"map_attention": "asap_attention", "map_dual": "predicted_dual"}
"""Public operators that take a map as one object, and those that take its tensors."""

BACKWARD_OPTIONS = ("gradient_updates", "implicit_steps")
ASAP_OPTIONS = ("slices", "refine", "relaxed", "logit_features", "one_pass")
READ_BY = {
    "sinkhorn_attention": ("num_iters", *BACKWARD_OPTIONS),
    "sinkhorn_duals": ("num_iters",),
    "relaxed_sinkhorn_attention": ("num_iters",),
    "coarse_attention": ("num_iters", "refine", "one_pass", "subset", "implicit_steps"),
    "coarse_duals": ("num_iters", "subset"),
    "sliced_potentials": ("slices",),
    "asap_attention": ASAP_OPTIONS,
    "predicted_dual": ASAP_OPTIONS,
}
"""Options of a call that each public operator reads."""

COUNTS = ("n", "m", "head_dim", "value_dim", "heads", "subset", "multiprocessors")
SWITCHES = ("relaxed", "logit_features", "padded", "gradient", "constant_logits")
"""Arguments that describe a call: whole numbers from 1 on, and whether something is so."""


@dataclass(frozen=True)
class Answer:
    """The verdict on one route: `taken`, `refused`, `slower`, `later` than it, or `passed over`."""

    route: str
    verdict: str
    reason: str | None = None

    def __str__(self) -> str:
        return self.verdict if self.reason is None else f"{self.verdict}: {self.reason}"


@dataclass(frozen=True)
class Choice:
    """An operator of `routing.ROUTES` and the answers of its routes, in order."""

    operator: str
    answers: tuple[Answer, ...]

    @property
    def taken(self) -> Taken:
        return next(Taken(self.operator, x.route) for x in self.answers if x.verdict == "taken")


@dataclass(frozen=True)
class Explanation:
    """The choices of one call; `str` lists them.

    `refusal` says why the reference runs. If the caller requested the reference, `refusal` is None
    and `choices` is empty.
    """

    operator: str
    call: Call
    device: str
    backend: str
    refusal: str | None
    choices: tuple[Choice, ...]
    products: str | None = None
    """How the kernels multiply float32 matrices; None without any."""

    @property
    def taken(self) -> list[Taken]:
        """Routes that run, in the order of the calls."""
        return [choice.taken for choice in self.choices]

    def __str__(self) -> str:
        width = max((len(x.route) for c in self.choices for x in c.answers), default=9)
        lines = [f"{self.operator}: {_words(self.operator, self.call)}; {self.device}"]
        lines += [f"  {self.products}"] if self.products else []
        for choice in self.choices:
            lines.append(f"  {choice.operator}")
            lines += [f"    {x.route:{width}}  {x}" for x in choice.answers]
        if self.backend == "triton":
            reference = "not taken: the kernels take the call"
        else:
            reference = f"taken: {self.refusal or 'it was requested'}"
        return "\n".join([*lines, f"  {'reference':{width + 2}}  {reference}"])


def explain(
    operator: str | Callable,
    q: Tensor | None = None,
    k: Tensor | None = None,
    v: Tensor | None = None,
    *,
    n: int | None = None,
    m: int | None = None,
    head_dim: int = 64,
    value_dim: int | None = None,
    dtype: torch.dtype = torch.bfloat16,
    batch: int = 1,
    heads: int = 1,
    num_iters: int = 20,
    gradient_updates: int | None = None,
    implicit_steps: int | None = None,
    refine: int = 0,
    slices: int = 8,
    relaxed: bool = False,
    logit_features: bool = False,
    one_pass: bool = False,
    subset: int | Subset = 64,
    padded: bool = False,
    gradient: bool = False,
    constant_logits: bool = False,
    backend: str = "auto",
    capability: tuple[int, int] | None = None,
    multiprocessors: int = 132,
) -> Explanation:
    """Return every route that a call is offered, and why it is or is not taken.

    Describe the call by its tensors q `[B, H, N, D]`, k `[B, H, M, D]` and v `[B, H, M, width]`
    (k and v default to q), or by the shapes `n`, `m` (default n), `head_dim`, ..., which needs no
    tensor and no GPU: `explain("sinkhorn_attention", n=200, capability=(9, 0))` says what an H100
    would run. `capability` and `multiprocessors` describe the GPU; without a capability, it is the
    tensors' device or the current one. `slices`, `refine`, `relaxed` (whether there is a
    relaxation) and `logit_features` are options of ASAP, `subset` (itself or its number of tokens)
    of coarse attention, and `refine` and `one_pass` of both; `constant_logits` means scale = 0.
    With `gradient`, `gradient_updates` and `implicit_steps` choose the backward pass, as in
    `sinkhorn_attention`; it is in the operator `sinkhorn_backward` or `implicit_backward` of the
    answer. Raises ValueError for an unknown operator, for a backward pass that the operator does
    not have, or if neither tensors nor n are given, and TypeError or ValueError for what no call
    can have.
    """
    given = _name(operator)
    name = SAME_CALL.get(given, given)
    backends.check_backend(backend)
    check_count("num_iters", num_iters, 1)  # these two first, since others are checked by them
    check_switch("one_pass", one_pass)
    _check_backward(name, num_iters, gradient_updates, implicit_steps)
    if name == "coarse_attention":
        check_refine(refine, implicit_steps, one_pass=one_pass)
    value_dtype = dtype
    if q is not None:
        k = q if k is None else k
        v = k if v is None else v
        check_query_key(q, k)
        check_value(v, k)
        batch, heads, n, head_dim = q.shape
        m, value_dim, dtype, value_dtype = k.shape[2], v.shape[3], q.dtype, v.dtype
        gradient = gradient or gradient_needed(q, k, v)
    if n is None:
        raise ValueError("explain needs tensors (q, k, v) or the number of tokens n")
    m = n if m is None else m
    value_dim = head_dim if value_dim is None else value_dim
    subset = subset.tokens.shape[-1] if isinstance(subset, Subset) else subset
    counts = (n, m, head_dim, value_dim, heads, subset, multiprocessors)
    for option, value in zip(COUNTS, counts, strict=True):
        check_count(option, value, 1)
    for option, value in (("batch", batch), ("slices", slices), ("refine", refine)):
        check_count(option, value, 0)
    switches = (relaxed, logit_features, padded, gradient, constant_logits)
    for option, value in zip(SWITCHES, switches, strict=True):
        check_switch(option, value)
    if not isinstance(dtype, torch.dtype):
        raise TypeError(f"dtype must be a torch.dtype, such as torch.bfloat16; got {dtype!r}")
    _check_capability(capability)
    kind, device = _device(q, capability, multiprocessors)
    call = Call(
        n,
        m,
        head_dim,
        value_dim,
        dtype,
        value_dtype,
        num_iters,
        constant_logits,
        padded,
        gradient=gradient,
        slices=slices,
        refine=refine,
        relaxed=relaxed,
        logit_features=logit_features,
        one_pass=one_pass,
        subset=min(subset, max(n, m)),
        gradient_updates=gradient_updates,
        implicit_steps=implicit_steps,
        one_wave=one_wave(batch * heads, device),
        capability=device.capability,
    )
    refusal = None
    if backend != "reference":
        refusal = _backend_refusal(name, call, kind, interpreted=backend == "triton")
    fused = backend != "reference" and refusal is None
    choices = tuple(_choices(FIRST_OFFERS[name](call))) if fused else ()
    found = (
        "CPU"
        if device.capability is None
        else "compute capability {}.{}".format(*device.capability)
    )
    words = f"{found}, {device.multiprocessors} multiprocessors" if device.capability else found
    ran = "triton" if fused else "reference"
    requested = IEEE if backend == "ieee" else AS_ALLOWED
    products = product_words(call, requested) if fused else None
    return Explanation(given, call, words, ran, refusal, choices, products)


def _name(operator: object) -> str:
    """Return the name of an operator, given as that or as a function; ValueError for another."""
    name = operator if isinstance(operator, str) else getattr(operator, "__name__", None)
    if name not in (*FIRST_OFFERS, *SAME_CALL):
        got = repr(name) if isinstance(name, str) else type(operator).__name__
        raise ValueError(
            f"operator must be one of {', '.join([*FIRST_OFFERS, *SAME_CALL])}, got {got}"
        )
    return name


def _check_backward(
    name: str, num_iters: int, gradient_updates: int | None, implicit_steps: int | None
) -> None:
    """Raise ValueError or TypeError for a backward pass that the operator does not have."""
    given = (gradient_updates, implicit_steps)
    for option, value in zip(BACKWARD_OPTIONS, given, strict=True):
        takers = [operator for operator, options in READ_BY.items() if option in options]
        if value is not None and name not in takers:
            raise ValueError(
                f"{option}={value} is an option of {' and '.join(takers)}, not of {name}; leave it "
                "out"
            )
    check_gradient_updates(gradient_updates, num_iters)
    check_implicit_steps(implicit_steps, gradient_updates)


def _check_capability(capability: tuple[int, int] | None) -> None:
    """Raise TypeError unless it is None or a major and a minor number."""
    pair = isinstance(capability, tuple) and [type(x) for x in capability] == [int, int]
    if capability is not None and not pair:
        raise TypeError(
            f"capability must be a pair of ints, such as (9, 0) of an H100; got {capability!r}"
        )


def _device(
    q: Tensor | None, capability: tuple[int, int] | None, multiprocessors: int
) -> tuple[str, Device]:
    """Return the type of the device and the properties that routes depend on."""
    if capability is not None:
        return "cuda", Device(capability, multiprocessors)
    if q is None and torch.cuda.is_available():
        q = torch.empty(0, device="cuda")
    return ("cpu", Device()) if q is None else (q.device.type, device_of(q))


def _backend_refusal(name: str, call: Call, kind: str, *, interpreted: bool) -> str | None:
    """Return why no kernel takes the call, or None if one does."""
    interpreted = interpreted and backends.INTERPRETED
    reason = backends.device_refusal(kind, call.capability, interpreted=interpreted)
    reason = reason or backends.input_refusal("q", call.dtype, call.head_dim)
    if name not in ("sinkhorn_duals", "coarse_duals", "sliced_potentials", "predicted_dual"):
        reason = reason or backends.input_refusal("v", call.value_dtype, call.value_dim)
    without = ("sinkhorn_duals", "sliced_potentials", "softmax_attention")
    refined = name == "predicted_dual" and call.refine > 0
    if call.gradient and (name in without or refined):
        return reason or backends.NO_GRADIENT
    return reason


def _choices(offers: Offers) -> Iterator[Choice]:
    """Yield the choice of each operator that is offered a call, and of the operators it calls."""
    for operator, call in offers:
        routes, names = ROUTES[operator], forced_names(operator)
        taken = first(routes, call) if names is None else first_of(operator, names, call)
        answers, passed = [], False
        for route in routes:
            if route is taken:
                answers.append(Answer(route.name, "taken"))
                passed = True
            elif reason := route.refusal(call):
                answers.append(Answer(route.name, "refused", reason))
            elif reason := route.slower(call):
                answers.append(Answer(route.name, "slower", reason))
            elif passed:
                answers.append(Answer(route.name, "later", "an earlier route takes the call"))
            else:
                answers.append(Answer(route.name, "passed over", "another one is forced"))
        yield Choice(operator, tuple(answers))
        yield from _choices(iter(taken.then(call)))


def _words(operator: str, call: Call) -> str:
    """Return the shapes and the options that are set, in words."""
    words = [f"n = {call.n}", f"m = {call.m}", f"head_dim = {call.head_dim}"]
    words += [f"value_dim = {call.value_dim}", str(call.dtype).removeprefix("torch.")]
    options = (
        "constant_logits",
        "padded",
        "gradient",
        *READ_BY.get(SAME_CALL.get(operator, operator), ()),
    )
    given = ((name, getattr(call, name)) for name in options)
    set_ = ((name, x) for name, x in given if x is not False and x is not None)
    words += [name if x is True else f"{name} = {x}" for name, x in set_]
    return ", ".join(words)
