"""Whose labels a policy imitates."""

from __future__ import annotations

import pytest

from tracer.policies.fingerprints import Fingerprint, belongs

NOBODY = Fingerprint(None, None)


@pytest.mark.parametrize(
    ("known", "one", "expected"),
    [
        ([], Fingerprint("a", "1"), True),
        ([NOBODY], Fingerprint("a", "1"), True),
        ([Fingerprint("a", "1")], NOBODY, True),
        ([Fingerprint("a", "1")], Fingerprint("a", None), True),
        ([Fingerprint("a", None)], Fingerprint("a", "1"), True),
        ([Fingerprint("a", "1")], Fingerprint("a", "2"), False),
        ([Fingerprint("a", "1")], Fingerprint("b", "1"), False),
        ([NOBODY, Fingerprint("a", None)], Fingerprint("b", None), False),
        ([Fingerprint("a", "1"), Fingerprint("b", "2")], Fingerprint("b", "1"), True),
    ],
)
def test_what_is_not_named_contradicts_nothing(known: list[Fingerprint], one: Fingerprint, expected: bool) -> None:
    assert belongs(known, one) is expected


def test_a_fingerprint_reads_well() -> None:
    assert str(Fingerprint("gpt", "v3")) == "teacher gpt, prompt v3"
    assert str(NOBODY) == "teacher (not named)"
