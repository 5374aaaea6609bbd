"""Events, however the bytes are cut."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from tracer.gateway.codecs.sse import Event, encoded, events_of

STREAM = (
    b"\xef\xbb\xbf: a comment\r\nevent: one\r\ndata: a\r\ndata:b\r\n\r\ndata\n\nevent: lost\n\r"
    b'id: 7\ndata: {"x": "\xc3\xbc"}\r\rdata: last'
)
EVENTS = [Event("a\nb", "one"), Event(""), Event('{"x": "ü"}'), Event("last")]


@given(st.lists(st.integers(0, len(STREAM)), max_size=12))
def test_any_cut_gives_the_same_events(cuts: list[int]) -> None:
    places = [0, *sorted(cuts), len(STREAM)]
    chunks = [STREAM[a:b] for a, b in itertools.pairwise(places)]
    assert events_of(chunks) == EVENTS


def test_bytes_are_read_one_by_one() -> None:
    assert events_of(bytes([byte]) for byte in STREAM) == EVENTS


@given(st.text(st.characters(exclude_characters="\r\n", exclude_categories=["Cs"])))
def test_what_is_written_is_read(data: str) -> None:
    assert events_of(encoded(data.encode(), "name")) == [Event(data, "name")]
