"""A label goes into bytes and comes back, on every wire, whole and streamed; and no body breaks a codec."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.gateway.codecs.samples import ALL, LABELS, PLAIN, STREAMED, chat, chat_json, chat_reply
from tracer.errors import CodecError
from tracer.gateway.calls import Call, Wire
from tracer.gateway.codecs import CODECS, codec_of
from tracer.gateway.codecs.sse import events_of
from tracer.types import Usage

GIVEN: dict[str, Any] = {"id": "7f", "created": 1_760_000_000, "model": "m", "usage": Usage(20, 3)}
streamed = [(wire, make) for wire, makes in STREAMED.items() for make in makes]
unicode_labels = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30)
texts = unicode_labels.filter(lambda text: text.strip() == text)


@pytest.mark.parametrize("label", LABELS)
@pytest.mark.parametrize(("wire", "make"), ALL)
def test_an_answer_carries_its_label_and_its_usage(wire: Wire, make: Callable[..., bytes], label: str) -> None:
    codec, call = CODECS[wire], CODECS[wire].read(make())
    assert call.unanswerable == ""
    answer = codec.answer(call, label, **GIVEN)
    assert codec.label(call, answer) == label
    assert codec.usage(answer) == Usage(20, 3)
    again = codec.answer(call, label, **GIVEN, like=answer)
    assert again == answer
    assert codec.reproduces(call, answer, answer)


@pytest.mark.parametrize("label", LABELS)
@pytest.mark.parametrize(("wire", "make"), streamed)
def test_a_stream_carries_its_label_and_its_usage(wire: Wire, make: Callable[..., bytes], label: str) -> None:
    more = {"stream_options": {"include_usage": True}} if wire == "openai.chat" else {}
    codec, call = CODECS[wire], CODECS[wire].read(make(stream=True, **more))
    assert call.stream
    chunks = codec.stream(call, label, **GIVEN)
    events = events_of(chunks)
    assert codec.label_of_stream(call, events) == label
    assert codec.usage_of_stream(events) == Usage(20, 3)
    assert codec.label(call, codec.answer(call, label, **GIVEN, like=b"".join(chunks))) == label
    # A stream that is cut before it says how it ended has no label.
    ending = {"openai.chat": 3, "openai.responses": 1, "anthropic.messages": 2}[wire]
    for n in range(len(chunks) - ending + 1):
        assert codec.label_of_stream(call, events_of(chunks[:n])) is None


@given(label=texts, like=texts)
def test_any_text_label(label: str, like: str) -> None:
    for wire, (make, _, _) in STREAMED.items():
        codec, call = CODECS[wire], CODECS[wire].read(make())
        prior = codec.answer(call, like, **GIVEN)
        assert codec.label(call, codec.answer(call, label, **GIVEN, like=prior)) == label
        assert codec.label_of_stream(call, events_of(codec.stream(call, label, **GIVEN, like=prior))) == label


@given(labels=st.lists(unicode_labels, min_size=2, max_size=4, unique=True), ascii_only=st.booleans())
@settings(max_examples=50)
def test_any_enum_label(labels: list[str], ascii_only: bool) -> None:
    schema = {"type": "object", "properties": {"a b": {"enum": labels}}, "required": ["a b"]}
    for wire, (_, as_json, as_tool) in STREAMED.items():
        for make in (as_json, as_tool):
            codec, call = CODECS[wire], CODECS[wire].read(make(schema))
            prior = codec.answer(call, labels[0], **GIVEN)
            if ascii_only:
                prior = json.dumps(json.loads(prior)).encode()
            assert codec.label(call, codec.answer(call, labels[1], **GIVEN, like=prior)) == labels[1]
    for plain, make in PLAIN.items():
        codec, call = CODECS[plain], CODECS[plain].read(make(labels))
        assert codec.label(call, codec.answer(call, labels[1], **GIVEN, confidence=0.9)) == labels[1]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 10**12) | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=12,
)


def _places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, sub in inner for place in _places(sub, (*path, key)))]


def _changed(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    if not path:
        return new
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[path[0]] = _changed(copy[path[0]], path[1:], new)
    return copy


def _try(call: Call, answer: bytes) -> None:
    codec = CODECS[call.wire]
    codec.label(call, answer)
    codec.usage(answer)
    for write in (codec.answer, codec.stream):
        with suppress(CodecError):
            write(call, (call.options or ("x",))[0], **GIVEN, like=answer)


@given(data=st.data(), value=json_values)
@settings(max_examples=400, deadline=None)
def test_no_body_raises_anything_but_the_declared_error(data: st.DataObject, value: Any) -> None:
    wire, make = data.draw(st.sampled_from(ALL))
    codec, whole = CODECS[wire], json.loads(make())
    call = codec.read(make())
    answer = json.loads(codec.answer(call, LABELS[0], **GIVEN))
    mutant = json.dumps(_changed(answer, data.draw(st.sampled_from(_places(answer))), value)).encode()
    _try(call, mutant)
    for _ in range(data.draw(st.integers(1, 3))):
        whole = _changed(whole, data.draw(st.sampled_from(_places(whole))), value)
    try:
        strange = codec.read(json.dumps(whole).encode())
    except CodecError:
        return
    _try(strange, mutant)


@given(data=st.data(), value=json_values, junk=st.binary(max_size=20))
@settings(max_examples=200, deadline=None)
def test_no_stream_raises(data: st.DataObject, value: Any, junk: bytes) -> None:
    wire, make = data.draw(st.sampled_from(streamed))
    codec, call = CODECS[wire], CODECS[wire].read(make(stream=True))
    chunks = codec.stream(call, LABELS[0], **GIVEN)
    i = data.draw(st.integers(0, len(chunks) - 1))
    events = events_of([chunks[i]])
    if events[0].data != "[DONE]":
        whole = json.loads(events[0].data)
        changed = _changed(whole, data.draw(st.sampled_from(_places(whole))), value)
        chunks[i] = b"data: " + json.dumps(changed).encode() + b"\n\n"
    for like in (b"".join(chunks), junk + b"".join(chunks)):
        codec.label_of_stream(call, events_of(like))
        codec.usage_of_stream(events_of(like))
        codec.answer(call, LABELS[1], **GIVEN, like=like)


@pytest.mark.parametrize("wire", CODECS)
@pytest.mark.parametrize(
    "junk",
    [
        b"",
        b"\xff",
        b"[]",
        b"1",
        b"{}",
        b"[" * 100000,
        b'{"a":' * 5000,
        b'{"model": NaN}',
        b'{"a": "\\ud800"}',
        b'{"model": "m", "messages": [1], "input": 1}',
        b'{"model": 1}',
        ("9" * 5000).encode(),
        b"\xef\xbb\xbf{}",
    ],
)
def test_junk_is_not_understood(wire: Wire, junk: bytes) -> None:
    with pytest.raises(CodecError):
        CODECS[wire].read(junk)
    call = CODECS[wire].read(dict(ALL)[wire]())
    assert CODECS[wire].label(call, junk) is None
    assert CODECS[wire].usage(junk) is None


def test_the_teachers_spelling_is_kept() -> None:
    codec, call = CODECS["openai.chat"], CODECS["openai.chat"].read(chat_json())
    for content in ('{"intent": "refund"}', '{\n  "intent" : "refund"\n}\n', '{"intent":"refund"}'):
        like = chat_reply(content)
        said = json.loads(codec.answer(call, "card lost", **GIVEN, like=like))
        assert said["choices"][0]["message"]["content"] == content.replace("refund", "card lost")
        assert list(said) == [key for key in json.loads(like) if key != "system_fingerprint"]
        assert said["service_tier"] == "default"
        assert said["usage"] == {"prompt_tokens": 20, "completion_tokens": 3, "total_tokens": 23}
        chunks = codec.stream(call, "card lost", **GIVEN, like=like)
        assert codec.label_of_stream(call, events_of(chunks)) == "card lost"
        assert b'"service_tier":"default"' in chunks[0]


def test_a_text_keeps_the_teachers_white_space() -> None:
    codec, call = CODECS["openai.chat"], CODECS["openai.chat"].read(chat())
    said = json.loads(codec.answer(call, "b", **GIVEN, like=chat_reply(" a\n")))
    assert said["choices"][0]["message"]["content"] == " b\n"


def test_paths_lead_to_codecs() -> None:
    for path, wire in (("/v1/chat/completions", "openai.chat"), ("/messages/", "anthropic.messages")):
        codec = codec_of(path)
        assert codec is not None
        assert codec.wire == wire
    assert codec_of("/v1/embeddings") is None
