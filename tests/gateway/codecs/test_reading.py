"""What a request is read as, what a surrogate cannot give, and which answers have no label."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from tests.gateway.codecs.samples import (
    LABELS,
    SCHEMA,
    body,
    chat,
    chat_json,
    chat_reply,
    chat_tool,
    decisions,
    messages,
    messages_tool,
    responses,
    systemone,
)
from tracer.errors import CodecError
from tracer.gateway.calls import Message, Slot
from tracer.gateway.codecs import CODECS
from tracer.gateway.codecs.choices import spread

CHAT, RESPONSES, ANTHROPIC = CODECS["openai.chat"], CODECS["openai.responses"], CODECS["anthropic.messages"]
USER = {"role": "user", "content": "x"}
FREE = {"type": "object", "properties": {"intent": {"enum": ["a", "b"]}, "reason": {"type": "string"}}}
GIVEN: dict[str, Any] = {"id": "7f", "created": 1, "model": "m"}
ONE = {"type": "predicate", "name": "p", "instructions": "Is it?"}
CHOICE = {"type": "choice", "instructions": "Which?", "choices": [{"value": "a"}, {"value": "b"}]}
PICTURE = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "u"}}]}]
FUNCTION = {"type": "function", "function": {"name": "classify", "parameters": SCHEMA}}


@pytest.mark.parametrize(
    ("wire", "make"),
    [
        ("openai.chat", chat),
        ("openai.responses", responses),
        ("anthropic.messages", messages),
    ],
)
def test_instructions_and_messages_are_told_apart(wire: Any, make: Callable[..., bytes]) -> None:
    call = CODECS[wire].read(make(metadata={"user_id": "u1"}))
    assert call.system == "Classify."
    assert call.messages == (Message("user", "my card is gone"),)
    assert (call.slot, call.options, call.schema) == (Slot("text"), None, "")
    assert call.metadata == {"user_id": "u1"}


def test_questions_are_read() -> None:
    for wire, make in (("decisions", decisions), ("systemone", systemone)):
        call = CODECS[wire].read(make())  # type: ignore[index]
        assert call.system == "Which?"
        assert call.options == LABELS
        assert "my card is gone" in call.messages[0].text
        assert json.loads(call.schema)["questions"]


def test_a_schema_makes_options_and_a_fingerprint() -> None:
    call, other = CHAT.read(chat_json()), CHAT.read(chat_json(FREE | {"required": ["intent"]}))
    assert call.options == LABELS
    assert call.slot.fields == ("intent",)
    assert other.options == ("a", "b")
    assert call.schema != other.schema


@pytest.mark.parametrize(
    ("request_body", "why"),
    [
        (chat(n=2), "n > 1"),
        (chat(logprobs=True), "logprobs"),
        (chat(store=True), "store"),
        (chat(modalities=["text", "audio"]), "modality"),
        (chat(web_search_options={}), "the field 'web_search_options'"),
        (chat(messages=[USER, {"role": "assistant", "content": "The label is"}]), "prefilled"),
        (chat(messages=PICTURE), "image_url"),
        (chat(response_format={"type": "grammar"}), "a response format 'grammar'"),
        (chat(max_tokens=0), "no tokens"),
        (chat_json(FREE | {"required": ["intent", "reason"]}), "the free field 'reason'"),
        (chat_json(FREE | {"required": ["intent"]}), "the free field 'reason'"),
        (chat_tool(FREE), "the free field 'reason'"),
        (chat_json({"type": "object", "properties": {"tags": {"type": "array"}}}), "without an enum"),
        (chat_json({"type": "object", "properties": {"v": {"enum": [1, "1"]}}}), "read alike"),
        (chat(tools=[FUNCTION, FUNCTION]), "several tools"),
        (chat(tools=[{"type": "custom", "custom": {"name": "c"}}]), "several tools"),
        (chat_tool(response_format={"type": "json_object"}), "beside a tool"),
    ],
)
def test_what_a_surrogate_cannot_give(request_body: bytes, why: str) -> None:
    call = CHAT.read(request_body)
    assert why in call.unanswerable
    for write in (CHAT.answer, CHAT.stream):
        with pytest.raises(CodecError, match="not to be answered"):
            write(call, "a", **GIVEN)


@pytest.mark.parametrize(
    ("wire", "request_body", "why"),
    [
        ("openai.responses", responses(background=True), "background"),
        ("openai.responses", responses(store=True), "store"),
        ("openai.responses", responses(previous_response_id="r"), "previous_response_id"),
        ("openai.responses", responses(input=[{"type": "item_reference", "id": "i"}, USER]), "item_reference"),
        ("openai.responses", responses(reasoning={"summary": "auto"}), "summary"),
        ("openai.responses", responses(tools=[{"type": "web_search"}]), "several tools"),
        ("anthropic.messages", messages(thinking={"type": "enabled", "budget_tokens": 1024}), "thinking"),
        ("anthropic.messages", messages(mcp_servers=[]), "mcp_servers"),
        ("anthropic.messages", messages(messages=[USER, {"role": "assistant", "content": "("}]), "prefilled"),
        ("decisions", decisions(questions=[ONE]), "predicate"),
        ("decisions", decisions(questions=[ONE, ONE]), "predicate"),
        ("decisions", decisions(questions=[CHOICE, CHOICE]), "without names of their own"),
        ("decisions", decisions(questions=[CHOICE, ONE]), "predicate"),
        ("decisions", decisions(("true", True)), "read alike"),
        ("systemone", systemone(questions={"a": {"type": "noul"}}), "noul"),
        ("systemone", systemone(questions={"a": {"type": "noul"}, "b": {}}), "noul"),
    ],
)
def test_what_a_surrogate_cannot_give_on_other_wires(wire: Any, request_body: bytes, why: str) -> None:
    assert why in CODECS[wire].read(request_body).unanswerable


def test_seeds_temperatures_and_one_unforced_tool_are_fine() -> None:
    assert CHAT.read(chat(seed=1, temperature=0, top_p=1, user="u", n=1, logprobs=False)).unanswerable == ""
    assert CHAT.read(chat(tools=[FUNCTION])).slot.tool == "classify"
    assert CHAT.read(chat(tools=[FUNCTION])).unanswerable == ""
    assert CHAT.read(chat(tools=[FUNCTION], tool_choice="none")).slot.kind == "text"
    assert CHAT.read(chat(guided_choice=["a", "b"])).options == ("a", "b")


def test_a_label_that_the_request_cuts_or_forbids_is_refused() -> None:
    for request, label, why in (
        (chat(stop=["\n"]), "line\nbreak", "stop sequence"),
        (chat(max_tokens=2), "longer than eight", "2 tokens"),
        (chat_json(stop="}"), "refund", "stop sequence"),
        (chat_json(), "unknown", "none that"),
        (chat(), "", "no label"),
        (chat(), "__failed__", "no label"),
    ):
        with pytest.raises(CodecError, match=why):
            CHAT.answer(CHAT.read(request), label, **GIVEN)
    assert (
        CHAT.label(CHAT.read(chat()), CHAT.answer(CHAT.read(chat(max_tokens=2, stop="\n")), "short", **GIVEN))
        == "short"
    )


@pytest.mark.parametrize(
    "reply",
    [
        chat_reply("refund", finish_reason="length"),
        chat_reply("refund", finish_reason="content_filter"),
        chat_reply("  \n"),
        chat_reply(None),
        chat_reply("refund", message={"role": "assistant", "content": None, "refusal": "I cannot"}),
        CHAT.error(429, "slow down"),
        b'{"choices": []}',
        b"<html>",
    ],
)
def test_an_answer_without_a_label(reply: bytes) -> None:
    assert CHAT.label(CHAT.read(chat()), reply) is None


def test_several_fields_make_one_label() -> None:
    properties = {"intent": {"enum": ["a", "b"]}, "urgent": {"type": "boolean"}, "v": {"const": 2}}
    schema = {"type": "object", "properties": properties, "required": ["intent", "urgent", "v"]}
    call = CHAT.read(chat_json(schema))
    assert call.unanswerable == ""
    assert call.options is not None
    assert len(call.options) == 4
    like = chat_reply('{"v": 2, "urgent": true, "intent": "a"}')
    assert CHAT.label(call, like) == '{"intent":"a","urgent":true}'
    assert CHAT.reproduces(call, like, like)
    said = json.loads(CHAT.answer(call, '{"intent":"b","urgent":false}', **GIVEN, like=like))
    assert said["choices"][0]["message"]["content"] == '{"v": 2, "urgent": false, "intent": "b"}'
    for label in ('{"intent":"b"}', '{"intent":"c","urgent":false}', "b"):
        with pytest.raises(CodecError):
            CHAT.answer(call, label, **GIVEN)


def test_a_nested_field_and_an_optional_one() -> None:
    inner = {"type": "object", "properties": {"intent": {"enum": ["a", "b"]}, "sub": {"enum": ["c", "d"]}}}
    inner["required"] = ["intent"]
    call = CHAT.read(chat_tool({"type": "object", "properties": {"result": inner}}))
    assert call.slot.path == ("result",)
    answer = json.loads(CHAT.answer(call, '{"intent":"a"}', **GIVEN))
    arguments = answer["choices"][0]["message"]["tool_calls"][0]["function"]["arguments"]
    assert json.loads(arguments) == {"result": {"intent": "a"}}
    assert answer["choices"][0]["finish_reason"] == "stop"


def test_a_json_object_without_a_schema_is_its_own_label() -> None:
    call = CHAT.read(chat(response_format={"type": "json_object"}))
    like = chat_reply('{"z": 1, "intent": "a"}')
    label = CHAT.label(call, like)
    assert label == '{"intent":"a","z":1}'
    assert CHAT.reproduces(call, like, like)


def test_what_was_said_beside_the_label_is_noticed() -> None:
    call = CHAT.read(chat_json({"type": "object", "properties": {"intent": {"enum": ["a", "b"]}}}))
    like = chat_reply('{"intent": "a", "reason": "because"}')
    assert CHAT.label(call, like) == "a"
    assert not CHAT.reproduces(call, like, like)
    assert b"because" not in CHAT.answer(call, "b", **GIVEN, like=like)


def test_another_tool_or_two_calls_have_no_label() -> None:
    call = ANTHROPIC.read(messages_tool())
    use = {"type": "tool_use", "id": "t", "name": "classify", "input": {"intent": "refund"}}
    for content, label in (
        ([{"type": "text", "text": "Let me see."}, use], "refund"),
        ([use, use], None),
        ([use | {"name": "other"}], None),
        ([{"type": "text", "text": "refund"}], None),
    ):
        assert ANTHROPIC.label(call, body(content=content, stop_reason="tool_use")) == label


def test_a_refused_decision_has_no_label_and_the_chosen_has_its_probability() -> None:
    codec = CODECS["decisions"]
    call = codec.read(decisions(("a", "b", "c")))
    assert codec.label(call, body(answers=[{"type": "refusal", "name": "intent"}])) is None
    answer = json.loads(codec.answer(call, "b", **GIVEN, confidence=0.9))["answers"][0]
    assert [pair["probability"] for pair in answer["probabilities"]] == [0.05, 0.9, 0.05]
    assert answer["confidence"] == 0.9
    assert spread(("a", "b"), "a", float("-inf")) == [0.5, 0.5]
    assert spread(("a", "b"), "a", float("nan")) == [0.5, 0.5]


def test_a_response_echoes_the_request() -> None:
    said = json.loads(RESPONSES.answer(RESPONSES.read(responses(temperature=0.2)), "a", **GIVEN))
    assert said["temperature"] == 0.2
    assert said["instructions"] == "Classify."


def test_a_teacher_that_ends_at_a_stop_sequence_is_imitated() -> None:
    call = ANTHROPIC.read(messages(stop_sequences=["</label>"]))
    text = [{"type": "text", "text": "a"}]
    like = body(content=text, stop_reason="stop_sequence", stop_sequence="</label>")
    assert ANTHROPIC.label(call, like) == "a"
    assert json.loads(ANTHROPIC.answer(call, "b", **GIVEN, like=like))["stop_sequence"] == "</label>"
