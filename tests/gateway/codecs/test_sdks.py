"""The official SDKs parse what the codecs write: whole and streamed, sync and async, answers and errors."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import anthropic
import httpx2
import openai
import pytest
from anthropic.types import Message
from openai.types import Decision
from openai.types.chat import ChatCompletion
from openai.types.responses import Response

from tests.gateway.codecs.samples import ALL, LABELS, SCHEMA, decisions
from tracer.gateway.calls import Wire
from tracer.gateway.codecs import CODECS, codec_of
from tracer.types import Usage

TYPES: dict[Wire, Any] = {
    "openai.chat": ChatCompletion,
    "openai.responses": Response,
    "anthropic.messages": Message,
    "decisions": Decision,
}
TURNS: Any = [{"role": "user", "content": "my card is gone"}]


def gateway(label: str, status: int = 200) -> Callable[[httpx2.Request], httpx2.Response]:
    """A gateway whose surrogate always says ``label``."""

    def handle(request: httpx2.Request) -> httpx2.Response:
        codec = codec_of(request.url.path)
        assert codec is not None
        if status != 200:
            return httpx2.Response(
                status, content=codec.error(status, "no"), headers={"content-type": "application/json"}
            )
        call = codec.read(request.content)
        assert call.unanswerable == ""
        given: dict[str, Any] = {"id": "7f", "created": 1_760_000_000, "model": call.model, "usage": Usage(20, 3)}
        if not call.stream:
            body = codec.answer(call, label, **given)
            return httpx2.Response(200, content=body, headers={"content-type": "application/json"})
        chunks = b"".join(codec.stream(call, label, **given))
        return httpx2.Response(200, content=chunks, headers={"content-type": "text/event-stream"})

    return handle


def openai_client(label: str, status: int = 200) -> openai.OpenAI:
    transport = httpx2.MockTransport(gateway(label, status))
    return openai.OpenAI(
        api_key="k", base_url="http://t/v1", max_retries=0, http_client=httpx2.Client(transport=transport)
    )


def anthropic_client(label: str, status: int = 200) -> anthropic.Anthropic:
    transport = httpx2.MockTransport(gateway(label, status))
    return anthropic.Anthropic(
        api_key="k", base_url="http://t", max_retries=0, http_client=httpx2.Client(transport=transport)
    )


@pytest.mark.parametrize(("wire", "make"), [(wire, make) for wire, make in ALL if wire in TYPES])
def test_answers_are_valid_by_the_sdks_types(wire: Wire, make: Callable[..., bytes]) -> None:
    codec = CODECS[wire]
    answer = codec.answer(codec.read(make()), LABELS[2], id="7f", created=1_760_000_000, model="m")
    TYPES[wire].model_validate(json.loads(answer))


@pytest.mark.parametrize("label", LABELS)
def test_openai_chat(label: str) -> None:
    form: Any = {"type": "json_schema", "json_schema": {"name": "label", "schema": SCHEMA, "strict": True}}
    tool: Any = {"type": "function", "function": {"name": "classify", "parameters": SCHEMA, "strict": True}}
    with openai_client(label) as client:
        plain = client.chat.completions.create(model="m", messages=TURNS)
        assert plain.choices[0].message.content == label
        assert plain.usage is not None
        assert plain.usage.total_tokens == 23
        for more in ({"response_format": form}, {"tools": [tool]}):
            whole: Any = client.chat.completions.create(model="m", messages=TURNS, **more)
            options: Any = {"include_usage": True}
            with client.chat.completions.stream(model="m", messages=TURNS, stream_options=options, **more) as stream:
                final: Any = stream.get_final_completion()
            assert final.usage.total_tokens == 23
            for message in (whole.choices[0].message, final.choices[0].message):
                text = message.tool_calls[0].function.arguments if message.tool_calls else message.content
                assert json.loads(text) == {"intent": label}
        chunks = list(client.chat.completions.create(model="m", messages=TURNS, stream=True))
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == label
        assert [chunk.choices[0].finish_reason for chunk in chunks] == [None, None, "stop"]


@pytest.mark.parametrize("label", LABELS)
def test_openai_responses(label: str) -> None:
    form: Any = {"format": {"type": "json_schema", "name": "label", "schema": SCHEMA, "strict": True}}
    tool: Any = {"type": "function", "name": "classify", "parameters": SCHEMA, "strict": True}
    with openai_client(label) as client:
        assert client.responses.create(model="m", input="my card is gone").output_text == label
        assert json.loads(client.responses.create(model="m", input="x", text=form).output_text) == {"intent": label}
        called: Any = client.responses.create(model="m", input="x", tools=[tool]).output[0]
        assert called.type == "function_call"
        assert json.loads(called.arguments) == {"intent": label}
        for more in ({}, {"text": form}, {"tools": [tool]}):
            with client.responses.stream(model="m", input="x", **more) as stream:
                kinds = [event.type for event in stream]
                final: Any = stream.get_final_response()
            assert kinds[0] == "response.created"
            assert kinds[-1] == "response.completed"
            assert final.usage.total_tokens == 23
            text = final.output[0].arguments if "tools" in more else final.output_text
            assert (text == label) if not more else json.loads(text) == {"intent": label}


@pytest.mark.parametrize("label", LABELS)
def test_anthropic_messages(label: str) -> None:
    form: Any = {"format": {"type": "json_schema", "schema": SCHEMA}}
    tool: Any = {"name": "classify", "input_schema": SCHEMA}
    with anthropic_client(label) as client:
        for more in (
            {},
            {"output_config": form},
            {"tools": [tool], "tool_choice": {"type": "tool", "name": "classify"}},
        ):
            whole: Any = client.messages.create(model="m", max_tokens=50, messages=TURNS, **more)
            with client.messages.stream(model="m", max_tokens=50, messages=TURNS, **more) as stream:
                final: Any = stream.get_final_message()
            for message in (whole, final):
                block: Any = message.content[0]
                if "tools" in more:
                    assert (block.name, block.input) == ("classify", {"intent": label})
                    assert message.stop_reason == "tool_use"
                else:
                    assert (json.loads(block.text)["intent"] if more else block.text) == label
                    assert message.stop_reason == "end_turn"
                assert (message.usage.input_tokens, message.usage.output_tokens) == (20, 3)


def test_the_async_clients() -> None:
    async def both() -> tuple[str, str, str]:
        transport = httpx2.MockTransport(gateway("refund"))
        async with httpx2.AsyncClient(transport=transport) as http:
            one = openai.AsyncOpenAI(api_key="k", base_url="http://t/v1", http_client=http)
            stream = await one.chat.completions.create(model="m", messages=TURNS, stream=True)
            text = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
            async with one.responses.stream(model="m", input="x") as events:
                response = await events.get_final_response()
            other = anthropic.AsyncAnthropic(api_key="k", base_url="http://t", http_client=http)
            async with other.messages.stream(model="m", max_tokens=50, messages=TURNS) as turns:
                return text, response.output_text, await turns.get_final_text()

    assert asyncio.run(both()) == ("refund",) * 3


def test_openai_decisions() -> None:
    asked = json.loads(decisions(("a", "b", True)))
    with openai_client("b") as client:
        answer = client.decisions.create(model="m", input=asked["input"], questions=asked["questions"]).answers[0]
    assert answer.type == "choice"
    assert answer.name == "intent"
    assert answer.choice == "b"
    assert [pair.probability for pair in answer.probabilities] == [0.0, 1.0, 0.0]
    with openai_client("true") as client:
        answer = client.decisions.create(model="m", input=asked["input"], questions=asked["questions"]).answers[0]
    assert answer.type == "choice"
    assert answer.choice is True


@pytest.mark.parametrize(
    ("status", "kind"), [(400, "BadRequestError"), (401, "AuthenticationError"), (429, "RateLimitError")]
)
def test_errors_are_the_sdks_own(status: int, kind: str) -> None:
    with openai_client("x", status) as client, pytest.raises(getattr(openai, kind), match="no"):
        client.chat.completions.create(model="m", messages=TURNS)
    with anthropic_client("x", status) as other, pytest.raises(getattr(anthropic, kind), match="no"):
        other.messages.create(model="m", max_tokens=50, messages=TURNS)


def test_an_error_in_a_stream_is_raised() -> None:
    def handle(request: httpx2.Request) -> httpx2.Response:
        codec = codec_of(request.url.path)
        assert codec is not None
        call = codec.read(request.content)
        chunks = [*codec.stream(call, "x", id="7f", created=1, model="m")[:2], codec.error_event(503, "it broke off")]
        return httpx2.Response(200, content=b"".join(chunks), headers={"content-type": "text/event-stream"})

    with httpx2.Client(transport=httpx2.MockTransport(handle)) as http:
        one = openai.OpenAI(api_key="k", base_url="http://t/v1", http_client=http)
        with pytest.raises(openai.APIError, match="it broke off"):
            list(one.chat.completions.create(model="m", messages=TURNS, stream=True))
        other = anthropic.Anthropic(api_key="k", base_url="http://t", http_client=http)
        with pytest.raises(anthropic.APIError, match="it broke off"):
            list(other.messages.create(model="m", max_tokens=50, messages=TURNS, stream=True))
        events = list(one.responses.create(model="m", input="x", stream=True))
        assert events[-1].type == "error"
