"""A fitted task and what its policy says of messages it never saw."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest

from tracer.pipeline import Certified
from tracer.policies.registry import PolicyRegistry

if TYPE_CHECKING:
    from tests.gateway.sdks import Rig


class Known(NamedTuple):
    """A fitted home; texts that its policy handles, with its labels; and texts that it leaves."""

    home: Path
    handled: dict[str, str]
    left: tuple[str, ...]


@pytest.fixture(scope="session")
def known(fitted: tuple[Path, Certified], live_texts: Sequence[str]) -> Known:
    decisions = PolicyRegistry(fitted[0]).load().decide(list(live_texts))
    rows = list(zip(live_texts, decisions.labels, decisions.handled.tolist(), strict=True))
    handled = {text: label for text, label, yes in rows if yes}
    return Known(fitted[0], handled, tuple(text for text, _, yes in rows if not yes))


@pytest.fixture(scope="session")
def sdk(known: Known, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    """A gateway with keys before a stand-in, for the SDKs."""
    from tests.gateway.sdks import rig

    with rig(known, tmp_path_factory.mktemp("sdk")) as found:
        yield found
