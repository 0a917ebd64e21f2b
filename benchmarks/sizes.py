"""The picture of the imports by room, and how long lines, functions and modules are.

    python benchmarks/sizes.py
    python benchmarks/sizes.py --tree ../another --longest 20

A room is a folder of `erl/` or a module that lies beside the folders. Lines are counted without
blank ones. A function's length is that of its body without its docstring.
"""

import argparse
import ast
import io
import math
import tokenize
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from erl.cli import exit_after

WIDTH = 100
COLUMNS = (
    *("room", "modules", "lines", "longest module", "functions", "95 % of functions"),
    *("longest function", f"lines > {WIDTH}", "comment lines"),
)


@dataclass
class Module:
    """What is counted of a file.

    Attributes:
        name: dotted, `erl.worlds.tasks`.
        lines: that are not blank.
        long: of those, the ones longer than `WIDTH`.
        comments: lines that hold a comment and nothing else.
        functions: name -> lines of its body.
        imports: names of the project's modules that it imports, in functions too.
    """

    name: str
    lines: int = 0
    long: int = 0
    comments: int = 0
    functions: dict[str, int] = field(default_factory=dict)
    imports: set[str] = field(default_factory=set)

    @property
    def room(self) -> str:
        """`erl.worlds.tasks` lies in `worlds`, `erl.errors` is `errors`. What `python -m` starts is
        no part of the room beside it.
        """
        if self.name.endswith(".__main__"):
            return "__main__"
        return self.name.split(".")[1] if "." in self.name else self.name


def read(path: Path, name: str, known: set[str]) -> Module:
    """Count a file."""
    text = path.read_text(encoding="utf-8")
    lines = text.splitlines()
    full = [bool(line.strip()) for line in lines]
    module = Module(name, sum(full), sum(len(line) > WIDTH for line in lines))
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT and token.line.lstrip().startswith("#"):
            module.comments += 1
    tree = ast.parse(text)
    for function, node in functions(tree, ""):
        module.functions[function] = sum(full[body_start(node) - 1 : node.end_lineno])
    module.imports = set(imports(tree, known)) - {name}
    return module


def functions(
    node: ast.AST, prefix: str
) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    """Every function and method with its name, those within others too."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            yield prefix + child.name, child
            yield from functions(child, f"{prefix}{child.name}.")
        else:
            inner = f"{prefix}{child.name}." if isinstance(child, ast.ClassDef) else prefix
            yield from functions(child, inner)


def body_start(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """The line of a function's first statement after its docstring."""
    if ast.get_docstring(node) is not None and len(node.body) > 1:
        return node.body[1].lineno
    if ast.get_docstring(node) is not None:  # nothing but a docstring
        return (node.end_lineno or node.lineno) + 1
    return node.body[0].lineno


def imports(tree: ast.AST, known: set[str]) -> Iterator[str]:
    """The project's modules that a file imports anywhere."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                if full in known:
                    yield full
                elif node.module in known:
                    yield node.module


def load(package: Path) -> list[Module]:
    """Every module of a package."""
    root = package.parent
    paths = {
        ".".join(p.relative_to(root).with_suffix("").parts).removesuffix(".__init__"): p
        for p in sorted(package.rglob("*.py"))
    }
    return [read(path, name, set(paths)) for name, path in paths.items()]


def picture(modules: list[Module]) -> str:
    """Which room imports which. A room stands below all that import it; its number says how many
    lie below it in a row.
    """
    rooms = {m.room for m in modules if "." in m.name}
    graph: dict[str, Counter[str]] = {room: Counter() for room in rooms}
    for module in modules:
        if "." in module.name:
            for imported in module.imports:
                target = imported.split(".")[1] if "." in imported else None
                if target in rooms and target != module.room:
                    graph[module.room][target] += 1
    depth: dict[str, int] = {}

    def below(room: str, path: tuple[str, ...]) -> int:
        if room in path:  # a circle, which the last line names
            return 0
        if room not in depth:
            depth[room] = 1 + max(
                (below(r, (*path, room)) for r in sorted(graph[room])), default=-1
            )
        return depth[room]

    order = sorted(sorted(rooms), key=lambda r: (-below(r, ()), r))
    width = max(map(len, order))
    rows = []
    for room in order:
        row = ", ".join(r for r in order if graph[room][r])
        rows.append(f"{depth[room]:2d}  {room:{width}s}  {'-> ' + row if row else ''}".rstrip())
    circles = [
        f"{a} -> {b}" for a in order for b in sorted(graph[a]) if order.index(b) < order.index(a)
    ]
    rows.append(f"imports in circles: {', '.join(circles) or 'none'}")
    return "\n".join(rows)


def percentile(values: list[int], share: float) -> int:
    """The smallest value that is not below this share of all."""
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)] if values else 0


def table(modules: list[Module]) -> str:
    """Sizes by room and of all."""
    names = sorted({m.room for m in modules})
    rows = [list(COLUMNS)]
    for name in [*names, "all"]:
        part = [m for m in modules if name in ("all", m.room)]
        bodies = [n for m in part for n in m.functions.values()]
        lines = sum(m.lines for m in part)
        if lines:
            rows.append(
                [
                    name,
                    str(len(part)),
                    str(lines),
                    str(max(m.lines for m in part)),
                    str(len(bodies)),
                    str(percentile(bodies, 0.95)),
                    str(max(bodies, default=0)),
                    str(sum(m.long for m in part)),
                    f"{sum(m.comments for m in part) / lines:.1%}",
                ]
            )
    widths = [max(len(row[k]) for row in rows) for k in range(len(COLUMNS))]
    return "\n".join(
        "  ".join(c.ljust(w) if k == 0 else c.rjust(w) for k, (c, w) in enumerate(zip(row, widths)))
        for row in rows
    )


def longest(modules: list[Module], n: int) -> str:
    """The longest functions and modules."""
    bodies = [(size, f"{m.name}.{f}") for m in modules for f, size in m.functions.items()]
    files = [(m.lines, m.name) for m in modules]
    rows = []
    for title, sizes in (("functions", bodies), ("modules", files)):
        rows.append(f"the longest {title}:")
        rows += [f"{size:6d}  {name}" for size, name in sorted(sizes, reverse=True)[:n]]
    return "\n".join(rows)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tree", default=Path(__file__).parent.parent, type=Path)
    parser.add_argument("--longest", type=int, default=10, help="functions and modules to name")
    arguments = parser.parse_args()
    package = arguments.tree / "erl"
    if not package.is_dir():
        parser.error(f"{arguments.tree} has no folder erl")
    modules = load(package)
    print(picture(modules), table(modules), longest(modules, arguments.longest), sep="\n\n")
    return 0


if __name__ == "__main__":
    exit_after(main)
