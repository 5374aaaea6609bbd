"""What in a request is part of its prompt, and what makes it unanswerable: nothing in a turn is ignored."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from tests.gateway.codecs.samples import (
    chat,
    chat_json,
    chat_tool,
    decisions,
    messages,
    messages_json,
    messages_tool,
    responses,
    responses_json,
    systemone,
)
from tracer.gateway.codecs import CODECS
from tracer.gateway.selecting import Selection, fingerprint, select
from tracer.gateway.settings import InputSelector

SYSTEM, USER = {"role": "system", "content": "Classify."}, {"role": "user", "content": "text"}
SHOTS = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "refund"}, {"role": "user", "content": "b"}]
NESTED: Any = {"type": "function", "function": {"name": "label", "arguments": "A"}}


def selected(wire: Any, request: bytes, *, history: Any = "prompt") -> Selection:
    found = select(CODECS[wire].read(request), InputSelector(history=history))
    assert found is not None
    return found


def printed(wire: Any, request: bytes, **given: Any) -> str:
    return fingerprint(selected(wire, request, **given))


def why(wire: Any, request: bytes) -> str:
    return CODECS[wire].read(request).unanswerable


@pytest.mark.parametrize(
    ("wire", "request_body", "digest"),
    [
        ("openai.chat", chat(), "0187ff24bca41d320761315f80f9152a"),
        ("openai.chat", chat(temperature=0, top_p=0.1, seed=7, user="u"), "0187ff24bca41d320761315f80f9152a"),
        ("openai.responses", responses(), "0187ff24bca41d320761315f80f9152a"),
        ("anthropic.messages", messages(), "0187ff24bca41d320761315f80f9152a"),
        ("openai.chat", chat_json(), "f3370367d24b09e61139285fba780755"),
        ("openai.chat", chat_tool(), "cc3f3bccfd471bfc4588756e5bf80c9c"),
        ("openai.responses", responses_json(), "9adae254ba4b91a52530cd602edd99fa"),
        ("anthropic.messages", messages_tool(), "7eeb615e01b40eb34c6037d728e04a3d"),
        ("anthropic.messages", messages_json(), "73d9a30415599f7f0c70d76950a5cc24"),
        ("decisions", decisions(), "6cafbd6e54ec39ff842317ca6362cb7f"),
        ("systemone", systemone(), "617bd49e767962498be5aa9469add7ac"),
        ("openai.chat", chat(messages=[SYSTEM, *SHOTS]), "3e6de459a8ee0d6035cc3ed0d0937a2e"),
        ("openai.responses", responses(input=SHOTS), "3e6de459a8ee0d6035cc3ed0d0937a2e"),
        ("anthropic.messages", messages(messages=SHOTS), "3e6de459a8ee0d6035cc3ed0d0937a2e"),
    ],
)
def test_stored_traces_keep_matching(wire: Any, request_body: bytes, digest: str) -> None:
    assert printed(wire, request_body) == digest


@pytest.mark.parametrize(
    ("wire", "make", "told"),
    [
        ("openai.chat", chat, [{"reasoning_effort": "low"}, {"reasoning_effort": "high"}, {"verbosity": "low"}]),
        (
            "openai.responses",
            responses,
            [{"reasoning": {"effort": "low"}}, {"reasoning": {"effort": "high"}}, {"text": {"verbosity": "low"}}],
        ),
        (
            "anthropic.messages",
            messages,
            [
                {"output_config": {"effort": "low"}},
                {"output_config": {"effort": "high"}},
                {"thinking": {"type": "adaptive"}},
                {"thinking": {"type": "disabled"}},
            ],
        ),
    ],
)
def test_effort_and_thinking_make_another_teacher_and_sampling_does_not(
    wire: Any, make: Callable[..., bytes], told: list[dict[str, Any]]
) -> None:
    plain = printed(wire, make())
    assert len({plain, *(printed(wire, make(**more)) for more in told)}) == len(told) + 1
    assert {why(wire, make(**more)) for more in told} == {""}
    for more in ({"temperature": 0}, {"temperature": 1}, {"top_p": 0.1}, {"service_tier": "auto"}):
        assert printed(wire, make(**more)) == plain


def test_what_stands_beside_an_effort_hides_nothing() -> None:
    odd = messages(output_config={"effort": "low", "thinking": 1, "format": {"type": "text"}})
    assert printed("anthropic.messages", odd) != printed(
        "anthropic.messages", messages(output_config={"effort": "low"})
    )
    hidden = [responses(text={"format": {"type": kind}}, reasoning={"text": 1}) for kind in ("text", "json_object")]
    assert len({printed("openai.responses", one) for one in hidden}) == 2


def test_one_effort_is_one_on_all_wires() -> None:
    asked = {
        "openai.chat": chat(reasoning_effort="low"),
        "openai.responses": responses(reasoning={"effort": "low", "summary": None}),
        "anthropic.messages": messages(output_config={"effort": "low"}),
    }
    assert len({printed(wire, request) for wire, request in asked.items()}) == 1


def chat_shots(label: str = "A", id: str = "c1", said: str = "ok", **more: Any) -> bytes:  # noqa: A002
    call = {"id": id, "type": "function", "function": {"name": "label", "arguments": label}}
    turn = {"role": "assistant", "content": None, "tool_calls": [call], **more}
    return chat(messages=[SYSTEM, USER, turn, {"role": "tool", "tool_call_id": id, "content": said}, USER])


def responses_shots(label: str = "A", id: str = "c1", said: str = "ok") -> bytes:  # noqa: A002
    call = {"type": "function_call", "call_id": id, "name": "label", "arguments": label}
    return responses(input=[USER, call, {"type": "function_call_output", "call_id": id, "output": said}, USER])


def messages_shots(label: str = "A", id: str = "c1", said: str = "ok") -> bytes:  # noqa: A002
    use = {"type": "tool_use", "id": id, "name": "label", "input": {"label": label}}
    result = {"type": "tool_result", "tool_use_id": id, "content": said}
    text = {"type": "text", "text": "text", "cache_control": {"type": "ephemeral"}}
    turns = [USER, {"role": "assistant", "content": [use]}, {"role": "user", "content": [result, text]}]
    return messages(messages=turns)


@pytest.mark.parametrize(
    ("wire", "make"),
    [("openai.chat", chat_shots), ("openai.responses", responses_shots), ("anthropic.messages", messages_shots)],
)
def test_examples_of_tools_are_part_of_the_prompt(wire: Any, make: Callable[..., bytes]) -> None:
    assert why(wire, make()) == ""
    assert selected(wire, make()).text == "text"
    assert printed(wire, make()) == printed(wire, make(id="c2")), "ids differ each time"
    assert len({printed(wire, one) for one in (make(), make("B"), make(said="no"))}) == 3


def test_which_result_belongs_to_which_call_counts() -> None:
    calls = [NESTED | {"id": "x"}, NESTED | {"id": "y"}]
    said = [{"role": "tool", "tool_call_id": name, "content": "ok"} for name in "xy"]
    one, other = (
        chat(messages=[USER, {"role": "assistant", "tool_calls": calls}, *results, USER])
        for results in (said, said[::-1])
    )
    assert printed("openai.chat", one) != printed("openai.chat", other)


@pytest.mark.parametrize(
    "turn",
    [
        USER | {"name": "alice"},
        USER | {"name": "bob"},
        {"role": "system", "content": "text"},
    ],
)
def test_names_are_part_of_the_prompt(turn: dict[str, Any]) -> None:
    request = chat(messages=[SYSTEM, USER, turn, USER])
    assert why("openai.chat", request) == ""
    assert printed("openai.chat", request) != printed("openai.chat", chat(messages=[SYSTEM, USER, USER, USER]))
    named = [chat(messages=[SYSTEM, USER | {"name": name}]) for name in ("alice", "bob")]
    assert len({printed("openai.chat", one) for one in (chat(messages=[SYSTEM, USER]), *named)}) == 3


@pytest.mark.parametrize(
    ("wire", "make"),
    [
        ("openai.chat", lambda turns: chat(messages=turns)),
        ("openai.responses", lambda turns: responses(input=turns)),
        ("anthropic.messages", lambda turns: messages(messages=turns)),
    ],
)
def test_late_instructions_are_a_turn(wire: Any, make: Callable[..., bytes]) -> None:
    late = {"role": "system", "content": "Reply in French."}
    before, after, none = make([late, USER]), make([USER, late]), make([USER])
    assert len({printed(wire, one) for one in (before, after, none)}) == 3
    assert len({printed(wire, one, history="ignore") for one in (before, after, none)}) == 3
    between = [make([USER, other, USER]) for other in (late, late | {"content": "Reply in Dutch."})]
    assert len({printed(wire, one, history="ignore") for one in (*between, none)}) == 3


def test_what_follows_the_text_is_no_history() -> None:
    trailing = [{"role": "assistant", "tool_calls": [NESTED]}, {"role": "tool", "content": "found"}]
    plain, more = chat(messages=[SYSTEM, *SHOTS]), chat(messages=[SYSTEM, *SHOTS, *trailing])
    assert printed("openai.chat", plain, history="ignore") == printed("openai.chat", chat())
    assert printed("openai.chat", plain, history="ignore") != printed("openai.chat", more, history="ignore")


@pytest.mark.parametrize(
    ("wire", "request_body"),
    [
        ("openai.chat", chat(messages=[USER | {"images": ["b64"]}])),
        ("openai.chat", chat(messages=[USER | {"audio": {"id": "a"}}])),
        ("openai.chat", chat(messages=[{"role": "assistant", "content": "a", "reasoning_content": "since"}, USER])),
        ("openai.chat", chat(messages=[USER | {"content": [{"type": "text", "text": "t", "image_url": "u"}]}])),
        ("openai.responses", responses(input=[USER | {"foo": 1}])),
        ("openai.responses", responses(input=[USER | {"content": [{"type": "input_text", "text": "t", "foo": 1}]}])),
        ("openai.responses", responses(input=[{"type": "reasoning", "id": "r", "summary": []}, USER])),
        ("openai.responses", responses(input=[USER, {"type": "function_call", "call_id": "c", "name": "f"}])),
        ("anthropic.messages", messages(messages=[USER | {"foo": 1}])),
        (
            "anthropic.messages",
            messages(messages=[USER | {"content": [{"type": "text", "text": "t", "citations": [1]}]}]),
        ),
        ("anthropic.messages", messages(system=[{"type": "text", "text": "t", "foo": False}])),
        (
            "anthropic.messages",
            messages(messages=[USER | {"content": [{"type": "tool_result", "content": [{"type": "image"}]}]}]),
        ),
        ("decisions", decisions(input=[USER | {"foo": 1}])),
    ],
)
def test_what_is_not_known_in_a_turn_is_not_ignored(wire: Any, request_body: bytes) -> None:
    assert why(wire, request_body) != ""


def test_what_an_sdk_writes_of_an_earlier_answer_is_fine() -> None:
    empty: dict[str, Any] = {
        "refusal": None,
        "annotations": [],
        "audio": None,
        "function_call": None,
        "tool_calls": None,
    }
    assert why("openai.chat", chat(messages=[USER, SHOTS[1] | empty, USER])) == ""
    text = {"type": "output_text", "text": "refund", "annotations": [], "logprobs": []}
    item = {"type": "message", "id": "msg_1", "status": "completed", "role": "assistant", "content": [text]}
    assert printed("openai.responses", responses(input=[SHOTS[0], item, USER])) == printed("openai.chat", chat_few())
    block = {"type": "text", "text": "refund", "citations": None}
    turns = [SHOTS[0], {"role": "assistant", "content": [block]}, USER]
    assert why("anthropic.messages", messages(messages=turns)) == ""


def chat_few() -> bytes:
    return json.dumps({"model": "m", "messages": [SYSTEM, *SHOTS]}).encode()
