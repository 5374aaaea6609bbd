"""The official SDKs as clients: what the surrogate says, and what the teacher says, reads the same."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import anthropic
import openai
import pytest

from tests.gateway.conftest import Known
from tests.gateway.serving import MODEL, SYSTEM, Served, place, serve, settings
from tests.gateway.standin import Fault, Standin
from tracer.policies.serving_settings import ServingSettings

DESKS = ["accounts", "billing", "office", "orders", "returns", "sales", "technical"]
SCHEMA: Any = {
    "type": "object",
    "properties": {"desk": {"type": "string", "enum": DESKS}},
    "required": ["desk"],
    "additionalProperties": False,
}

KEYS = {"UPSTREAM": "sk-upstream"}


def keyed(config: str) -> str:
    """With a key of the gateway's own: one upstream of all formats gets no client's."""
    return config.replace("retries: 0", "retries: 0, api_key: '${UPSTREAM}'")


@pytest.fixture(scope="module")
def both(known: Known, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Served, Standin]]:
    home = tmp_path_factory.mktemp("gateway")
    place(known.home, home, ServingSettings(audit_rate=0.0))
    answers = dict.fromkeys(known.left, "office")
    with Standin(answers) as api, serve(keyed(settings(api.url, home)), home, environ=KEYS) as served:
        yield served, api


def labels(known: Known) -> list[tuple[str, str]]:
    """Two texts that are handled, and two that are deferred, with the labels that come."""
    return [*list(known.handled.items())[:2], *((text, "office") for text in known.left[:2])]


def turns(text: str) -> list[Any]:
    return [{"role": "system", "content": SYSTEM}, {"role": "user", "content": text}]


def test_openai_chat(both: tuple[Served, Standin], known: Known) -> None:
    served, api = both
    before = len(api.asked)
    with openai.OpenAI(base_url=served.url + "/v1", api_key="k") as client:
        for text, label in labels(known):
            answer = client.chat.completions.create(model=MODEL, messages=turns(text))
            assert (answer.choices[0].message.content, answer.choices[0].finish_reason) == (label, "stop")
            assert answer.usage is not None
            stream = client.chat.completions.create(
                model=MODEL, messages=turns(text), stream=True, stream_options={"include_usage": True}
            )
            chunks = list(stream)
            assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == label
            assert chunks[-1].usage is not None
            form: Any = {"type": "json_schema", "json_schema": {"name": "desk", "schema": SCHEMA, "strict": True}}
            shaped = client.chat.completions.create(model=MODEL, messages=turns(text), response_format=form)
            assert json.loads(shaped.choices[0].message.content or "") == {"desk": label}
            tool: Any = {"type": "function", "function": {"name": "send", "parameters": SCHEMA, "strict": True}}
            choice: Any = {"type": "function", "function": {"name": "send"}}
            called = client.chat.completions.create(
                model=MODEL, messages=turns(text), tools=[tool], tool_choice=choice
            ).choices[0].message.tool_calls  # fmt: skip
            assert called is not None
            assert called[0].type == "function"
            assert json.loads(called[0].function.arguments) == {"desk": label}
    assert len(api.asked) - before == 8, "the four calls of each deferred text, and no other"


def test_openai_responses(both: tuple[Served, Standin], known: Known) -> None:
    served, api = both
    before = len(api.asked)
    with openai.OpenAI(base_url=served.url + "/v1", api_key="k") as client:
        for text, label in labels(known):
            assert client.responses.create(model=MODEL, instructions=SYSTEM, input=text).output_text == label
            with client.responses.stream(model=MODEL, instructions=SYSTEM, input=text) as stream:
                stream.until_done()
                assert stream.get_final_response().output_text == label
            form: Any = {"format": {"type": "json_schema", "name": "desk", "schema": SCHEMA, "strict": True}}
            answer = client.responses.create(model=MODEL, instructions=SYSTEM, input=text, text=form)
            assert json.loads(answer.output_text) == {"desk": label}
    assert len(api.asked) - before == 6


def test_anthropic(both: tuple[Served, Standin], known: Known) -> None:
    served, api = both
    before = len(api.asked)
    with anthropic.Anthropic(base_url=served.url, api_key="k") as client:
        for text, label in labels(known):
            given: Any = {"model": MODEL, "max_tokens": 50, "system": SYSTEM}
            given["messages"] = [{"role": "user", "content": text}]
            answer = client.messages.create(**given)
            assert answer.content[0].type == "text"
            assert (answer.content[0].text, answer.stop_reason) == (label, "end_turn")
            with client.messages.stream(**given) as stream:
                assert "".join(stream.text_stream) == label
            tool: Any = {"name": "send", "input_schema": SCHEMA}
            called = client.messages.create(**given, tools=[tool], tool_choice={"type": "tool", "name": "send"})
            assert called.content[0].type == "tool_use"
            assert called.content[0].input == {"desk": label}
    assert len(api.asked) - before == 6


def test_async_clients_side_by_side(both: tuple[Served, Standin], known: Known) -> None:
    served, _ = both

    async def ask() -> None:
        async with (
            openai.AsyncOpenAI(base_url=served.url + "/v1", api_key="k") as one,
            anthropic.AsyncAnthropic(base_url=served.url, api_key="k") as other,
        ):
            wanted = labels(known) * 5
            said = await asyncio.gather(
                *(one.chat.completions.create(model=MODEL, messages=turns(text)) for text, _ in wanted)
            )
            assert [answer.choices[0].message.content for answer in said] == [label for _, label in wanted]
            replies = await asyncio.gather(
                *(
                    other.messages.create(
                        model=MODEL, max_tokens=50, system=SYSTEM, messages=[{"role": "user", "content": text}]
                    )
                    for text, _ in wanted
                )
            )
            assert [getattr(reply.content[0], "text", "") for reply in replies] == [label for _, label in wanted]

    asyncio.run(ask())


def test_errors_are_the_upstreams_own(both: tuple[Served, Standin], known: Known) -> None:
    served, api = both
    text = known.left[0]
    with openai.OpenAI(base_url=served.url + "/v1", api_key="k", max_retries=0) as client:
        api.misbehave(Fault("status", status=429, retry_after="7"))
        with pytest.raises(openai.RateLimitError) as limited:
            client.chat.completions.create(model=MODEL, messages=turns(text))
        assert limited.value.response.headers["retry-after"] == "7"
        api.misbehave(Fault("status", status=400))
        with pytest.raises(openai.BadRequestError):
            client.chat.completions.create(model=MODEL, messages=turns(text))
        api.misbehave(Fault("reset"))
        with pytest.raises(openai.InternalServerError):
            client.chat.completions.create(model=MODEL, messages=turns(text))
        api.misbehave(Fault("hang"))
        with pytest.raises(openai.APITimeoutError):
            client.chat.completions.create(model=MODEL, messages=turns(text), timeout=0.3)
        # The client left, so the upstream's connection is let go.
        deadline = 200
        while not api.n_closed and deadline:
            deadline -= 1
            asyncio.run(asyncio.sleep(0.02))
        assert api.n_closed == 1
    with anthropic.Anthropic(base_url=served.url, api_key="k", max_retries=0) as other:
        api.misbehave(Fault("reset"))
        with pytest.raises(anthropic.InternalServerError):
            other.messages.create(model=MODEL, max_tokens=9, messages=[{"role": "user", "content": text}])
        api.misbehave(Fault("status", status=529))
        with pytest.raises(anthropic.APIStatusError) as loaded:
            other.messages.create(model=MODEL, max_tokens=9, messages=[{"role": "user", "content": text}])
        assert loaded.value.status_code == 529


def test_a_stream_that_is_cut_ends_in_an_error(both: tuple[Served, Standin], known: Known) -> None:
    served, api = both
    with openai.OpenAI(base_url=served.url + "/v1", api_key="k", max_retries=0) as client:
        n = len(served.traces())
        api.misbehave(Fault("cut"))
        with pytest.raises(openai.APIError):
            list(client.chat.completions.create(model=MODEL, messages=turns(known.left[0]), stream=True))
        assert len(served.traces()) == n, "half a label is none"
