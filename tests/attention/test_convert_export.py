"""A converted model is exported, and traced, for inputs of any size."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter

import asap_exp
from tests.attention.convertible import CASES, DIM, HEADS, WITHOUT_BIAS, Case, normal, randomised

pytestmark = pytest.mark.slow

ANY = torch.export.Dim.DYNAMIC
KINDS: dict[str, dict[str, Any]] = {
    "softmax": {},
    "sinkhorn": {"num_iters": 3},
    "coarse": {"tokens": 4},
}
EXPORTED = ["vit", "eva02", "rope vit", "padded encoder", "bert", "hf vit", "swin", "beit"]
EXPORTED += ["padded encoder, gelu, tokens first"]

every_kind = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture(autouse=True)
def fresh_compiler() -> None:
    torch.compiler.reset()


def converted(model: nn.Module, kind: str) -> Any:
    return asap_exp.convert(model, attention=kind, attention_dropout=0, **KINDS[kind])


def outputs(model: Any, batch: Any) -> Tensor:
    with torch.no_grad():
        out = model(**batch) if isinstance(batch, dict) else model(batch)
    return out if isinstance(out, Tensor) else out.last_hidden_state


def of_rows(case: Case, rows: int) -> Any:
    """The rows of two batches, first to last, up to a number of them."""

    def first(name: str, x: Tensor, y: Tensor) -> Tensor:
        dim = rows_at(case, name)
        return torch.cat([x, y], dim).narrow(dim, 0, rows)

    one, other = case.batches[:2]
    if isinstance(one, dict):
        return {name: first(name, one[name], other[name]) for name in one}
    return first("", one, other)


def rows_at(case: Case, name: str) -> int:
    layer = getattr(case.model, "layers", [None])[0]
    return 1 if name == "src" and not layer.self_attn.batch_first else 0


@pytest.mark.parametrize(
    ("name", "kind"),
    [(name, "softmax") for name in EXPORTED]
    + [(name, "sinkhorn") for name in EXPORTED if name in WITHOUT_BIAS]
    + [("padded encoder", "coarse")],
)
def test_exported_program_takes_batches_of_any_size(name: str, kind: str) -> None:
    case = CASES[name]()
    model = converted(case.model, kind)
    batch = case.batches[0]
    if isinstance(batch, dict):
        shapes: Any = {key: {rows_at(case, key): ANY} for key in batch}
        program = torch.export.export(model, (), batch, dynamic_shapes=shapes).module()
    else:
        program = torch.export.export(model, (batch,), dynamic_shapes=({0: ANY},)).module()
    for rows in (9, 1):
        other = of_rows(case, rows)
        torch.testing.assert_close(outputs(program, other), outputs(model, other))


@every_kind
def test_exported_program_takes_any_numbers_of_tokens(kind: str) -> None:
    """Of both sequences where one attends to the other."""
    options: dict[str, Any] = {"dim_feedforward": 32, "batch_first": True}
    model = converted(randomised(nn.Transformer(DIM, HEADS, 1, 1, **options)), kind)
    src, tgt = normal(4, 9, DIM, seed=0), normal(4, 7, DIM, seed=1)
    free = {0: ANY, 1: ANY}
    program = torch.export.export(model, (src, tgt), dynamic_shapes=(free, free)).module()
    for rows, sources, targets in ((4, 9, 7), (6, 5, 11), (1, 8, 12)):
        src, tgt = normal(rows, sources, DIM, seed=2), normal(rows, targets, DIM, seed=3)
        torch.testing.assert_close(program(src, tgt), model(src, tgt))


def test_exported_compiled_model_takes_inputs_of_any_size() -> None:
    case = CASES["encoder"]()
    teacher = converted(case.model, "sinkhorn")
    batches = [batch["src"] for batch in case.batches]
    model = asap_exp.compile(teacher, batches, slices=2, candidates=2, progress=False)
    sizes = ({0: ANY, 1: ANY},)
    program = torch.export.export(model, (batches[0],), dynamic_shapes=sizes).module()
    for rows, tokens in ((9, 7), (1, 5), (2, 12)):
        x = normal(rows, tokens, DIM, seed=4)
        torch.testing.assert_close(program(x), model(x))


def test_exported_program_takes_a_mask_for_every_head() -> None:
    layer = asap_exp.convert(randomised(nn.MultiheadAttention(DIM, HEADS, batch_first=True)))
    rows, tokens = torch.export.Dim("rows", min=2), torch.export.Dim("tokens", min=2)
    example = normal(4, 7, DIM, seed=0), normal(4 * HEADS, 7, 7, seed=1)
    x_sizes, mask_sizes = {0: rows, 1: tokens}, {0: HEADS * rows, 1: tokens, 2: tokens}
    program = torch.export.export(
        layer,
        (example[0],) * 3,
        {"attn_mask": example[1]},
        dynamic_shapes={
            "query": x_sizes, "key": x_sizes, "value": x_sizes, "attn_mask": mask_sizes
        },
    ).module()  # fmt: skip
    x, mask = normal(3, 5, DIM, seed=2), normal(3 * HEADS, 5, 5, seed=3)
    for found, expected in zip(
        program(x, x, x, attn_mask=mask), layer(x, x, x, attn_mask=mask), strict=True
    ):
        torch.testing.assert_close(found, expected)


@every_kind
def test_compiled_model_is_traced_once_for_all_sizes(kind: str) -> None:
    options: dict[str, Any] = {"dim_feedforward": 32, "batch_first": True}
    model = converted(randomised(nn.Transformer(DIM, HEADS, 1, 1, **options)), kind)
    counter = CompileCounter()
    traced = torch.compile(model, backend=counter, dynamic=True, fullgraph=True)
    for rows, sources, targets in ((4, 9, 7), (3, 5, 11), (2, 8, 12), (5, 6, 13)):
        src, tgt = normal(rows, sources, DIM, seed=2), normal(rows, targets, DIM, seed=3)
        torch.testing.assert_close(traced(src, tgt), model(src, tgt))
    assert counter.frame_count == 1
