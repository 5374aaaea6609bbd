"""The page of benchmarks says what the results files say."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parents[2]


def _tables() -> ModuleType:
    spec = importlib.util.spec_from_file_location("benchmark_tables", ROOT / "benchmarks" / "tables.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_the_page_is_generated_from_the_results() -> None:
    tables = _tables()
    assert list(tables.RESULTS.glob("*.json")), "no results file: the page would be empty"
    assert tables.PAGE.read_text(encoding="utf-8") == tables.page()
