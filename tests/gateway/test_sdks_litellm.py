"""LiteLLM as a client, in OpenAI's and Anthropic's formats: what is handled, what is deferred, and what goes wrong."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import openai
import pytest

from tests.gateway.sdks import KEY, NARROW, SCHEMA, SLOW, ByLiteral, Rig, turns
from tests.gateway.serving import MODEL
from tests.gateway.standin import Fault

# LiteLLM's own warnings are not ours to turn into errors.
pytestmark = [pytest.mark.clients, pytest.mark.filterwarnings("ignore")]
WIRES = pytest.mark.parametrize("wire", ["openai", "anthropic", "responses"])
HEADER = "llm_provider-x-tracer-decision"


@pytest.fixture(scope="module")
def litellm() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")
        import litellm

        patch.setattr(litellm, "num_retries", 0)
        patch.setattr(litellm, "suppress_debug_info", True)
        yield litellm


def call(sdk: Rig, wire: str, text: str, **more: Any) -> dict[str, Any]:
    prefix = {"openai": "openai/", "anthropic": "anthropic/", "responses": "openai/responses/"}[wire]
    base = sdk.served.url if wire == "anthropic" else sdk.v1
    given = {"model": prefix + MODEL, "api_base": base, "api_key": KEY, "messages": turns(text), "max_retries": 0}
    return given | {"timeout": 20.0} | more


@WIRES
def test_plain_and_streamed(sdk: Rig, litellm: ModuleType, wire: str) -> None:
    for text, label, decision in sdk.cases:
        reply = litellm.completion(**call(sdk, wire, text))
        assert reply.choices[0].message.content == label
        assert reply._hidden_params["additional_headers"][HEADER] == decision
        stream = litellm.completion(**call(sdk, wire, text), stream=True)
        assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == label


@WIRES
def test_structured_and_tools(sdk: Rig, litellm: ModuleType, wire: str) -> None:
    tool = {"type": "function", "function": {"name": "send", "description": "To a desk.", "parameters": SCHEMA}}
    choice = {"type": "function", "function": {"name": "send"}}
    for text, label, decision in sdk.cases:
        reply = litellm.completion(**call(sdk, wire, text), response_format=ByLiteral)
        assert json.loads(reply.choices[0].message.content) == {"desk": label}
        reply = litellm.completion(**call(sdk, wire, text), tools=[tool], tool_choice=choice)
        (called,) = reply.choices[0].message.tool_calls
        assert (called.function.name, json.loads(called.function.arguments)) == ("send", {"desk": label})
        assert reply._hidden_params["additional_headers"][HEADER] == decision


@WIRES
def test_asynchronously(sdk: Rig, litellm: ModuleType, wire: str) -> None:
    async def ask(text: str) -> tuple[str, str]:
        whole = await litellm.acompletion(**call(sdk, wire, text))
        stream = await litellm.acompletion(**call(sdk, wire, text), stream=True)
        parts = [chunk.choices[0].delta.content or "" async for chunk in stream]
        return whole.choices[0].message.content, "".join(parts)

    async def all_at_once() -> list[tuple[str, str]]:
        return list(await asyncio.gather(*(ask(text) for text, _, _ in sdk.cases)))

    assert asyncio.run(all_at_once()) == [(label, label) for _, label, _ in sdk.cases]


@WIRES
def test_request_headers_pass(sdk: Rig, litellm: ModuleType, wire: str) -> None:
    with sdk.fault(None):
        reply = litellm.completion(**call(sdk, wire, sdk.handled), extra_headers={"x-tracer-mode": "llm"})
    assert reply._hidden_params["additional_headers"]["llm_provider-x-tracer-reason"] == "requested"


@WIRES
@pytest.mark.parametrize(
    ("status", "name"),
    [(400, "BadRequestError"), (401, "AuthenticationError"), (429, "RateLimitError"), (500, "InternalServerError")],
)
def test_the_upstreams_errors(sdk: Rig, litellm: ModuleType, wire: str, status: int, name: str) -> None:
    with sdk.fault(Fault("status", status=status)), pytest.raises(getattr(litellm, name)):
        litellm.completion(**call(sdk, wire, sdk.deferred))


@WIRES
def test_the_gateways_own_errors(sdk: Rig, litellm: ModuleType, wire: str) -> None:
    with pytest.raises(litellm.AuthenticationError):
        litellm.completion(**call(sdk, wire, sdk.handled, api_key="tr-nobody"))
    with pytest.raises((litellm.PermissionDeniedError, openai.APIError)) as refused:
        litellm.completion(**call(sdk, wire, sdk.handled, api_key=NARROW))
    assert refused.value.status_code == 403
    time.sleep(1.05)
    litellm.completion(**call(sdk, wire, sdk.handled, api_key=SLOW))
    with pytest.raises(litellm.RateLimitError) as limited:
        litellm.completion(**call(sdk, wire, sdk.handled, api_key=SLOW))
    assert int(limited.value.litellm_response_headers["retry-after"]) in (1, 2)


@WIRES
def test_timeouts(sdk: Rig, litellm: ModuleType, wire: str) -> None:
    with sdk.fault(Fault("hang")):
        text, label, _ = sdk.cases[0]
        assert litellm.completion(**call(sdk, wire, text, timeout=5.0)).choices[0].message.content == label
        with pytest.raises(litellm.Timeout):
            litellm.completion(**call(sdk, wire, sdk.deferred, timeout=0.4))


@WIRES
def test_a_429_is_retried(sdk: Rig, litellm: ModuleType, wire: str) -> None:
    with sdk.fault(Fault("status", status=429, retry_after="1")):
        before = len(sdk.api.asked)
        reply = litellm.completion(**call(sdk, wire, sdk.deferred, num_retries=1))
        assert reply.choices[0].message.content == "office"
        assert len(sdk.api.asked) - before == 2
