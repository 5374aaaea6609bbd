"""Escaping: any text becomes UTF-8 without NUL and comes back, and no two become one."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tracer.traces.escaping import escaped, unescaped

ANY = st.text(st.characters(codec=None) | st.sampled_from("\0\ufdd0\ud800\udfffd08"))


@given(ANY)
def test_every_text_comes_back(text: str) -> None:
    written = escaped(text)
    assert "\0" not in written
    assert unescaped(written.encode().decode()) == text


@given(ANY, ANY)
def test_no_two_texts_become_one(one: str, two: str) -> None:
    assert (escaped(one) == escaped(two)) == (one == two)


def test_common_texts_stay_as_they_are() -> None:
    for text in ("plain", "naïve ☃ \U0001f600", "tab\tand\nline\x7f\x1b"):
        assert escaped(text) is text or escaped(text) == text
    assert escaped("a\0\ud83d\ufdd0") == "a\ufdd00000\ufdd0d83d\ufdd0fdd0"
