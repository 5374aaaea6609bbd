"""The stand-in speaks as the vendors do: their own SDKs read it."""

from __future__ import annotations

import json
from importlib import import_module
from typing import Any

import httpx2
import pytest

from tests.gateway.standin import Standin

SCHEMA = {
    "type": "object",
    "properties": {"reason": {"type": "string"}, "intent": {"type": "string", "enum": ["late", "lost"]}},
}
FORMAT: Any = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}
TOOL: Any = {"type": "function", "function": {"name": "label", "parameters": SCHEMA}}

openai: Any = import_module("openai")
anthropic: Any = import_module("anthropic")  # what they parse is looked at, not how they are typed


def test_openai_reads_it() -> None:
    with Standin({"where is it": "lost"}) as api, openai.OpenAI(base_url=f"{api.url}/v1", api_key="k") as client:
        asked: Any = {"model": "m", "messages": [{"role": "user", "content": "where is it"}]}
        assert client.chat.completions.create(**asked).choices[0].message.content == "lost"
        answer = client.chat.completions.create(**asked, response_format=FORMAT).choices[0].message.content
        assert json.loads(answer) == {"reason": "because", "intent": "lost"}
        call = client.chat.completions.create(**asked, tools=[TOOL]).choices[0].message.tool_calls[0]
        assert json.loads(call.function.arguments)["intent"] == "lost"
        chunks = list(client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
        assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == "lost"
        assert chunks[-1].usage.total_tokens > 0
        assert client.responses.create(model="m", input="where is it").output_text == "lost"
        with client.responses.stream(model="m", input="where is it") as stream:
            stream.until_done()
            assert stream.get_final_response().output_text == "lost"


def test_anthropic_reads_it() -> None:
    with Standin({"where is it": "lost"}) as api, anthropic.Anthropic(base_url=api.url, api_key="k") as client:
        asked: Any = {"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": "where is it"}]}
        assert client.messages.create(**asked).content[0].text == "lost"
        tool = {"name": "label", "input_schema": SCHEMA}
        with client.messages.stream(**asked, tools=[tool]) as stream:
            assert stream.get_final_message().content[0].input["intent"] == "lost"


def test_faults_come_by_header_and_by_the_control_route() -> None:
    with Standin() as api, httpx2.Client(base_url=api.url, trust_env=False) as client:
        client.post("/control", json=[{"kind": "status", "status": 429, "retry_after": "3"}])
        limited = client.post("/v1/chat/completions", json={})
        assert (limited.status_code, limited.headers["retry-after"]) == (429, "3")
        assert client.post("/v1/messages", json={}, headers={"x-standin": "status=503"}).status_code == 503
        assert (
            client.post("/v1/messages", json={}, headers={"x-standin": "gzip"}).json()["content"][0]["text"]
            == "unknown"
        )
        with pytest.raises(httpx2.TransportError):
            client.post("/v1/messages", json={}, headers={"x-standin": "reset"})
        assert client.post("/v1/else", json={}).status_code == 404
        assert len(api.asked) == 5
