"""The official SDKs beyond plain calls: pydantic, tools and streams, asynchronously, handled and deferred alike."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import anthropic
import openai
import pytest
from pydantic import BaseModel

from tests.gateway.sdks import KEY, SCHEMA, ByEnum, ByLiteral, Rig, turns
from tests.gateway.serving import MODEL, SYSTEM

FORMS = pytest.mark.parametrize("form", [ByEnum, ByLiteral])


@FORMS
def test_openai_parses_pydantic_models(sdk: Rig, form: type[BaseModel]) -> None:
    with openai.OpenAI(base_url=sdk.v1, api_key=KEY) as client:
        for text, label, decision in sdk.cases:
            raw = client.chat.completions.with_raw_response.parse(
                model=MODEL, messages=turns(text), response_format=form
            )
            assert raw.headers["x-tracer-decision"] == decision
            assert raw.parse().choices[0].message.parsed == form.model_validate({"desk": label})
            with client.chat.completions.stream(model=MODEL, messages=turns(text), response_format=form) as stream:
                final = stream.get_final_completion()
            assert final.choices[0].message.parsed == form.model_validate({"desk": label})
            reply = client.responses.parse(model=MODEL, instructions=SYSTEM, input=text, text_format=form)
            assert reply.output_parsed == form.model_validate({"desk": label})


@FORMS
def test_openai_parses_tools_of_pydantic_models(sdk: Rig, form: type[BaseModel]) -> None:
    tool = openai.pydantic_function_tool(form, name="send")
    choice: Any = {"type": "function", "function": {"name": "send"}}
    with openai.OpenAI(base_url=sdk.v1, api_key=KEY) as client:
        for text, label, _ in sdk.cases:
            reply = client.chat.completions.parse(model=MODEL, messages=turns(text), tools=[tool], tool_choice=choice)
            called = reply.choices[0].message.tool_calls
            assert called
            assert called[0].function.parsed_arguments == form.model_validate({"desk": label})


def test_openai_responses_calls_tools(sdk: Rig) -> None:
    tool: Any = {"type": "function", "name": "send", "parameters": SCHEMA, "strict": True}
    choice: Any = {"type": "function", "name": "send"}
    with openai.OpenAI(base_url=sdk.v1, api_key=KEY) as client:
        for text, label, decision in sdk.cases:
            given: Any = {"model": MODEL, "instructions": SYSTEM, "input": text, "tools": [tool], "tool_choice": choice}
            raw = client.responses.with_raw_response.create(**given)
            item: Any = raw.parse().output[0]
            assert raw.headers["x-tracer-decision"] == decision
            assert (item.type, json.loads(item.arguments)) == ("function_call", {"desk": label})
            with client.responses.stream(**given) as stream:
                stream.until_done()
                streamed: Any = stream.get_final_response().output[0]
            assert json.loads(streamed.arguments) == {"desk": label}


def test_openai_asynchronously(sdk: Rig) -> None:
    tool = openai.pydantic_function_tool(ByEnum, name="send")
    choice: Any = {"type": "function", "function": {"name": "send"}}

    async def ask(client: openai.AsyncOpenAI, text: str, label: str, decision: str) -> None:
        raw = await client.chat.completions.with_raw_response.create(model=MODEL, messages=turns(text), stream=True)
        chunks = [chunk async for chunk in raw.parse()]
        assert raw.headers["x-tracer-decision"] == decision
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == label
        parsed = await client.chat.completions.parse(model=MODEL, messages=turns(text), response_format=ByLiteral)
        assert parsed.choices[0].message.parsed == ByLiteral.model_validate({"desk": label})
        called = await client.chat.completions.parse(
            model=MODEL, messages=turns(text), tools=[tool], tool_choice=choice
        )
        calls = called.choices[0].message.tool_calls
        assert calls
        assert calls[0].function.parsed_arguments == ByEnum.model_validate({"desk": label})
        reply = await client.responses.parse(model=MODEL, instructions=SYSTEM, input=text, text_format=ByEnum)
        assert reply.output_parsed == ByEnum.model_validate({"desk": label})
        async with client.responses.stream(model=MODEL, instructions=SYSTEM, input=text) as stream:
            await stream.until_done()
            assert (await stream.get_final_response()).output_text == label

    async def all_at_once() -> None:
        async with openai.AsyncOpenAI(base_url=sdk.v1, api_key=KEY) as client:
            await asyncio.gather(*(ask(client, *case) for case in sdk.cases))

    asyncio.run(all_at_once())


@FORMS
def test_anthropic_parses_pydantic_models(sdk: Rig, form: type[BaseModel]) -> None:
    with anthropic.Anthropic(base_url=sdk.served.url, api_key=KEY) as client:
        for text, label, _ in sdk.cases:
            given: Any = {"model": MODEL, "max_tokens": 50, "system": SYSTEM}
            given["messages"] = [{"role": "user", "content": text}]
            assert client.messages.parse(**given, output_format=form).parsed_output == form.model_validate(
                {"desk": label}
            )
            with client.messages.stream(**given, output_format=form) as stream:
                assert stream.get_final_message().parsed_output == form.model_validate({"desk": label})
                assert stream.response.headers["x-tracer-decision"] in ("handled", "deferred")


def test_anthropic_asynchronously(sdk: Rig) -> None:
    tool: Any = {"name": "send", "input_schema": SCHEMA}

    async def ask(client: anthropic.AsyncAnthropic, text: str, label: str, decision: str) -> None:
        given: Any = {"model": MODEL, "max_tokens": 50, "system": SYSTEM}
        given["messages"] = [{"role": "user", "content": text}]
        async with client.messages.stream(**given) as stream:
            assert await stream.get_final_text() == label
            assert stream.response.headers["x-tracer-decision"] == decision
        parsed = await client.messages.parse(**given, output_format=ByLiteral)
        assert parsed.parsed_output == ByLiteral.model_validate({"desk": label})
        choice: Any = {"type": "tool", "name": "send"}
        raw = await client.messages.with_raw_response.create(**given, tools=[tool], tool_choice=choice)
        block: Any = (await raw.parse()).content[0]
        assert (block.type, block.input, raw.headers["x-tracer-decision"]) == ("tool_use", {"desk": label}, decision)
        async with client.messages.stream(**given, tools=[tool], tool_choice=choice) as stream:
            streamed: Any = (await stream.get_final_message()).content[0]
            assert streamed.input == {"desk": label}

    async def all_at_once() -> None:
        async with anthropic.AsyncAnthropic(base_url=sdk.served.url, api_key=KEY) as client:
            await asyncio.gather(*(ask(client, *case) for case in sdk.cases))

    asyncio.run(all_at_once())
