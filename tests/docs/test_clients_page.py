"""Every recipe of docs/clients.md runs as it stands: what the policy handles, and what it leaves, read the same."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.docs.conftest import KEY, UPSTREAM_KEY, Behind
from tests.docs.recipes import PAGE, Recipe, outputs, program, recipes

RUN = [recipe for recipe in recipes() if recipe.kind == "run"]
HEAVY = ("litellm", "langchain", "javascript")
"""Recipes of these need packages of the group ``clients``, or node."""
MARKS = {"asks-teacher", "own-key", "classify", "no-headers", "handled-only"}


def test_every_block_is_run() -> None:
    left = [recipe.code for recipe in recipes() if not recipe.kind]
    assert len(left) == 1, left
    assert left[0].startswith("export TRACER_URL="), "only what sets the environment is not a recipe"
    names = [recipe.name for recipe in recipes() if recipe.kind]
    assert len(names) == len(set(names)) == 27
    assert not {mark for recipe in recipes() for mark in recipe.marks} - MARKS
    n_fences = len(re.findall(r"^```", PAGE.read_text(encoding="utf-8"), re.M))
    assert n_fences == 2 * len(recipes()), "a fence that the tests cannot read"


def test_the_headers_of_the_page_are_those_of_the_gateway() -> None:
    gateway = (PAGE.parent / "gateway.md").read_text(encoding="utf-8")
    known = set(re.findall(r"`(?:x-tracer)?(-[a-z-]+|x-tracer-[a-z-]+)`", gateway))
    known = {name.removeprefix("x-tracer") for name in known}
    text = PAGE.read_text(encoding="utf-8")
    named = set(re.findall(r"x-tracer(-[a-z-]+)", text)) | set(re.findall(r"`(-[a-z-]+)`", text))
    assert named
    assert named - known == set()


def _id(recipe: Recipe) -> str:
    return recipe.name


@pytest.fixture(scope="session")
def light(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("light")


@pytest.fixture(scope="session")
def heavy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the ``openai`` package of npm, which is installed for these tests alone."""
    folder = tmp_path_factory.mktemp("node")
    (folder / "package.json").write_text('{"private": true, "type": "module"}', encoding="utf-8")
    command = [program("npm"), "install", "--silent", "--no-audit", "--no-fund", "openai@6"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=300)
    if done.returncode:
        pytest.fail(f"npm could not install openai: {done.stdout[-500:]}{done.stderr[-500:]}", pytrace=False)
    return folder


@pytest.mark.parametrize("recipe", [one for one in RUN if not one.name.startswith(HEAVY)], ids=_id)
def test_a_recipe(recipe: Recipe, light: Path, behind: Behind, behind_own_key: Behind) -> None:
    check(recipe, behind_own_key if "own-key" in recipe.marks else behind, light)


@pytest.mark.clients
@pytest.mark.parametrize("recipe", [one for one in RUN if one.name.startswith(HEAVY)], ids=_id)
def test_a_recipe_of_a_heavy_client(recipe: Recipe, heavy: Path, behind: Behind) -> None:
    check(recipe, behind, heavy)


def check(recipe: Recipe, behind: Behind, folder: Path) -> None:
    """Run it for a message that is handled and one that is left, and see what came and what the upstream was asked."""
    n = 1 if "handled-only" in recipe.marks else 2
    before = len(behind.api.asked)
    environ = dict(behind.environ) | {"LITELLM_LOCAL_MODEL_COST_MAP": "True"}
    said = outputs(recipe, behind.texts[:n], environ, folder)
    asked = behind.api.asked[before:]
    teacher = "asks-teacher" in recipe.marks
    assert len(said) == n
    for text, label, decision in zip(said, behind.labels, ("handled", "deferred"), strict=False):
        holds(recipe, text, label, "deferred" if teacher else decision)
    assert len(asked) == (0 if "classify" in recipe.marks or n == 1 else 2 if teacher else 1)
    for one in asked:
        key = one.headers.get("authorization", "")
        assert key == f"Bearer {UPSTREAM_KEY}"
        assert json.loads(one.body)["model"] == "gpt-4o-mini"
        assert not [name for name in one.headers if name.startswith("x-tracer")]
        assert KEY not in str(one.headers) + one.body.decode()


def holds(recipe: Recipe, text: str, label: str, decision: str) -> None:
    """What was printed names the label and the decision."""
    line = text.strip().splitlines()[-1]
    if "classify" in recipe.marks:
        answer = json.loads(text)
        assert (answer["label"], answer["decision"]) == (label, decision)
    elif recipe.language == "sh":
        head, _, body = text.replace("\r", "").partition("\n\n")
        assert head.startswith("HTTP/1.1 200")
        assert f"x-tracer-decision: {decision}" in head.split("\n")
        reply = json.loads(body)
        said = reply["content"][0]["text"] if "content" in reply else reply["choices"][0]["message"]["content"]
        assert said == label
    elif "no-headers" in recipe.marks:
        assert line.split()[0] == label
    else:
        assert line == f"{label} {decision}"


def test_the_check_itself_can_fail(behind: Behind, light: Path) -> None:
    recipe = next(one for one in RUN if one.name == "curl-chat")
    wrong: list[Callable[[str], str]] = [
        lambda code: code.replace("x-tracer-mode: auto", "x-tracer-mode: llm"),
        lambda code: code.replace("Bearer $TRACER_KEY", "Bearer other"),
        lambda code: code.replace("$TRACER_URL", "http://127.0.0.1:9"),
    ]
    for change in wrong:
        code = change(recipe.code)
        assert code != recipe.code
        with pytest.raises((AssertionError, json.JSONDecodeError)):
            check(Recipe("run", "changed", frozenset(), "sh", code), behind, light)


def test_a_recipe_sees_no_proxy_and_no_key_of_whoever_runs_the_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.docs.recipes import clean

    for name in ("https_proxy", "OPENAI_BASE_URL", "ANTHROPIC_API_KEY", "TRACER_OFF"):
        monkeypatch.setenv(name, "x")
    assert not {"https_proxy", "OPENAI_BASE_URL", "ANTHROPIC_API_KEY", "TRACER_OFF"} & set(clean())
    assert clean()["PATH"] == os.environ["PATH"]
