"""Strangers' texts, made fit to show."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tracer.reporting.texts import LONGEST, clean, cut, presentable, shown

ANY = st.text(st.characters(exclude_categories=()))


@given(ANY)
def test_what_is_shown_can_be_written_and_has_no_controls(text: str) -> None:
    seen = shown(text)
    seen.encode()
    assert not any(ord(c) < 32 and c not in "\n\t" for c in seen)
    assert clean(seen) == seen


def test_a_long_text_says_how_long_it_was() -> None:
    assert cut("a" * 30_000) == "a" * LONGEST + "… [30,000 characters]"
    assert cut("short") == "short"


def test_every_string_of_a_value_is_made_fit() -> None:
    assert presentable({"a\x00": ["\ud800", 1, None, (True, "b\x1b")]}) == {"a␀": ["\ufffd", 1, None, [True, "b␛"]]}
