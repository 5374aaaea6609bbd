"""OpenAI chat lines and LiteLLM payloads."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from tracer.errors import BadTraceError
from tracer.traces.readers import detect_format, read_traces
from tracer.types import Trace, Usage

ASKED = [{"role": "system", "content": "classify"}, {"role": "user", "content": "lost my card"}]


def one(path: Path, record: object, **options: Any) -> Trace:
    path.write_text(json.dumps(record) + "\n", encoding="utf-8")
    (trace,) = read_traces(path, **options).traces
    return trace


def answered(message: object) -> dict[str, Any]:
    return {"messages": ASKED, "response": {"choices": [{"message": message}]}}


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "traces.jsonl"


def test_fine_tuning_lines(log: Path) -> None:
    trace = one(log, {"messages": [*ASKED, {"role": "assistant", "content": " lost_card "}], "group": "u"})
    assert (trace.text, trace.label, trace.group) == ("lost my card", "lost_card", "u")
    assert detect_format(log) == "openai-chat"


def test_batch_lines(log: Path) -> None:
    usage = {"prompt_tokens": 800, "completion_tokens": 15}
    message = {"role": "assistant", "content": '{"label": "lost_card"}'}
    body = {"id": "r", "model": "gpt-4o-2024", "created": 1_767_322_800, "choices": [{"message": message}]}
    record = {
        "custom_id": "c-1",
        "request": {"body": {"model": "gpt-4o", "messages": ASKED}},
        "response": {"status_code": 200, "body": body | {"usage": usage}},
        "error": None,
    }
    trace = one(log, record)
    assert (trace.id, trace.text, trace.label) == ("c-1", "lost my card", "lost_card")
    assert (trace.teacher, trace.usage) == ("gpt-4o-2024", Usage(800, 15))
    assert trace.time == datetime(2026, 1, 2, 3, tzinfo=UTC)


def test_stored_completions(log: Path) -> None:
    parts = [{"type": "text", "text": "lost"}, {"type": "image_url"}, {"type": "text", "text": "card"}]
    record = {
        "id": "chatcmpl-1",
        "model": "gpt-4o",
        "messages": [{"role": "user", "content": parts}],
        "choices": [{"message": {"content": "lost_card"}}],
    }
    trace = one(log, record)
    assert (trace.id, trace.text, trace.label, trace.teacher) == (
        "chatcmpl-1",
        "lost\ncard",
        "lost_card",
        "gpt-4o",
    )


@pytest.mark.parametrize(
    ("message", "label"),
    [
        ({"content": '{"reason": "r", "intent": "x"}'}, "x"),
        ({"content": '{"category": "x", "confidence": 0.9}'}, "x"),
        ({"content": '{"label": 3}'}, "3"),
        ({"content": "{not json"}, "{not json"),
        ({"content": None, "tool_calls": [{"function": {"name": "f", "arguments": '{"c": "x"}'}}]}, "x"),
        ({"content": "", "function_call": {"name": "f", "arguments": {"label": "x"}}}, "x"),
    ],
)
def test_labels_of_answers(log: Path, message: object, label: str) -> None:
    assert one(log, answered(message), format="openai-chat").label == label


def test_label_field_names_a_field_of_the_answer_or_of_the_record(log: Path) -> None:
    record = answered({"content": '{"a": "x", "b": {"c": "y"}}'}) | {"reviewed": "z"}
    assert one(log, record, label_field="b.c").label == "y"
    assert one(log, record, label_field="reviewed").label == "z"
    assert one(log, record, input_field="reviewed", label_field="a", format="openai-chat").text == "z"


@pytest.mark.parametrize(
    ("record", "key", "problem"),
    [
        (
            answered({"content": '{"a": "x", "b": "y"}'}),
            "response.choices.0.message.content",
            "2 string fields",
        ),
        (answered({"content": None}), "response.choices.0.message.content", "no content and no tool call"),
        (answered({"tool_calls": [{}, {}]}), "response.choices.0.message.tool_calls", "one tool call"),
        (
            answered({"tool_calls": [{"function": {"arguments": "nope"}}]}),
            "response.choices.0.message.tool_calls.arguments",
            "must be a JSON object",
        ),
        ({"messages": ASKED}, "messages", "no assistant message after the last user message"),
        ({"messages": ASKED[:1]}, "messages", "no assistant message"),
        ({"messages": "x"}, "messages", "must be a list of messages, not a str"),
        ({"messages": [3]}, "messages.0", "a message must be an object"),
        (
            {"messages": [*ASKED, {"role": "assistant", "content": 3}]},
            "messages.2.content",
            "string or a list",
        ),
        ({"messages": ASKED, "response": {}}, "response", "has no choices"),
        ({"messages": ASKED, "choices": []}, "response.choices", "no choices[0].message"),
        ({"request": {}, "response": {}}, "messages", "needs its request"),
        ({"messages": ASKED, "error": {"code": "x"}}, "error", "the teacher call failed"),
        ({"messages": ASKED, "response": {"status_code": 429}}, "response.status_code", "call failed"),
        (
            {"messages": [{"role": "tool"}], "choices": [{"message": {"content": "x"}}]},
            "messages",
            "no user message",
        ),
    ],
)
def test_bad_chat_records(log: Path, record: object, key: str, problem: str) -> None:
    with pytest.raises(BadTraceError) as caught:
        one(log, record, format="openai-chat")
    assert (caught.value.key, caught.value.line) == (key, 1)
    assert problem in caught.value.problem


PAYLOAD: dict[str, Any] = {
    "id": "chatcmpl-9",
    "call_type": "acompletion",
    "status": "success",
    "model": "claude-sonnet-4-5",
    "startTime": 1_767_322_800.25,
    "prompt_tokens": 800,
    "completion_tokens": 15,
    "metadata": {"team": "support"},
    "messages": ASKED,
    "response": {"choices": [{"message": {"role": "assistant", "content": "lost_card"}}]},
}


def test_litellm(log: Path) -> None:
    trace = one(log, PAYLOAD)
    assert detect_format(log) == "litellm"
    assert (trace.id, trace.text, trace.label) == ("chatcmpl-9", "lost my card", "lost_card")
    assert (trace.teacher, trace.usage) == ("claude-sonnet-4-5", Usage(800, 15))
    assert trace.time == datetime(2026, 1, 2, 3, 0, 0, 250_000, tzinfo=UTC)
    assert trace.metadata == {"team": "support"}


def test_litellm_strings_and_iso_times(log: Path) -> None:
    trace = one(log, PAYLOAD | {"messages": "hi", "response": "greeting", "startTime": "2026-01-02T03:00:00Z"})
    assert (trace.text, trace.label, trace.time) == ("hi", "greeting", datetime(2026, 1, 2, 3, tzinfo=UTC))


@pytest.mark.parametrize(
    ("change", "key", "problem"),
    [
        ({"status": "failure", "error_str": "rate limit"}, "status", "the teacher call failed: rate limit"),
        ({"messages": "redacted-by-litellm"}, "messages", "written without its messages"),
        ({"response": None}, "response.choices", "no choices[0].message"),
    ],
)
def test_bad_litellm_records(log: Path, change: dict[str, Any], key: str, problem: str) -> None:
    with pytest.raises(BadTraceError) as caught:
        one(log, PAYLOAD | change)
    assert caught.value.key == key
    assert problem in str(caught.value)


@pytest.mark.parametrize(
    ("record", "options", "expected"),
    [
        ({"input": "a", "label": "b", "messages": []}, (), "jsonl"),
        ({"messages": [], "label": "b"}, ("messages", "label"), "jsonl"),
        ({"messages": [], "response": "b", "status": "success"}, (), "litellm"),
        ({"messages": [], "response": {}}, (), "openai-chat"),
        ({"request": {}, "response": {}}, (), "openai-chat"),
        ({"something": 1}, (), "jsonl"),
    ],
)
def test_detection(log: Path, record: object, options: tuple[str, ...], expected: str) -> None:
    log.write_text("not json\n" + json.dumps(record), encoding="utf-8")
    assert detect_format(log, *options) == expected
