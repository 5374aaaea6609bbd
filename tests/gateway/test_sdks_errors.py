"""What goes wrong comes to the official SDKs as the exceptions that their users catch; and who retries what."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import anthropic
import openai
import pytest

from tests.gateway.sdks import BODY_BYTES, KEY, NARROW, SLOW, Rig, turns
from tests.gateway.serving import MODEL, SYSTEM
from tests.gateway.standin import Fault

Ask = Callable[..., Any]
"""``ask(rig, text, key=, timeout=, retries=, headers=)`` with an SDK."""


def openai_plain(sdk: Rig, text: str, *, stream: bool = False, **given: Any) -> str:
    with openai.OpenAI(base_url=sdk.v1, **_client(given)) as client:
        reply: Any = client.chat.completions.create(
            model=MODEL, messages=turns(text), stream=stream, extra_headers=given["headers"]
        )
        if stream:
            return "".join(chunk.choices[0].delta.content or "" for chunk in reply if chunk.choices)
        return str(reply.choices[0].message.content)


def openai_stream(sdk: Rig, text: str, **given: Any) -> str:
    return openai_plain(sdk, text, stream=True, **given)


def openai_responses(sdk: Rig, text: str, **given: Any) -> str:
    with openai.OpenAI(base_url=sdk.v1, **_client(given)) as client:
        reply = client.responses.create(model=MODEL, instructions=SYSTEM, input=text, extra_headers=given["headers"])
        return reply.output_text


def openai_async(sdk: Rig, text: str, **given: Any) -> str:
    async def ask() -> str:
        async with openai.AsyncOpenAI(base_url=sdk.v1, **_client(given)) as client:
            reply = await client.chat.completions.create(
                model=MODEL, messages=turns(text), extra_headers=given["headers"]
            )
            return str(reply.choices[0].message.content)

    return asyncio.run(ask())


def anthropic_plain(sdk: Rig, text: str, **given: Any) -> str:
    with anthropic.Anthropic(base_url=sdk.served.url, **_client(given)) as client:
        reply: Any = client.messages.create(**_message(text), extra_headers=given["headers"])
        return str(reply.content[0].text)


def anthropic_stream(sdk: Rig, text: str, **given: Any) -> str:
    with (
        anthropic.Anthropic(base_url=sdk.served.url, **_client(given)) as client,
        client.messages.stream(**_message(text), extra_headers=given["headers"]) as stream,
    ):
        return "".join(stream.text_stream)


def anthropic_async(sdk: Rig, text: str, **given: Any) -> str:
    async def ask() -> str:
        async with anthropic.AsyncAnthropic(base_url=sdk.served.url, **_client(given)) as client:
            reply: Any = await client.messages.create(**_message(text), extra_headers=given["headers"])
            return str(reply.content[0].text)

    return asyncio.run(ask())


def _client(given: dict[str, Any]) -> dict[str, Any]:
    given.setdefault("headers", {})
    return {
        "api_key": given.get("key", KEY), "max_retries": given.get("retries", 0), "timeout": given.get("timeout", 20.0)
    }  # fmt: skip


def _message(text: str) -> dict[str, Any]:
    return {"model": MODEL, "max_tokens": 50, "system": SYSTEM, "messages": [{"role": "user", "content": text}]}


OPENAI: list[Ask] = [openai_plain, openai_stream, openai_responses, openai_async]
ANTHROPIC: list[Ask] = [anthropic_plain, anthropic_stream, anthropic_async]


def named(ask: Ask) -> str:
    return ask.__name__


EVERY = pytest.mark.parametrize("ask", OPENAI + ANTHROPIC, ids=named)


def sdk_of(ask: Ask) -> Any:
    return openai if ask in OPENAI else anthropic


def raised(ask: Ask, sdk: Rig, text: str, **given: Any) -> Any:
    """The SDK's error for a status."""
    with pytest.raises(sdk_of(ask).APIStatusError) as found:
        ask(sdk, text, **given)
    return found.value


def errs(ask: Ask, sdk: Rig, status: int, name: str) -> None:
    """An upstream's error comes as the SDK's class for it, with the upstream's words and its ``retry-after``."""
    with sdk.fault(Fault("status", status=status, retry_after="7" if status == 429 else "")):
        error = raised(ask, sdk, sdk.deferred)
    assert isinstance(error, getattr(sdk_of(ask), name))
    assert error.status_code == status
    assert "stand-in" in str(error)
    assert error.response.headers["x-tracer-decision"] == "deferred"
    assert error.response.headers.get("retry-after") == ("7" if status == 429 else None)


@EVERY
@pytest.mark.parametrize(("status", "name"), [(400, "BadRequestError"), (429, "RateLimitError")])
def test_the_upstreams_errors(sdk: Rig, ask: Ask, status: int, name: str) -> None:
    errs(ask, sdk, status, name)


@pytest.mark.parametrize("ask", [openai_plain, anthropic_plain], ids=named)
@pytest.mark.parametrize(
    ("status", "name"),
    [
        (401, "AuthenticationError"), (403, "PermissionDeniedError"), (404, "NotFoundError"), (409, "ConflictError"),
        (422, "UnprocessableEntityError"), (500, "InternalServerError"), (503, "APIStatusError"),
        (529, "APIStatusError"),
    ],
)  # fmt: skip
def test_the_other_statuses(sdk: Rig, ask: Ask, status: int, name: str) -> None:
    errs(ask, sdk, status, name)


@EVERY
def test_the_gateways_own_errors(sdk: Rig, ask: Ask) -> None:
    before = len(sdk.api.asked)
    assert isinstance(raised(ask, sdk, sdk.handled, key="tr-nobody"), sdk_of(ask).AuthenticationError)
    assert isinstance(raised(ask, sdk, sdk.handled, key=NARROW), sdk_of(ask).PermissionDeniedError)
    wrong = raised(ask, sdk, sdk.handled, headers={"x-tracer-mode": "sometimes"})
    assert isinstance(wrong, sdk_of(ask).BadRequestError)
    assert "x-tracer-mode" in str(wrong)
    large = raised(ask, sdk, "x" * BODY_BYTES)
    assert large.status_code == 413
    assert len(large.response.headers["x-tracer-call-id"]) == 32
    assert len(sdk.api.asked) == before, "the upstream heard of none of this"


@EVERY
def test_what_is_handled_needs_no_upstream(sdk: Rig, ask: Ask) -> None:
    """A hang that nobody meets: the policy answers within the time-out, and the next deferred call meets it."""
    text, label, _ = sdk.cases[0]
    with sdk.fault(Fault("hang")):
        assert ask(sdk, text, timeout=5.0) == label
        with pytest.raises(sdk_of(ask).APITimeoutError):
            ask(sdk, sdk.deferred, timeout=0.4)


@EVERY
def test_an_upstream_that_is_silent_for_too_long(sdk: Rig, ask: Ask) -> None:
    with sdk.fault(Fault("hang")):
        begun = time.monotonic()
        error = raised(ask, sdk, sdk.deferred)
        assert error.status_code == 504
        assert 0.9 < time.monotonic() - begun < 10.0
        assert "did not answer" in str(error)


@EVERY
def test_an_upstream_that_breaks_the_connection(sdk: Rig, ask: Ask) -> None:
    with sdk.fault(Fault("reset")):
        assert raised(ask, sdk, sdk.deferred).status_code == 502


@EVERY
@pytest.mark.parametrize("status", [429, 503])
def test_an_sdk_that_retries_gets_its_answer(sdk: Rig, ask: Ask, status: int) -> None:
    with sdk.fault(Fault("status", status=status, retry_after="1")):
        before, begun = len(sdk.api.asked), time.monotonic()
        assert ask(sdk, sdk.deferred, retries=1) == "office"
        assert time.monotonic() - begun >= 0.7, "it waited as long as the upstream asked"
        assert len(sdk.api.asked) - before == 2


@pytest.mark.parametrize("ask", [openai_plain, openai_async, anthropic_plain, anthropic_async], ids=named)
def test_an_sdk_waits_for_the_rate_of_its_key(sdk: Rig, ask: Ask) -> None:
    """The gateway's 429 names the wait, for handled calls too; who waits is answered."""
    text, label, _ = sdk.cases[0]
    before = len(sdk.api.asked)
    time.sleep(1.05)  # a full bucket, whatever ran before
    assert ask(sdk, text, key=SLOW) == label
    error = raised(ask, sdk, text, key=SLOW)
    assert isinstance(error, sdk_of(ask).RateLimitError)
    assert 1 <= int(error.response.headers["retry-after"]) <= 2
    assert ask(sdk, text, key=SLOW, retries=2) == label
    assert len(sdk.api.asked) == before


@pytest.mark.parametrize("ask", [openai_stream, anthropic_stream], ids=named)
def test_a_stream_that_is_cut_raises(sdk: Rig, ask: Ask) -> None:
    with sdk.fault(Fault("cut")), pytest.raises(sdk_of(ask).APIError):
        ask(sdk, sdk.deferred)


@pytest.mark.parametrize("ask", [openai_stream, anthropic_stream], ids=named)
def test_a_slow_stream_arrives_as_it_comes(sdk: Rig, ask: Ask) -> None:
    """Longer in all than the client's time-out, which counts silences."""
    with sdk.fault(Fault("slow_chunks", seconds=0.15)):
        begun = time.monotonic()
        assert ask(sdk, sdk.deferred, timeout=0.9) == "office"
        assert time.monotonic() - begun > 0.6


@EVERY
def test_a_gateway_that_is_not_there(sdk: Rig, ask: Ask) -> None:
    class Nowhere:
        v1 = "http://127.0.0.1:9/v1"

        class served:  # noqa: N801
            url = "http://127.0.0.1:9"

    with pytest.raises(sdk_of(ask).APIConnectionError):
        ask(Nowhere, sdk.handled)
