"""The public names, and what importing and serving must not load."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import tracer
from tracer.pipeline import Certified

NAMES = [
    "Answer",
    "CallableEmbedder",
    "Certificate",
    "Certified",
    "Dataset",
    "Decisions",
    "FitConfig",
    "LabelSpace",
    "OpenAIEmbedder",
    "Policy",
    "PolicyRegistry",
    "Refusal",
    "Refused",
    "Router",
    "SentenceTransformerEmbedder",
    "Trace",
    "TraceStore",
    "TracerError",
    "__version__",
    "backtest",
    "fit",
    "load_dataset",
    "read_traces",
    "scan",
    "update",
]


def python(code: str, *arguments: str) -> str:
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, *arguments], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    return run.stdout


def test_the_public_names_are_these() -> None:
    assert tracer.__all__ == NAMES
    assert dir(tracer) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_every_public_name_resolves_and_knows_its_own_name(name: str) -> None:
    value = getattr(tracer, name)
    assert getattr(value, "__name__", "__version__") == name


def test_the_version_is_that_of_the_project() -> None:
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))
    assert tracer.__version__ == project["project"]["version"]


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'Nothing'"):
        getattr(tracer, "Nothing")  # noqa: B009 - a plain attribute would not type-check


def test_the_router_loads_no_training_side() -> None:
    loaded = python("import sys, tracer; tracer.Router; print(*sys.modules)").split()
    assert "tracer.serving.router" in loaded
    assert [m for m in loaded if m.split(".")[0] in ("sklearn", "pandas", "typer", "rich")] == []
    assert [m for m in loaded if m.startswith(("tracer.pipeline", "tracer.flywheel", "tracer.learning.pool"))] == []


def test_serving_a_saved_policy_does_not_import_scikit_learn(fitted: tuple[Path, Certified]) -> None:
    code = (
        "import sys; from tracer import Router; r = Router.load(sys.argv[1]);"
        "a = r.route('my lamp does not turn on'); print(a.reason); print(*sys.modules)"
    )
    reason, modules = python(code, str(fitted[0])).splitlines()
    assert reason in ("handled", "below_threshold", "novel")
    assert [m for m in modules.split() if m.split(".")[0] == "sklearn"] == []


def test_the_command_line_starts() -> None:
    shown = python("from tracer.cli import main; main()", "--help")
    assert all(verb in shown for verb in ("demo", "scan", "fit", "update", "route", "show", "backtest"))
