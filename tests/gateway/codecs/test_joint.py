"""Labels of several parts: several questions of one call, and functions as they were before tools."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import httpx2
import openai
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai.types import Decision
from openai.types.chat import ChatCompletion

from tests.gateway.codecs.samples import (
    LABELS,
    SCHEMA,
    chat,
    chat_function,
    chat_json,
    chat_reply,
    chat_tool,
    decisions_many,
    messages_json,
    messages_tool,
    responses_json,
    systemone_many,
)
from tracer.errors import CodecError
from tracer.gateway.calls import Wire
from tracer.gateway.codecs import CODECS
from tracer.gateway.codecs.bodies import canonical
from tracer.gateway.codecs.sse import events_of
from tracer.types import Usage

GIVEN: dict[str, Any] = {"id": "7f", "created": 1_760_000_000, "model": "m", "usage": Usage(20, 3)}
CHAT = CODECS["openai.chat"]
WIRE_OF: dict[Callable[..., bytes], Wire] = {
    chat_json: "openai.chat", chat_tool: "openai.chat", responses_json: "openai.responses",
    messages_json: "anthropic.messages", messages_tool: "anthropic.messages",
}  # fmt: skip
MANY: list[tuple[Wire, Callable[..., bytes], Any]] = [
    ("decisions", decisions_many, True), ("systemone", systemone_many, "yes"),
]  # fmt: skip


@pytest.mark.parametrize(("wire", "make", "yes"), MANY)
@pytest.mark.parametrize("label", LABELS)
def test_several_choices_are_one_joint_label(wire: Wire, make: Callable[..., bytes], yes: Any, label: str) -> None:
    codec = CODECS[wire]
    call = codec.read(make())
    joint = canonical({"intent": label, "urgent": yes})
    assert call.unanswerable == ""
    assert call.options is not None
    assert joint in call.options
    assert len(call.options) == len(LABELS) * 2
    answer = codec.answer(call, joint, **GIVEN, confidence=0.9)
    assert codec.label(call, answer) == joint
    assert codec.answer(call, joint, **GIVEN, confidence=0.9, like=answer) == answer
    told = json.loads(answer)["answers"]
    one = told[1] if isinstance(told, list) else told["urgent"]
    assert (one["choice"], one["confidence"]) == (yes, 0.9)
    for wrong in (label, canonical({"intent": label}), canonical({"intent": label, "urgent": "perhaps"})):
        with pytest.raises(CodecError):
            codec.answer(call, wrong, **GIVEN)


@pytest.mark.parametrize(("wire", "make", "yes"), MANY)
def test_a_joint_label_needs_each_of_its_parts(wire: Wire, make: Callable[..., bytes], yes: Any) -> None:
    codec = CODECS[wire]
    call = codec.read(make())
    whole = json.loads(codec.answer(call, canonical({"intent": "refund", "urgent": yes}), **GIVEN))
    answers = whole["answers"]
    refused = {"type": "refusal", "name": "urgent"}
    parts: Any = [answers[0], refused] if isinstance(answers, list) else answers | {"urgent": refused}
    fewer: Any = answers[:1] if isinstance(answers, list) else {"intent": answers["intent"]}
    for cut in (parts, fewer, None, 1):
        assert codec.label(call, json.dumps(whole | {"answers": cut}).encode()) is None


def test_a_joint_answer_is_valid_by_the_sdks_types() -> None:
    codec = CODECS["decisions"]
    body = codec.answer(codec.read(decisions_many()), canonical({"intent": "true", "urgent": "no"}), **GIVEN)
    said = Decision.model_validate(json.loads(body))
    assert [answer.name for answer in said.answers] == ["intent", "urgent"]
    assert list(json.loads(body)["answers"][0]) == ["type", "name", "choice", "probabilities", "confidence"]


def test_facts_are_those_of_a_single_choice() -> None:
    for wire, make, yes in MANY:
        codec: Any = CODECS[wire]
        body = codec.answer(codec.read(make()), canonical({"intent": "refund", "urgent": yes}), **GIVEN)
        assert codec.facts(codec.read(make()), body) == {}
        for junk in (b"", b"{}", b'{"answers": [1]}', b'{"answers": [{"type": "choice", "probabilities": [1]}]}'):
            assert codec.facts(codec.read(make()), junk) == {}


@pytest.mark.parametrize("call", [{"name": "classify"}, "auto", None])
@pytest.mark.parametrize("label", LABELS)
def test_a_function_of_old_carries_a_label(label: str, call: Any) -> None:
    request = CHAT.read(chat_function(function_call=call))
    assert (request.unanswerable, request.slot.kind, request.slot.tool) == ("", "tool", "classify")
    assert request.options == LABELS
    answer = CHAT.answer(request, label, **GIVEN)
    said = ChatCompletion.model_validate(json.loads(answer)).choices[0]
    assert said.message.function_call is not None
    assert said.message.tool_calls is None
    assert json.loads(said.message.function_call.arguments) == {"intent": label}
    assert json.loads(answer)["choices"][0]["finish_reason"] == ("stop" if isinstance(call, dict) else "function_call")
    assert CHAT.label(request, answer) == label
    assert CHAT.reproduces(request, answer, answer)
    chunks = CHAT.stream(CHAT.read(chat_function(function_call=call, stream=True)), label, **GIVEN)
    assert CHAT.label_of_stream(request, events_of(chunks)) == label
    assert CHAT.label(request, CHAT.answer(request, label, **GIVEN, like=b"".join(chunks))) == label
    # An answer without the call has no label, nor has a call where a text was asked for.
    assert CHAT.label(request, CHAT.answer(CHAT.read(chat()), label, **GIVEN)) is None
    assert CHAT.label(CHAT.read(chat()), answer) is None


def test_the_sdk_reads_functions_of_old() -> None:
    def handle(request: httpx2.Request) -> httpx2.Response:
        call = CHAT.read(request.content)
        if call.stream:
            body = b"".join(CHAT.stream(call, "refund", **GIVEN))
            return httpx2.Response(200, content=body, headers={"content-type": "text/event-stream"})
        body = CHAT.answer(call, "refund", **GIVEN)
        return httpx2.Response(200, content=body, headers={"content-type": "application/json"})

    with httpx2.Client(transport=httpx2.MockTransport(handle)) as http:
        client = openai.OpenAI(api_key="k", base_url="http://t/v1", http_client=http)
        given: Any = {
            "model": "m", "messages": [{"role": "user", "content": "x"}],
            "functions": [{"name": "classify", "parameters": SCHEMA}], "function_call": {"name": "classify"},
        }  # fmt: skip
        message = client.chat.completions.create(**given).choices[0].message
        assert message.function_call is not None
        assert json.loads(message.function_call.arguments) == {"intent": "refund"}
        deltas = [part.choices[0].delta.function_call for part in client.chat.completions.create(**given, stream=True)]
        assert json.loads("".join(delta.arguments or "" for delta in deltas if delta)) == {"intent": "refund"}


def test_functions_beside_tools_and_calls_of_earlier_turns() -> None:
    tool = {"type": "function", "function": {"name": "a", "parameters": SCHEMA}}
    assert "functions beside tools" in CHAT.read(chat_function(tools=[tool])).unanswerable
    two = [{"name": name, "parameters": SCHEMA} for name in "ab"]
    assert "several tools" in CHAT.read(chat(functions=two)).unanswerable
    assert CHAT.read(chat(functions=two, function_call={"name": "b"})).slot.tool == "b"
    prompts = set()
    for label in LABELS[:2]:
        used = {"id": "1", "type": "function", "function": {"name": "a", "arguments": json.dumps({"intent": label})}}
        example = [{"role": "user", "content": "x"}, {"role": "assistant", "content": None, "tool_calls": [used]}]
        turns = [*example, {"role": "tool", "content": "ok"}, {"role": "user", "content": "y"}]
        prompts.add(CHAT.read(chat(messages=turns)).messages[1])
    assert len(prompts) == 2, "examples that are calls are part of the prompt"


TAGS = ["b", "a", "größe", 'say "hi"']


def tagged(**more: Any) -> dict[str, Any]:
    held = {"type": "array", "items": {"$ref": "#/$defs/Tag"}, **more}
    return {"type": "object", "properties": {"tags": held}, "required": ["tags"], "$defs": {"Tag": {"enum": TAGS}}}


@given(chosen=st.lists(st.sampled_from(TAGS), max_size=5), like=st.lists(st.sampled_from(TAGS), max_size=5))
@settings(max_examples=60, deadline=None)
def test_a_list_of_an_enum_is_a_label_in_its_order_or_a_set(chosen: list[str], like: list[str]) -> None:
    for make in (chat_json, chat_tool, responses_json, messages_json, messages_tool):
        codec = CODECS[WIRE_OF[make]]
        call = codec.read(make(tagged()))
        assert (call.unanswerable, call.options) == ("", None)
        prior = codec.answer(call, canonical(like), **GIVEN)
        answer = codec.answer(call, canonical(chosen), **GIVEN, like=prior)
        assert codec.label(call, answer) == canonical(chosen)
        call = codec.read(make(tagged(uniqueItems=True)))
        assert codec.label(call, answer) == canonical(sorted(set(chosen)))


def test_lists_that_the_schema_forbids() -> None:
    call = CHAT.read(chat_json(tagged(minItems=1, maxItems=2)))
    for wrong in ("[]", '["a","b","a"]', '["c"]', '"a"', "a", '{"tags":["a"]}', "[[]]", "[1]"):
        with pytest.raises(CodecError):
            CHAT.answer(call, wrong, **GIVEN)
    said: dict[str, Any]
    for said in ({"tags": []}, {"tags": "a"}, {"tags": ["c"]}, {"tags": [["a"]]}, {}, {"tags": None}):
        assert CHAT.label(call, chat_reply(json.dumps(said))) is None
    assert CHAT.label(call, chat_reply(json.dumps({"tags": ["b", "a"]}))) == '["b","a"]'
    for free in ({"items": {"type": "string"}}, {"contains": {"const": "a"}}, {"items": {"enum": ["a", 1]}},
                 {"minItems": "1"}):  # fmt: skip
        assert "free field 'tags'" in CHAT.read(chat_json(tagged(**free))).unanswerable


def test_a_list_beside_an_enum_is_part_of_the_joint_label() -> None:
    schema = tagged(uniqueItems=True)
    schema["properties"]["desk"] = {"enum": ["sales", "billing"]}
    schema["required"] = ["tags", "desk"]
    call = CHAT.read(chat_json(schema))
    label = canonical({"tags": ["a", "b"], "desk": "sales"})
    assert CHAT.label(call, chat_reply(json.dumps({"desk": "sales", "tags": ["b", "a", "b"]}))) == label
    assert CHAT.label(call, CHAT.answer(call, label, **GIVEN)) == label
    with pytest.raises(CodecError):
        CHAT.answer(call, canonical({"tags": ["z"], "desk": "sales"}), **GIVEN)
    # An optional list is left out, as before.
    schema["required"] = ["desk"]
    assert CHAT.read(chat_json(schema)).slot.fields == ("desk",)


@given(labels=st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20), min_size=2,
                       max_size=4, unique=True))  # fmt: skip
@settings(max_examples=50, deadline=None)
def test_any_joint_label(labels: list[str]) -> None:
    for wire, make, yes in MANY:
        codec = CODECS[wire]
        call = codec.read(make(labels))
        joint = canonical({"intent": labels[-1], "urgent": yes})
        assert codec.label(call, codec.answer(call, joint, **GIVEN)) == joint
    call = CHAT.read(chat_function({"type": "object", "properties": {"x": {"enum": labels}}, "required": ["x"]}))
    assert CHAT.label(call, CHAT.answer(call, labels[0], **GIVEN)) == labels[0]
