"""The code of docs/clients.md, block by block, and what runs it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "clients.md"
MESSAGE = "Where is my parcel?"
"""The message of all recipes; tests put another one in its place."""
_BLOCK = re.compile(r"^(?:<!-- (run|proxy): ([a-z-]+)((?: [a-z-]+)*) -->\n)?```([a-z]+)\n(.*?)^```$", re.M | re.S)
_NEXT = "=== next ==="
_TWICE = f"""
import pathlib, sys
code = pathlib.Path(sys.argv[1]).read_text(encoding="utf-8")
for text in sys.argv[2:]:
    exec(compile(code.replace({MESSAGE!r}, text), sys.argv[1], "exec"), {{"__name__": "__main__"}})
    print({_NEXT!r}, flush=True)
"""


@dataclass(frozen=True, slots=True)
class Recipe:
    """A block of the page: ``kind`` is ``run``, ``proxy`` or empty; ``marks`` say what is special about it."""

    kind: str
    name: str
    marks: frozenset[str]
    language: str
    code: str


def recipes() -> list[Recipe]:
    """All fenced blocks of the page, in their order."""
    found = _BLOCK.findall(PAGE.read_text(encoding="utf-8"))
    return [Recipe(kind, name, frozenset(marks.split()), lang, code) for kind, name, marks, lang, code in found]


def outputs(recipe: Recipe, texts: Sequence[str], environ: Mapping[str, str], folder: Path) -> list[str]:
    """What a recipe prints for each message; it fails where it exits with an error. ``folder`` has node's packages."""
    if recipe.language == "python":
        path = folder / f"{recipe.name}.py"
        path.write_text(recipe.code, encoding="utf-8")
        return _run([sys.executable, "-c", _TWICE, str(path), *texts], environ, folder).split(_NEXT)[:-1]
    if recipe.language == "sh":
        return [_run(["sh", "-euc", recipe.code.replace(MESSAGE, text)], environ, folder) for text in texts]
    said = []
    for text in texts:
        path = folder / f"{recipe.name}.mjs"
        path.write_text(recipe.code.replace(MESSAGE, text), encoding="utf-8")
        said.append(_run([program("node"), str(path)], environ, folder))
    return said


def program(name: str) -> str:
    """The path of a program; the test fails where it is missing."""
    found = shutil.which(name)
    if found is None:
        pytest.fail(f"{name} is missing, and this recipe needs it", pytrace=False)
    return found


def _run(command: Sequence[str], environ: Mapping[str, str], folder: Path) -> str:
    done = subprocess.run(
        command, env=clean() | dict(environ), cwd=folder, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def clean() -> dict[str, str]:
    """The environment without what would lead a client elsewhere."""
    led = re.compile(r"(?i).*_proxy|(openai|anthropic|litellm|tracer|langchain|langsmith).*|pythonpath|database_url")
    return {name: value for name, value in os.environ.items() if not led.fullmatch(name)}
