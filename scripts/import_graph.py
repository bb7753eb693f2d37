"""Count the packages of asap_exp and the imports between them. `python scripts/import_graph.py`

A node is a module or package directly below `src/asap_exp`; `__init__` and `__main__` are one, and
the scripts are one more. An edge means that one node imports another, however often. Exits with 1
if there is an import cycle.
"""

import ast
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "asap_exp"


def room_of(file: Path) -> str:
    """Return the node that a source file belongs to."""
    if PACKAGE not in file.parents:
        return "scripts"
    room = file.relative_to(PACKAGE).parts[0].removesuffix(".py")
    return "__init__" if room == "__main__" else room  # the package itself, as a command


def imported_rooms(file: Path) -> Iterator[str]:
    """Yield the nodes that a source file imports anywhere, also inside functions."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            package, _, inner = name.partition(".")
            if package == PACKAGE.name:
                room = inner.split(".")[0]
                known = (PACKAGE / room).is_dir() or (PACKAGE / f"{room}.py").is_file()
                yield room if room and known else "__init__"


def edges() -> dict[str, set[str]]:
    """Return the other nodes that each node imports."""
    files = [*PACKAGE.rglob("*.py"), *(ROOT / "scripts").glob("*.py")]
    found: dict[str, set[str]] = {room_of(file): set() for file in files}
    for file in files:
        found[room_of(file)] |= set(imported_rooms(file)) - {room_of(file)}
    return found


def circle(imports: Mapping[str, set[str]]) -> set[str]:
    """Return the nodes that are on an import cycle or import one."""
    left = dict(imports)
    while free := [room for room, imported in left.items() if not imported & left.keys()]:
        for room in free:
            del left[room]
    return set(left)


def main() -> int:
    imports = edges()
    for room, imported in sorted(imports.items()):
        print(f"{room:12} -> {', '.join(sorted(imported)) or '-'}")
    print(f"{len(imports)} packages and modules, {sum(map(len, imports.values()))} import edges")
    if stuck := circle(imports):
        print(f"error: import cycle among {', '.join(sorted(stuck))}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
