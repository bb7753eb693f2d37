"""Times of every route that Sinkhorn attention may take, side by side, and what is chosen.

Usage: python -m asap_exp.benchmark.route_times [--n 256 1024] [--updates 5 10 20] [--spread 1 4 16]
       [--head-dim 64] [--dtype bfloat16] [--train] [--json FILE] [--teacher RUN]

Inputs are normal numbers; logits have the standard deviation `--spread`. With `--teacher` they are
those of every attention layer of a trained model, whose logits may be harder than any normal ones.
Where a route that is not chosen is faster by more than 3 %, the rules in `ops.routes` do not fit
this GPU: please report it.
"""

import argparse
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from asap_exp import ops
from asap_exp.benchmark.recorded import Recorder, recorders
from asap_exp.benchmark.shape import Shape
from asap_exp.core.composing import compose, quoted
from asap_exp.core.config import BenchmarkConfig
from asap_exp.core.console import counted, shown
from asap_exp.core.devices import choose_device
from asap_exp.core.errors import UserError
from asap_exp.core.failures import sentences
from asap_exp.core.files import write_json
from asap_exp.core.manifest import code_version, hardware, versions
from asap_exp.core.runs import Run
from asap_exp.ops import routes
from asap_exp.timing.calls import captured
from asap_exp.timing.latency import Prepare, interleaved_latency

TOLERATED = 1.03
"""Ratio to the fastest route from which on the choice is called wrong."""

LENGTHS, SPREADS, HEAD_DIM = [129, 192, 256, 512, 768, 1024], [1.0, 4.0, 16.0], 64
"""Tokens, standard deviations and channels unless a teacher has its own."""

LEAST = {"n": 1, "updates": 1, "spread": 0, "tokens": 1, "head-dim": 1, "rounds": 2}
"""Smallest numbers that make sense."""


@dataclass(frozen=True)
class Case:
    """A call to be timed: tokens, updates, its heads, and the logits.

    These have the standard deviation `spread`, or are those of a teacher's `layer`.
    """

    n: int
    num_iters: int
    spread: float | None
    heads: int
    head_dim: int
    dtype: str
    train: bool
    layer: str | None = None

    def inputs(self, device: torch.device) -> list[Tensor]:
        """Return normal q, k and v `[1, H, N, D]`."""
        assert self.spread is not None, "a teacher's layer has its own inputs"
        generator = torch.Generator(device).manual_seed(0)
        shape = 1, self.heads, self.n, self.head_dim
        tokens = [torch.randn(shape, device=device, generator=generator) for _ in range(3)]
        sizes = (self.spread**0.5, self.spread**0.5, 1.0)
        return self.leaves(size * x for x, size in zip(tokens, sizes, strict=True))

    def recorded_inputs(self, recorder: Recorder) -> list[Tensor]:
        """Return q, k and v `[B, H, N, D]` of the layer, of as many samples as `heads` needs."""
        samples = -(-self.heads // recorder.heads)
        return self.leaves(recorder.draw(Shape(samples, recorder.heads, self.n, self.head_dim)))

    def leaves(self, tokens: Iterable[Tensor]) -> list[Tensor]:
        dtype = getattr(torch, self.dtype)
        return [x.to(dtype).contiguous().requires_grad_(self.train) for x in tokens]

    def __str__(self) -> str:
        step = ", with its gradient" if self.train else ""
        logits = f"logits of {self.spread:g}" if self.layer is None else f"inputs of {self.layer}"
        return f"n = {self.n}, T = {self.num_iters}, {logits}{step}"


@dataclass(frozen=True)
class Times:
    """Milliseconds of each way to compute a case."""

    case: Case
    chosen: str
    ms: dict[str, float]

    @property
    def fastest(self) -> str:
        return min(self.ms, key=self.ms.__getitem__)

    @property
    def is_right(self) -> bool:
        return self.ms[self.chosen] <= TOLERATED * self.ms[self.fastest]


def main() -> None:
    """Print a line per case, then the cases of which another route is faster."""
    arguments = parsed()
    with sentences():
        check(arguments)
        results: list[Times] = []
        with written(arguments.json, arguments.teacher) as write:
            for case, inputs in cases(arguments, choose_device("auto")):
                results.append(timed(case, inputs, arguments.rounds))
                print(f"{case}: {in_words(results[-1])}", flush=True)
                write(results)
        wrong = [result for result in results if not result.is_right]
        print(f"{len(wrong)} of {len(results)} choices are slower by more than {TOLERATED - 1:.0%}")
        for result in wrong:
            ratio = result.ms[result.chosen] / result.ms[result.fastest]
            print(f"  {result.case}: {result.chosen} takes {ratio:.2f} times {result.fastest}")


@contextmanager
def written(file: Path | None, teacher: str | None) -> Iterator[Callable[[list[Times]], None]]:
    """Yield what writes the cases measured so far beside `file`, which it becomes at the end.

    A command that is stopped says where they are, and leaves an earlier `file` as it is.
    """
    if file is None:
        yield lambda results: None
        return
    facts = {"code": code_version(), "versions": versions(), "hardware": hardware()}
    unfinished = file.with_name(f"{file.stem}.unfinished{file.suffix}")
    count = 0

    def write(results: list[Times]) -> None:
        nonlocal count
        measured = [asdict(result) for result in results]
        write_json(unfinished, {**facts, "teacher": teacher, "cases": measured})
        count = len(results)

    try:
        yield write
    except BaseException:
        if count:
            print(f"{shown(unfinished)} has the {counted(count, 'case')} measured until then")
        raise
    unfinished.replace(file)


def parsed(words: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line, or these words of one."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--teacher", help="a run of asap_exp.train with Sinkhorn attention")
    lengths = f"default: {' '.join(map(str, LENGTHS))}, or the teacher's own"
    parser.add_argument("--n", type=int, nargs="+", help=lengths)
    parser.add_argument(
        "--updates", type=int, nargs="+", default=[5, 10, 20], help="default: 5 10 20"
    )
    spreads = f"default: {' '.join(f'{x:g}' for x in SPREADS)}"
    parser.add_argument("--spread", type=float, nargs="+", help=spreads)
    parser.add_argument("--tokens", type=int, default=393216, help="batch x heads x n")
    channels = f"default: {HEAD_DIM}, or the teacher's own"
    parser.add_argument("--head-dim", type=int, help=channels)
    parser.add_argument("--dtype", choices=("bfloat16", "float16", "float32"), default="bfloat16")
    parser.add_argument("--train", action="store_true", help="with the backward pass")
    parser.add_argument("--rounds", type=int, default=10, help="times of a case; default: 10")
    parser.add_argument(
        "--json", type=Path, help="write everything to a file; until the end to one beside it"
    )
    return parser.parse_args(words)


def check(arguments: argparse.Namespace) -> None:
    """Raise UserError for numbers that cannot be or that a teacher has, and for a folder."""
    for name, least in LEAST.items():
        given = getattr(arguments, name.replace("-", "_"))
        for number in given if isinstance(given, list) else [given]:
            if number is not None and not least <= number < math.inf:  # nan is neither
                raise UserError(f"--{name} must be a number of at least {least}, got {number:g}")
    if arguments.json is not None and arguments.json.is_dir():
        raise UserError(f"--json {arguments.json} is a folder; give the name of a file")
    for name in ("spread", "head-dim"):
        if arguments.teacher and getattr(arguments, name.replace("-", "_")) is not None:
            raise UserError(f"--{name}: the inputs are the teacher's. Leave it or --teacher out")


def cases(
    arguments: argparse.Namespace, device: torch.device
) -> Iterator[tuple[Case, list[Tensor]]]:
    """Yield the cases with their inputs."""
    how = arguments.dtype, arguments.train
    if not arguments.teacher:
        lengths, spreads = arguments.n or LENGTHS, arguments.spread or SPREADS
        for n, spread, num_iters in itertools.product(lengths, spreads, arguments.updates):
            heads, head_dim = max(1, arguments.tokens // n), arguments.head_dim or HEAD_DIM
            case = Case(n, num_iters, spread, heads, head_dim, *how)
            yield case, case.inputs(device)
        return
    task = Run(Path(arguments.teacher)).config.task.name
    words = [f"task={task}", "inputs=recorded", quoted("teacher", arguments.teacher)]
    layers = recorders(compose("benchmark", words, BenchmarkConfig), device)
    for n in arguments.n or [layers[0].n]:
        refusal = layers[0].refusal(n)
        if refusal is not None:
            raise UserError(f"--n: {refusal}")
        for layer in layers:
            heads = max(1, arguments.tokens // n)
            several = [
                Case(n, num_iters, None, heads, layer.head_dim, *how, layer.path)
                for num_iters in arguments.updates
            ]
            inputs = several[0].recorded_inputs(layer)
            yield from ((case, inputs) for case in several)


def in_words(times: Times) -> str:
    """Return all times, that of the chosen way marked."""
    return ", ".join(
        f"{name}{' (chosen)' if name == times.chosen else ''} {ms:.3f} ms"
        for name, ms in sorted(times.ms.items(), key=lambda item: item[1])
    )


def timed(case: Case, inputs: list[Tensor], rounds: int) -> Times:
    """Time all ways in turns; raise UserError if no kernel takes the case here."""
    found = explained(case, inputs)
    if found.refusal is not None:
        raise UserError(f"there are no routes to compare: {found.refusal}")
    calls = {way(names): prepared(case, inputs, names) for names in ways(case, inputs)}
    times = interleaved_latency(calls, inputs[0].device, rounds=rounds)
    ms = {name: value["median"] for name, value in times.items()}
    return Times(case, way(tuple(taken.route for taken in found.taken)), ms)


def ways(case: Case, inputs: list[Tensor]) -> Iterator[tuple[str, ...]]:
    """Yield the routes that take the call: of the forward pass, and of the backward pass."""
    operators = ["sinkhorn", "sinkhorn_backward"] if case.train else ["sinkhorn"]
    for listed in itertools.product(*(routes.ROUTES[operator] for operator in operators)):
        names = tuple(route.name for route in listed)
        with routes.force(*names):
            try:
                found = explained(case, inputs)
            except RuntimeError:  # a route refuses the call
                continue
        # A name that both passes have restricts both, so that some pairs cannot be forced.
        if tuple(taken.route for taken in found.taken) == names:
            yield names


def explained(case: Case, inputs: list[Tensor]) -> ops.Explanation:
    """Return which kernels a call takes."""
    return ops.explain("sinkhorn_attention", *inputs, num_iters=case.num_iters, backend="triton")


def way(names: tuple[str, ...]) -> str:
    return ", backward ".join(names)


def prepared(case: Case, inputs: list[Tensor], names: tuple[str, ...]) -> Prepare:
    """Return the call that takes these routes, as a CUDA graph where it has no gradient."""
    weight = torch.ones_like(inputs[2]) if case.train else None

    def call() -> object:
        with routes.force(*names):
            out = ops.sinkhorn_attention(*inputs, num_iters=case.num_iters, backend="triton")
            return out if weight is None else torch.autograd.grad(out, inputs, weight)

    def prepare() -> nullcontext:
        return nullcontext(call)

    return prepare if case.train or not inputs[0].is_cuda else captured(prepare)


if __name__ == "__main__":
    main()
