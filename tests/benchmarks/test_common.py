"""Cells survive a cut, and are measured anew where something changed."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import common


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of its own."""
    monkeypatch.setattr(common, "CACHE", tmp_path)
    return tmp_path


def test_a_cell_is_measured_once() -> None:
    calls: list[int] = []

    def measure() -> dict[str, int]:
        calls.append(1)
        return {"n": len(calls)}

    assert common.Cells("x", "data").get("a", measure) == {"n": 1}
    assert common.Cells("x", "data").get("a", measure) == {"n": 1}
    assert common.Cells("x", "data", revision=2).get("a", measure) == {"n": 2}
    assert common.Cells("x", "other data").get("a", measure) == {"n": 3}
    assert common.Cells("x", "data", quick=True).get("a", measure) == {"n": 4}


def test_a_line_cut_short_is_measured_again(cache: Path) -> None:
    common.Cells("x", "data").get("a", lambda: 1)
    path = cache / "cells" / "x.jsonl"
    path.write_text(path.read_text(encoding="utf-8") + '\n{"key": "b", "sta', encoding="utf-8")
    cells = common.Cells("x", "data")
    assert cells.get("b", lambda: 2) == 2
    again = common.Cells("x", "data")
    assert (again.get("a", lambda: 0), again.get("b", lambda: 0)) == (1, 2)


def test_a_table_and_a_share() -> None:
    assert common.table(["a", "b"], [[1, "x"]]) == "| a | b |\n| --- | --- |\n| 1 | x |"
    assert common.share(1, 4) == "0.250"
    assert common.share(0, 0) == "-"
    assert common.interval(0, 10) == "0.000 (0.000 to 0.308)"
