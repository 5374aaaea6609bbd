"""A call in the words of another format: decision models as teachers of chat calls, and the other way round."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import anthropic
import openai
import pytest
from hypothesis import given
from hypothesis import settings as trying
from hypothesis import strategies as st

from tests.gateway.choosing import TOP
from tests.gateway.codecs.samples import LABELS, decisions, messages_json, responses_json, systemone
from tests.gateway.serving import CHAT, MODEL, SYSTEM, Served, serve
from tests.gateway.standin import Fault, Standin
from tracer.errors import CodecError
from tracer.gateway.calls import Message, Wire
from tracer.gateway.codecs import CODECS, PATHS
from tracer.gateway.composing import Question, composed
from tracer.gateway.config import parse
from tracer.gateway.settings import TaskConfig, Upstream
from tracer.gateway.translating import question_of, translation
from tracer.types import FAILED, Trace

DESKS = ["billing", "sales", "returns"]
SCHEMA = {
    "type": "object",
    "properties": {"desk": {"type": "string", "enum": DESKS, "description": "Pick by what the customer wants."}},
    "required": ["desk"],
    "additionalProperties": False,
}
FORM: Any = {"type": "json_schema", "json_schema": {"name": "x", "strict": True, "schema": SCHEMA}}
TURNS: Any = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": "where is my money"}]
MONEY = {"where is my money": "billing"}
WIRES: list[Wire] = ["openai.chat", "openai.responses", "anthropic.messages", "decisions", "systemone"]


def config(url: str, home: Path, kind: str, task: str = "", more: str = "") -> str:
    return (
        f"home: {home}\nupstreams:\n  main: {{base_url: {url}/v1, retries: 0, kind: {kind}{more}}}\n"
        f"tasks:\n  desk:\n    match: {{models: [{MODEL}]}}\n    teacher: the-teacher\n{task}\n"
    )


def chat(**more: Any) -> dict[str, Any]:
    return {"model": MODEL, "messages": TURNS, "response_format": FORM, **more}


def only(served: Served) -> Trace:
    (trace,) = served.traces()
    return trace


@pytest.mark.parametrize("kind", ["decisions", "systemone"])
def test_a_decision_model_teaches_a_chat_client(tmp_path: Path, kind: str) -> None:
    with Standin(MONEY) as api, serve(config(api.url, tmp_path, kind), tmp_path) as served:
        response = served.post(chat(), authorization="Bearer sk-mine")
        assert json.loads(response.json()["choices"][0]["message"]["content"]) == {"desk": "billing"}
        assert response.json()["usage"]["prompt_tokens"] == 12
        assert response.headers["x-request-id"] == "req_standin"
        assert response.headers["x-tracer-decision"] == "deferred"
        (sent,) = api.asked
        assert (sent.path, sent.headers["authorization"]) == (f"/v1/{kind}", "Bearer sk-mine")
        asked = json.loads(sent.body)
        assert asked["model"] == "the-teacher"
        assert "Pick by what the customer wants." in sent.body.decode()
        trace = only(served)
    assert (trace.label, trace.text, trace.teacher) == ("billing", "where is my money", "the-teacher")
    assert trace.metadata["confidence"] == 0.8
    chances = trace.metadata["probabilities"]
    assert isinstance(chances, Mapping)
    assert chances["billing"] == TOP
    assert list(chances) == DESKS


def test_the_sdks_of_other_formats_are_answered_too(tmp_path: Path) -> None:
    with Standin(MONEY) as api, serve(config(api.url, tmp_path, "decisions"), tmp_path) as served:
        gpt = openai.OpenAI(api_key="k", base_url=served.url + "/v1", max_retries=0)
        text: Any = {"format": {"type": "json_schema", "name": "x", "schema": SCHEMA, "strict": True}}
        said = gpt.responses.create(model=MODEL, instructions=SYSTEM, input="where is my money", text=text)
        assert json.loads(said.output_text) == {"desk": "billing"}
        tool: Any = {"type": "function", "function": {"name": "route", "parameters": SCHEMA}}
        use: Any = {"type": "function", "function": {"name": "route"}}
        parts = gpt.chat.completions.create(
            model=MODEL, messages=TURNS, tools=[tool], tool_choice=use, stream=True
        )  # fmt: skip
        deltas = [part.choices[0].delta.tool_calls for part in parts if part.choices]
        spelled = "".join(calls[0].function.arguments or "" for calls in deltas if calls and calls[0].function)
        assert json.loads(spelled) == {"desk": "billing"}
        claude = anthropic.Anthropic(api_key="k", base_url=served.url, max_retries=0)
        form: Any = {"format": {"type": "json_schema", "schema": SCHEMA}}
        message = claude.messages.create(
            model=MODEL, max_tokens=50, system=SYSTEM, output_config=form,
            messages=[{"role": "user", "content": "where is my money"}],
        )  # fmt: skip
        assert message.content[0].type == "text"
        assert json.loads(message.content[0].text) == {"desk": "billing"}
        assert {asked.path for asked in api.asked} == {"/v1/decisions"}
        assert len({trace.prompt for trace in served.traces()}) == 3, "each form of schema is a prompt of its own"


@pytest.mark.parametrize(
    ("kind", "more", "path"),
    [("openai", ", speaks: [chat]", CHAT), ("openai", ", speaks: responses", "/v1/responses"),
     ("anthropic", "", "/v1/messages")],
)  # fmt: skip
def test_an_llm_teaches_a_client_of_decisions(tmp_path: Path, kind: str, more: str, path: str) -> None:
    choices: Any = [{"value": desk, "description": f"about {desk}"} for desk in DESKS]
    asked: Any = {"type": "choice", "name": "desk", "instructions": SYSTEM, "choices": choices}
    with Standin(MONEY) as api, serve(config(api.url, tmp_path, kind, more=more), tmp_path) as served:
        gpt = openai.OpenAI(api_key="k", base_url=served.url + "/v1", max_retries=0)
        said = gpt.decisions.create(model=MODEL, input="where is my money", questions=[asked])
        (answer,) = said.answers
        assert answer.type == "choice"
        assert (answer.choice, answer.name) == ("billing", "desk")
        assert [(one.value, one.probability) for one in answer.probabilities] == [
            ("billing", 1.0), ("sales", 0.0), ("returns", 0.0),
        ]  # fmt: skip
        assert said.usage.input_tokens > 0
        (sent,) = api.asked
        assert sent.path == path
        assert "- sales: about sales" in json.dumps(json.loads(sent.body)).replace("\\n", "\n")
        criteria = {desk: f"about {desk}" for desk in DESKS}
        question = {"type": "choice", "instructions": SYSTEM, "criteria": criteria}
        body = {"model": MODEL, "state": "where is my money", "questions": {"desk": question}}
        told = served.post(body, "/v1/systemone").json()
        assert told["answers"]["desk"]["choice"] == "billing"
        assert [trace.label for trace in served.traces()] == ["billing", "billing"]
        assert [dict(trace.metadata) for trace in served.traces()] == [{}, {}], "an LLM tells no probabilities"


def test_probabilities_pass_from_one_decision_format_to_the_other(tmp_path: Path) -> None:
    with Standin({"x": "sales"}) as api, serve(config(api.url, tmp_path, "decisions"), tmp_path) as served:
        question = {"type": "choice", "instructions": "Which?", "criteria": dict.fromkeys(DESKS)}
        told = served.post({"model": MODEL, "state": "x", "questions": {"desk": question}}, "/v1/systemone").json()
        assert told["answers"]["desk"] == {
            "type": "choice",
            "choice": "sales",
            "probabilities": {"billing": 0.05, "sales": TOP, "returns": 0.05},
            "confidence": 0.8,
        }


def test_where_both_speak_the_same_the_bytes_are_the_clients(tmp_path: Path) -> None:
    with Standin({"x": "sales"}) as api, serve(config(api.url, tmp_path, "decisions"), tmp_path) as served:
        question = {"type": "choice", "name": "desk", "choices": [{"value": desk} for desk in DESKS], "odd": 1}
        body = {"input": "x", "questions": [question | {"instructions": "Which?"}], "model": MODEL}
        response = served.post(body, "/v1/decisions")
        assert api.asked[0].body == json.dumps(body | {"model": "the-teacher"}).encode()
        assert response.json()["answers"][0]["probabilities"][1] == {"value": "sales", "probability": TOP}
        assert only(served).metadata["probabilities"] == {"billing": 0.05, "sales": TOP, "returns": 0.05}


@pytest.mark.parametrize(
    ("path", "body", "why"),
    [
        (CHAT, chat(n=2), "n > 1"),
        (CHAT, {"model": MODEL, "messages": TURNS}, "no list of labels"),
        (CHAT, chat(logprobs=True), "logprobs"),
        ("/v1/systemone", {"model": MODEL, "state": "a", "questions": {"q": {"type": "noul"}}}, "noul"),
    ],
)
def test_what_cannot_be_said_there_is_refused_in_the_clients_format(
    tmp_path: Path, path: str, body: dict[str, Any], why: str
) -> None:
    with Standin() as api, serve(config(api.url, tmp_path, "decisions"), tmp_path) as served:
        response = served.post(body, path)
        assert response.status_code == 400
        assert why in response.json()["error"]["message"]
        assert response.headers["x-tracer-reason"] == "untranslatable"
        asked = {"model": MODEL, "max_tokens": 5, "messages": [{"role": "user", "content": "a"}]}
        assert served.post(asked, "/v1/messages").json()["type"] == "error"
        assert api.asked == []
        # Of no task, it passes as it came.
        served.post({**body, "model": "other"}, path)
        assert [asked.path for asked in api.asked] == [path]


def test_declared_labels_are_the_choices_of_a_call_without_a_schema(tmp_path: Path) -> None:
    task = f"    label: {{options: [{', '.join(DESKS)}]}}"
    with Standin(MONEY) as api, serve(config(api.url, tmp_path, "systemone", task), tmp_path) as served:
        response = served.post({"model": MODEL, "messages": TURNS})
        assert response.json()["choices"][0]["message"]["content"] == "billing"
        assert list(json.loads(api.asked[0].body)["questions"]["label"]["criteria"]) == DESKS


@pytest.mark.parametrize(
    ("fault", "status"),
    [(Fault("status", status=429, retry_after="3"), 429), (Fault("status", status=500), 500),
     (Fault("malformed"), 502), (Fault("reset"), 502)],
)  # fmt: skip
def test_errors_come_in_the_clients_format(tmp_path: Path, fault: Fault, status: int) -> None:
    audited = "    mode: live"
    with Standin() as api, serve(config(api.url, tmp_path, "decisions", audited), tmp_path) as served:
        api.misbehave(fault)
        response = served.post(chat())
        assert response.status_code == status
        assert response.json()["error"]["message"]
        assert response.headers.get("retry-after") == ("3" if status == 429 else None)
        assert [trace.label for trace in served.traces()] in ([], [FAILED])


def test_mixed_fallbacks_of_decision_models_are_refused() -> None:
    text = "upstreams: {a: {base_url: 'http://x', kind: decisions, fallbacks: [b]}, b: {base_url: 'http://y'}}"
    with pytest.raises(Exception, match="does not go with"):
        parse(text, {})


label_sets = st.lists(
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20), min_size=2, max_size=5, unique=True
)


@given(labels=label_sets, system=st.text(st.characters(exclude_categories=["Cs"]), max_size=20), data=st.data())
@trying(max_examples=60, deadline=None)
def test_a_question_survives_each_format(labels: list[str], system: str, data: st.DataObject) -> None:
    """Composed, read, and made a question again it asks the same; and an answer there carries the label here."""
    asked = Question(system, (Message("user", "a text"),), tuple(labels))
    for wire in WIRES:
        call = CODECS[wire].read(composed(wire, "m", asked))
        assert call.unanswerable == ""
        assert call.options == tuple(labels)
        again = question_of(call, None)
        assert (again.system.strip(), again.messages, again.values) == (system.strip(), asked.messages, asked.values)
        label = data.draw(st.sampled_from(labels))
        body = CODECS[wire].answer(call, label, id="7f", created=1, model="m")
        assert CODECS[wire].label(call, body) == label


@pytest.mark.parametrize("label", LABELS)
def test_each_pair_of_formats_carries_a_label(label: str) -> None:
    task = TaskConfig("desk", "up")
    for make in (responses_json, messages_json, decisions, systemone):
        path = {responses_json: "/v1/responses", messages_json: "/v1/messages", decisions: "/v1/decisions"}
        codec = PATHS[path.get(make, "/v1/systemone")]
        call = codec.read(make())
        for wire in WIRES:
            made = translation(call, task, Upstream("up", "http://x", formats=(wire,)), "m")
            apart = wire not in ("decisions", "systemone") and call.wire not in ("decisions", "systemone")
            assert (made is None) == (wire == call.wire or apart)
            if made is not None:
                there = CODECS[wire].answer(made.call, label, id="1", created=1, model="m")
                said = CODECS[wire].label(made.call, there)
                assert said == label
                assert codec.label(call, codec.answer(call, said, id="1", created=1, model="m")) == label


def test_several_fields_and_strange_turns_cannot_be_asked() -> None:
    two = {"type": "object", "properties": {k: {"enum": ["a", "b"]} for k in "xy"}, "required": ["x", "y"]}
    call = CODECS["openai.responses"].read(responses_json(two))
    with pytest.raises(CodecError, match="one field"):
        question_of(call, None)
    with pytest.raises(CodecError, match="turns"):
        composed("decisions", "m", Question("", (Message("tool", "a"), Message("user", "b")), ("a", "b")))
    with pytest.raises(CodecError, match="strings"):
        composed("systemone", "m", Question("", (Message("user", "b"),), (True, "b")))
