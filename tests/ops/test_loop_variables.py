"""A trap of Triton's compiler that its interpreter does not have, looked for in every kernel.

A variable that takes over the value of another at the end of an iteration (`later = g`) is a
constant to the compiler if both begin with the same value: it carries a variable only if its value
after one iteration is another object. findings/triton_loop_takes_over_a_value.sh shows it.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import asap_exp

PACKAGE = Path(asap_exp.__file__).parent


def taken_over(source: str) -> Iterator[str]:
    """Yield what hands a value over to a variable from before the loop, in all kernels."""
    for function in ast.walk(ast.parse(source)):
        if isinstance(function, ast.FunctionDef) and any(
            "jit" in ast.unparse(decorator) for decorator in function.decorator_list
        ):
            for loop in ast.walk(function):
                if isinstance(loop, ast.For | ast.While):
                    yield from within(function, loop)


def within(function: ast.FunctionDef, loop: ast.For | ast.While) -> Iterator[str]:
    known = {argument.arg for argument in function.args.args}
    known |= {name for name, line in stored(function) if line < loop.lineno}
    for assignment in ast.walk(loop):
        if not isinstance(assignment, ast.Assign | ast.AnnAssign):
            continue
        line = assignment.lineno
        for target, value in pairs(assignment):
            if isinstance(target, ast.Name) and isinstance(value, ast.Name):
                lines = [at for name, at in stored(loop) if name == value.id]
                if target.id in known and lines and min(lines) >= line:
                    yield f"{function.name}: {ast.unparse(assignment)}"


def stored(tree: ast.AST) -> list[tuple[str, int]]:
    """Return the names that are assigned to, and the lines of it."""
    return [
        (node.id, node.lineno)
        for node in ast.walk(tree)
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
    ]


def pairs(assignment: ast.Assign | ast.AnnAssign) -> Iterator[tuple[ast.expr, ast.expr | None]]:
    value = assignment.value
    chained = isinstance(assignment, ast.Assign)
    for target in assignment.targets if chained else [assignment.target]:
        if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
            yield from zip(target.elts, value.elts, strict=True)
        else:
            yield target, value


def test_no_kernel_hands_a_value_over_from_one_iteration_to_the_next():
    found = {
        str(file.relative_to(PACKAGE)): list(taken_over(file.read_text()))
        for file in PACKAGE.rglob("*.py")
    }
    assert {file: words for file, words in found.items() if words} == {}


LOOP = """
@triton.jit
def kernel(x, n):
    before = now = x
    for t in range(n):
        {body}
"""


def test_the_trap_is_found():
    def of(body: str) -> list[str]:
        return list(taken_over(LOOP.format(body=body)))

    assert of("before = now\n        now = now + t") == ["kernel: before = now"]
    assert of("before: T = now\n        now = now + t") == ["kernel: before: T = now"]
    assert of("other = before = now\n        now += t") == ["kernel: other = before = now"]
    assert of("before, now = now, now + t") == ["kernel: before, now = (now, now + t)"]
    assert of("before = tl.where(t > 0, now, 0.0)\n        now = now + t") == []
    assert of("new = now + t\n        before = new\n        now = new") == []
    assert of("within = now\n        now = within + t") == []
