"""The floors of the house: a module imports from lower floors or from its own room, and nothing else."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import tracer

ROOT = Path(tracer.__file__).parent
FLOORS: tuple[tuple[str, ...], ...] = (
    ("errors", "stats", "storage"),
    ("types", "config", "cost"),
    ("traces", "features"),
    ("learning",),
    ("certification",),
    ("policies",),
    ("pipeline", "serving", "monitoring", "explanations"),
    ("flywheel", "backtesting", "reporting", "scale", "data"),
    ("gateway",),
    ("cli",),
)
FLOOR = {room: i for i, rooms in enumerate(FLOORS) for room in rooms}
NEIGHBOURS = [{"types", "config", "cost"}]
EVERYONE_KNOWS = {"errors"}
FORBIDDEN = {"pickle", "cPickle", "joblib", "dill", "cloudpickle", "marshal", "shelve"}
MODULES = sorted(p for p in ROOT.rglob("*.py") if p != ROOT / "__init__.py")


def imports(node: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and dotted name of each import, without those for type checkers."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and ast.unparse(child.test).endswith("TYPE_CHECKING"):
            continue
        if isinstance(child, ast.Import):
            yield from ((child.lineno, alias.name) for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            start = "." * child.level + (child.module or "")
            yield from ((child.lineno, f"{start}.{alias.name}") for alias in child.names)
        yield from imports(child)


def problems(room: str, source: str) -> list[str]:
    """What is wrong with the imports and calls of a module of this room."""
    found, tree = [], ast.parse(source)
    for line, name in imports(tree):
        top, _, rest = name.partition(".")
        other = rest.split(".")[0]
        if name.startswith("."):
            found.append(f"{line}: relative import of {name}")
        elif top in FORBIDDEN:
            found.append(f"{line}: imports {name}")
        elif top == "tracer" and other != "__version__":
            beside = room == other or any({room, other} <= allowed for allowed in NEIGHBOURS)
            if other not in FLOOR:
                found.append(f"{line}: imports {name}, which is in no room")
            elif not beside and other not in EVERYONE_KNOWS and FLOOR[other] >= FLOOR[room]:
                found.append(f"{line}: {room} (floor {FLOOR[room]}) imports {name} (floor {FLOOR[other]})")
    for call in (n for n in ast.walk(tree) if isinstance(n, ast.Call)):
        if isinstance(call.func, ast.Name) and call.func.id in {"eval", "exec", "__import__"}:
            found.append(f"{call.lineno}: calls {call.func.id}")
        found += [
            f"{call.lineno}: allow_pickle is not False"
            for keyword in call.keywords
            if keyword.arg == "allow_pickle" and ast.unparse(keyword.value) != "False"
        ]
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_a_module_keeps_to_its_floor(path: Path) -> None:
    room = path.relative_to(ROOT).parts[0].removesuffix(".py")
    assert room in FLOOR, f"{room} has no floor: give it one in FLOORS and in the design"
    assert problems(room, path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("room", "source"),
    [
        ("stats", "from tracer.types import Trace"),
        ("stats", "from tracer import pipeline"),
        ("features", "import tracer.traces.store"),
        ("serving", "def f():\n    from tracer.pipeline import fit"),
        ("policies", "from tracer import Router"),
        ("learning", "from . import heads"),
        ("learning", "import joblib"),
        ("learning", "eval('1')"),
        ("traces", "import numpy\nnumpy.load('x', allow_pickle=True)"),
    ],
)
def test_the_check_itself_can_fail(room: str, source: str) -> None:
    assert len(problems(room, source)) == 1


def test_type_checking_imports_and_lower_floors_are_free() -> None:
    source = "from typing import TYPE_CHECKING\nfrom tracer.errors import ConfigError\nfrom tracer import stats\n"
    assert problems("types", source + "if TYPE_CHECKING:\n    from tracer.cli import app\n") == []


def test_no_module_carries_the_name_of_a_public_function() -> None:
    functions = {name for name in tracer.__all__ if callable(getattr(tracer, name)) and name.islower()}
    assert {"fit", "update", "scan", "backtest"} <= functions
    assert functions & {part.removesuffix(".py") for p in MODULES for part in p.relative_to(ROOT).parts} == set()
