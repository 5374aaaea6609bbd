"""Plain values and back; what does not fit is refused."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import pytest

from tracer.errors import ArchiveError
from tracer.explanations.plain import from_plain, to_plain


@dataclass(frozen=True, slots=True)
class Inner:
    name: str
    kind: Literal["x", "y"]


@dataclass(frozen=True, slots=True)
class Outer:
    n: int
    rate: float
    certain: bool
    score: float | None
    inner: tuple[Inner, ...]
    other: Inner | None

    def __post_init__(self) -> None:
        if self.n > 10:
            raise ValueError("too many")

    @property
    def double(self) -> int:
        """A derived value."""
        return 2 * self.n


WHOLE = Outer(3, 0.5, True, None, (Inner("a", "x"),), Inner("b", "y"))


def test_round_trip_with_derived_values() -> None:
    plain = to_plain(WHOLE)
    assert plain["double"] == 6
    assert plain["inner"] == [{"name": "a", "kind": "x"}]
    assert from_plain(Outer, plain, "outer") == WHOLE


def test_derived_values_are_never_read() -> None:
    assert from_plain(Outer, to_plain(WHOLE) | {"double": 99}, "outer").double == 6


def test_a_whole_number_is_a_rate_too() -> None:
    assert from_plain(Outer, to_plain(WHOLE) | {"rate": 1}, "outer").rate == 1.0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n": -1}, "outer.n = -1: a count is not negative"),
        ({"n": True}, "outer.n must be of type int, not bool"),
        ({"n": 1.0}, "outer.n must be of type int, not float"),
        ({"n": 11}, "outer: too many"),
        ({"rate": float("nan")}, "outer.rate is not finite"),
        ({"rate": 10**400}, "outer: int too large"),
        ({"rate": None}, "outer.rate must be of type float, not NoneType"),
        ({"certain": 1}, "outer.certain must be of type bool, not int"),
        ({"score": "high"}, "outer.score must be of type float, not str"),
        ({"inner": "a"}, "outer.inner is no list"),
        ({"inner": [3]}, r"outer.inner\[0\] is no object"),
        ({"inner": [{"name": "a", "kind": "z"}]}, r"outer.inner\[0\].kind must be one of x, y"),
        ({"other": {"name": "a"}}, "outer.other lacks kind"),
        ({"surplus": 1}, "outer has unknown fields: surplus"),
    ],
)
def test_what_does_not_fit_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ArchiveError, match=message):
        from_plain(Outer, to_plain(WHOLE) | changes, "outer")
