"""Launches of the fused kernels, read from the sources, since no result shows them."""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import asap_exp

PACKAGE = Path(asap_exp.__file__).parent


def decorator_name(node: ast.expr) -> str:
    return ast.unparse(node.func if isinstance(node, ast.Call) else node)


@cache
def nodes(path: Path) -> list[ast.AST]:
    """Return the syntax of a file, or of none that cannot hold a kernel or a launch."""
    text = path.read_text()
    return list(ast.walk(ast.parse(text))) if "@triton." in text or "](" in text else []


def launches(path: Path) -> Iterator[ast.Call]:
    """Yield the calls of the form kernel[grid](...)."""
    for node in nodes(path):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Subscript):
            kernel = ast.unparse(node.func.value)
            if kernel.split(".")[-1] in KERNELS:
                yield node


def compiled_functions() -> set[str]:
    """Return the names of all functions under `triton.jit`."""
    return {
        node.name
        for path in PACKAGE.rglob("*.py")
        for node in nodes(path)
        if isinstance(node, ast.FunctionDef)
        and any(decorator_name(d).startswith("triton.") for d in node.decorator_list)
    }


KERNELS = compiled_functions()
SOURCES = [path for path in sorted(PACKAGE.rglob("*.py")) if any(launches(path))]


def test_launches_are_found() -> None:
    assert {path.stem for path in SOURCES} == {
        "adjoint", "choice", "dual", "exponentials", "extension",
        "keys_and_values_in_registers", "keys_in_registers", "logit_features",
        "logits_in_registers",
        "one_launch", "plan_in_registers", "plan_in_shared_memory",
        "query_gradient", "sequence_choice", "sorts", "subset", "tiled",
        "tiled_bf16", "tiled_gradient", "update_factors", "updates_gradient",
    }  # fmt: skip
    launched = {
        ast.unparse(call.func.value).split(".")[-1] for path in SOURCES for call in launches(path)
    }
    assert {name for name in KERNELS if name.endswith("_kernel")} == launched


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_every_launch_says_whether_multiply_adds_are_fused(path: Path) -> None:
    """One constant decides it for all launches, whatever Triton's default is."""
    for call in launches(path):
        spread = [ast.unparse(k.value) for k in call.keywords if k.arg is None]
        assert "EVERY_LAUNCH" in spread, f"{path.name}:{call.lineno}"


def test_multiply_adds_are_fused() -> None:
    tiles = pytest.importorskip("asap_exp.ops.kernels.tiles")
    assert tiles.EVERY_LAUNCH == {"enable_fp_fusion": True}


def converted_arguments(path: Path) -> Iterator[str]:
    """Yield what kernels call on an argument as on a tensor, such as `count.to`."""
    for kernel in nodes(path):
        if isinstance(kernel, ast.FunctionDef) and kernel.name.endswith("_kernel"):
            arguments = {argument.arg for argument in kernel.args.args}
            for node in ast.walk(kernel):
                if isinstance(node, ast.Attribute) and ast.unparse(node) in {
                    f"{name}.to" for name in arguments
                }:
                    yield f"{path.name}: {kernel.name}: {ast.unparse(node)}"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_no_argument_is_converted(path: Path) -> None:
    """Triton compiles an argument of 1 as a constant, which has no `to`; its interpreter does not.

    A call with one head of one sample passes such arguments.
    """
    assert [*converted_arguments(path)] == []
