"""A store on each of its two databases, both real."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tracer.traces.store import TraceStore


@pytest.fixture(params=["sqlite", "postgresql"])
def where(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A home folder without a store, or the URL of an empty database."""
    if request.param == "sqlite":
        return str(tmp_path / "home")
    return str(request.getfixturevalue("postgres"))


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The folder of the local copy."""
    return tmp_path / "home" / "columns"


@pytest.fixture
def store(where: str, copy: Path) -> Iterator[TraceStore]:
    """An empty store."""
    with TraceStore.open(where, copy=copy) as opened:
        yield opened
