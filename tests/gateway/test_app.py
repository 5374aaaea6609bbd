"""The data plane against a real server, a stand-in as the upstream, and plain HTTP."""

from __future__ import annotations

import json
import random
import time
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.gateway.conftest import Known
from tests.gateway.serving import CHAT, SYSTEM, asked, place, serve, settings
from tests.gateway.standin import Fault, Standin
from tracer import data
from tracer.policies.registry import PolicyRegistry
from tracer.policies.serving_settings import ServingSettings
from tracer.types import FAILED

ANY_AUDIT = ServingSettings(audit_rate=0.0)
AUDITED = ServingSettings(audit_rate=1.0)


def content(response: httpx2.Response) -> Any:
    return response.json()["choices"][0]["message"]["content"]


def test_a_handled_call_never_reaches_the_upstream(known: Known, tmp_path: Path) -> None:
    place(known.home, tmp_path, ANY_AUDIT)
    with Standin() as api, serve(settings(api.url, tmp_path), tmp_path) as served:
        for text, label in list(known.handled.items())[:20]:
            response = served.post(asked(text))
            assert (response.status_code, content(response)) == (200, label)
            assert response.headers["x-tracer-decision"] == response.headers["x-tracer-reason"] == "handled"
            assert response.headers["x-tracer-policy"] == "v0001"
            assert float(response.headers["x-tracer-score"]) >= float(response.headers["x-tracer-threshold"])
            assert float(response.headers["x-tracer-overhead-ms"]) > 0.0
            assert response.json()["model"] == "desk-router"
            assert "server" not in response.headers
        assert api.asked == []
        assert served.traces() == []


def test_a_deferred_call_goes_on_as_it_came_and_is_recorded(known: Known, tmp_path: Path) -> None:
    place(known.home, tmp_path, ANY_AUDIT)
    text = known.left[0]
    with Standin({text: "billing"}) as api, serve(settings(api.url, tmp_path), tmp_path) as served:
        body = asked(text, temperature=0, max_tokens=20)
        response = served.post(body, x_my_header="kept", authorization="Bearer sk-mine")
        assert (response.status_code, content(response)) == (200, "billing")
        assert response.headers["x-tracer-decision"] == "deferred"
        assert response.headers["x-request-id"] == "req_standin"
        (sent,) = api.asked
        assert sent.body == json.dumps(body).encode()
        assert (sent.headers["x-my-header"], sent.headers["authorization"]) == ("kept", "Bearer sk-mine")
        assert not [name for name in sent.headers if name.startswith("x-tracer")]
        (trace,) = served.traces()
    assert (trace.text, trace.label, trace.origin) == (text, "billing", "deferred")
    assert (trace.id, trace.teacher) == (response.headers["x-tracer-call-id"], "desk-router")
    assert trace.prompt is not None
    assert trace.usage is not None
    assert trace.seen is not None
    assert (trace.seen.policy, trace.seen.handled) == ("v0001", False)
    assert trace.seen.score == pytest.approx(float(response.headers["x-tracer-score"]), rel=1e-5)


@pytest.mark.parametrize("fault", [None, Fault("status", status=500), Fault("malformed"), Fault("reset")])
def test_each_audit_comes_back(known: Known, tmp_path: Path, fault: Fault | None) -> None:
    place(known.home, tmp_path, AUDITED)
    text, label = next(iter(known.handled.items()))
    with Standin({text: "other desk"}) as api, serve(settings(api.url, tmp_path), tmp_path) as served:
        api.misbehave(fault)
        response = served.post(asked(text))
        assert response.headers["x-tracer-decision"] == "audit"
        (trace,) = served.traces()
    assert (trace.origin, trace.label) == ("audit", "other desk" if fault is None else FAILED)
    assert trace.seen is not None
    assert (trace.seen.label, trace.seen.handled) == (label, True)


def test_an_audit_whose_client_left_comes_back_too(known: Known, tmp_path: Path) -> None:
    place(known.home, tmp_path, AUDITED)
    text = next(iter(known.handled))
    with Standin({text: "billing"}) as api, serve(settings(api.url, tmp_path), tmp_path) as served:
        api.misbehave(Fault("slow_first_byte", seconds=1.0))
        with pytest.raises(httpx2.ReadTimeout):
            httpx2.post(served.url + CHAT, content=json.dumps(asked(text)).encode(), timeout=0.3)
        (trace,) = served.traces()
        assert (trace.origin, trace.label) == ("audit", "billing"), "who does not wait takes no audit along"
        # A client that leaves after the last word of a stream had its label.
        with httpx2.stream("POST", served.url + CHAT, content=json.dumps(asked(text, stream=True)).encode()) as stream:
            for line in stream.iter_lines():
                if line == "data: [DONE]":
                    break
        assert [one.label for one in served.traces()] == ["billing", "billing"]


def test_a_surrogate_answers_in_the_shape_of_the_teacher(known: Known, tmp_path: Path) -> None:
    place(known.home, tmp_path, ANY_AUDIT)
    text, label = next(iter(known.handled.items()))
    with Standin(default="office") as api, serve(settings(api.url, tmp_path), tmp_path) as served:
        teacher = served.post(asked(known.left[0])).json()
        assert len(served.traces()) == 1
        surrogate = served.post(asked(text)).json()
        assert len(api.asked) == 1
    assert list(surrogate) == [key for key in teacher if key in surrogate]
    assert "service_tier" in surrogate, "a key that some teachers leave out"
    assert list(surrogate["choices"][0]["message"]) == list(teacher["choices"][0]["message"])
    assert list(surrogate["usage"]) == list(teacher["usage"])
    assert surrogate["choices"][0]["message"]["content"] == label
    assert surrogate["id"] != teacher["id"]


def test_a_label_that_the_request_cannot_carry_goes_to_the_teacher(known: Known, tmp_path: Path) -> None:
    place(known.home, tmp_path, ANY_AUDIT)
    text = next(iter(known.handled))
    with Standin({text: "o"}) as api, serve(settings(api.url, tmp_path), tmp_path) as served:
        response = served.post(asked(text, max_tokens=1))
        assert (content(response), response.headers["x-tracer-reason"]) == ("o", "unwritable")
        (trace,) = served.traces()
    assert trace.origin == "fallback", "which calls these are depends on the label: it only trains"


def test_a_canary_serves_its_share(known: Known, tmp_path: Path) -> None:
    place(known.home, tmp_path)
    texts = list(known.handled)[:200]
    task = "mode: canary\nshare: 0.3\naudit_rate: 0"
    with Standin() as api, serve(settings(api.url, tmp_path, task), tmp_path, rng=random.Random(3)) as served:
        reasons = [served.post(asked(text)).headers["x-tracer-reason"] for text in texts]
        n = reasons.count("handled")
        assert 40 <= n <= 80
        assert (reasons.count("canary"), len(api.asked)) == (200 - n, 200 - n)
        assert {trace.origin for trace in served.traces()} == {"bootstrap"}


def test_a_store_that_is_locked_holds_up_no_request(known: Known, tmp_path: Path) -> None:
    import sqlite3

    folder = place(known.home, tmp_path, ANY_AUDIT)
    with Standin(default="office") as api, serve(settings(api.url, tmp_path), tmp_path) as served:
        lock = sqlite3.connect(folder / "traces.sqlite", isolation_level=None)
        lock.execute("BEGIN IMMEDIATE")
        for text in known.left[:5]:
            assert content(served.post(asked(text))) == "office"
        assert content(served.post(asked(next(iter(known.handled))))) in known.handled.values()
        lock.execute("ROLLBACK")
        lock.close()
        assert len(served.traces()) == 5


def test_in_shadow_the_teacher_answers_and_the_policy_is_recorded(known: Known, tmp_path: Path) -> None:
    place(known.home, tmp_path)
    text, label = next(iter(known.handled.items()))
    config = settings("{url}", tmp_path, "mode: shadow\naudit_rate: 0")
    with Standin({text: "billing"}) as api, serve(config.replace("{url}", api.url), tmp_path) as served:
        assert json.loads((served.task / "serving.json").read_text()) == {
            "mode": "shadow",
            "share": 1.0,
            "audit_rate": 0.0,
        }
        response = served.post(asked(text))
        assert (content(response), response.headers["x-tracer-reason"]) == ("billing", "shadow")
        (trace,) = served.traces()
    assert (trace.origin, trace.label) == ("bootstrap", "billing")
    assert trace.seen is not None
    assert (trace.seen.label, trace.seen.handled) == (label, True)


def test_in_observe_everything_passes_and_labels_are_kept(known: Known, tmp_path: Path) -> None:
    place(known.home, tmp_path)
    text = next(iter(known.handled))
    with Standin({text: "billing"}) as api:
        with serve(settings(api.url, tmp_path, "mode: observe"), tmp_path) as served:
            response = served.post(asked(text))
            assert (content(response), response.headers["x-tracer-reason"]) == ("billing", "observe")
            (trace,) = served.traces()
        assert len(api.asked) == 1
    assert (trace.origin, trace.label, trace.seen) == ("bootstrap", "billing", None)


def test_an_empty_home_observes_and_needs_no_policy(tmp_path: Path) -> None:
    with Standin({"where is it": "orders"}) as api, serve(settings(api.url, tmp_path), tmp_path) as served:
        response = served.post(asked("where is it"))
        assert (content(response), response.headers["x-tracer-reason"]) == ("orders", "no_policy")
        (trace,) = served.traces()
    assert trace.origin == "bootstrap"


def test_a_prompt_that_the_policy_does_not_know_goes_to_the_teacher(known: Known, tmp_path: Path) -> None:
    """A home that was fitted under one prompt, learned by the gateway itself."""
    text, label = next(iter(known.handled.items()))
    with Standin({text: label}) as api, serve(settings(api.url, tmp_path), tmp_path) as served:
        served.post(asked(text))
        (trace,) = served.traces()
    fit_under(served.task, trace.prompt, trace.teacher)
    other = asked(text)
    other["messages"][0]["content"] = SYSTEM + " In capitals."
    with Standin({text: label}) as api, serve(settings(api.url, tmp_path), tmp_path) as served:
        ServingSettings(audit_rate=0.0).write(served.task)
        policy = served.gateway.serving.lines["desk"].policy
        assert policy is not None
        handled = next(t for t in known.handled if policy.decide([t]).handled[0])
        texts = served.post(asked(handled)), served.post({**other, "messages": [other["messages"][0],
            {"role": "user", "content": handled}]})  # fmt: skip
        assert [one.headers["x-tracer-reason"] for one in texts] in (["handled", "other_task"], ["audit", "other_task"])
        last = served.traces()[-1]
        assert (last.origin, last.seen) == ("bootstrap", None)
        assert last.prompt != trace.prompt


def fit_under(home: Path, prompt: str | None, teacher: str | None) -> None:
    from dataclasses import replace

    import numpy as np

    from tests.conftest import LEXICAL, NOW
    from tracer import flywheel
    from tracer.pipeline import Certified

    everything = data.northlight()
    small = everything.take(data.northlight_order(len(everything), 0)).take(np.arange(600))
    n = len(small)
    small = replace(small, dense=None, embedder=None, prompts=(prompt,) * n, teachers=(teacher,) * n)
    assert isinstance(flywheel.fit(small, home=home, config=LEXICAL, now=NOW, discard=True), Certified)


@pytest.mark.parametrize(
    "more",
    [
        {"n": 2},
        {"logprobs": True},
        {"my_own": {"b": 1, "a": 2}},
        {"tools": [{"type": "function", "function": {"name": n}} for n in "ab"]},
    ],
)
def test_what_no_surrogate_can_answer_passes_through(known: Known, tmp_path: Path, more: dict[str, Any]) -> None:
    place(known.home, tmp_path, ANY_AUDIT)
    text = next(iter(known.handled))
    with Standin({text: "billing"}) as api, serve(settings(api.url, tmp_path), tmp_path) as served:
        body = asked(text, **more)
        response = served.post(body)
        direct = httpx2.post(api.url + CHAT, content=json.dumps(body).encode())
        assert response.headers["x-tracer-reason"] == "unanswerable"
        assert response.content == direct.content.replace(b"00000002", b"00000001")
        assert served.traces() == []


@pytest.mark.parametrize("stream", [False, True])
def test_other_routes_and_bodies_pass_byte_for_byte(tmp_path: Path, stream: bool) -> None:
    with Standin({"hello": "hi there, how are you"}) as api, serve(settings(api.url, tmp_path), tmp_path) as served:
        body = {"model": "gpt-x", "stream": stream, "messages": [{"role": "user", "content": "hello"}]}
        response = served.post(body)
        direct = httpx2.post(api.url + CHAT, content=json.dumps(body).encode())
        assert response.content == direct.content.replace(b"00000002", b"00000001")
        assert response.headers["x-tracer-decision"] == "passed"
        for target in ("/v1/embeddings?a=%20b", "/v1/files/x", "/v1/chat/completions"):
            raw = b"\x00 not JSON"
            answer = httpx2.post(served.url + target, content=raw)
            assert api.asked[-1].path == target
            assert api.asked[-1].body == raw
            assert answer.status_code == httpx2.post(api.url + target, content=raw).status_code
        assert httpx2.get(served.url + "/v1/files").status_code == 404
        assert (api.asked[-1].method, api.asked[-1].body) == ("GET", b"")


def test_a_request_says_who_is_to_answer(known: Known, tmp_path: Path) -> None:
    place(known.home, tmp_path, ANY_AUDIT)
    text, label = next(iter(known.handled.items()))
    with Standin({text: "billing"}) as api, serve(settings(api.url, tmp_path), tmp_path) as served:
        for mode in ("llm", "shadow"):
            response = served.post(asked(text), x_tracer_mode=mode)
            assert content(response) == "billing"
            assert response.headers["x-tracer-reason"] == {"llm": "requested"}.get(mode, mode)
        assert served.post(asked(text), x_tracer_mode="fast").status_code == 400
        assert content(served.post(asked(text), x_tracer_mode="auto")) == label
        first, second = served.traces()
        assert len(api.asked) == 2
    assert (first.origin, first.seen, second.origin) == ("requested", None, "requested")
    assert second.seen is not None
    assert (second.seen.label, second.seen.handled) == (label, True)


def test_what_is_not_to_be_stored_is_not(known: Known, tmp_path: Path) -> None:
    place(known.home, tmp_path, AUDITED)
    task = "redact: ['[0-9]+']"
    with (
        Standin(default="billing") as api,
        serve(settings(api.url, tmp_path, task), tmp_path) as served,
    ):
        served.post(asked("call me at 12345 about it"), x_tracer_no_store="1")
        served.post(asked("call me at 12345 about it"))
        assert [trace.text for trace in served.traces()] == ["call me at [redacted] about it"]
    for capture, texts in (("hash", 1), ("off", 0)):
        home = tmp_path / capture
        place(known.home, home, AUDITED)
        task = f"capture: '{capture}'"
        with Standin(default="billing") as api, serve(settings(api.url, home, task), home) as served:
            served.post(asked("call me about it"))
            assert [trace.text.startswith("sha256:") for trace in served.traces()] == [True] * texts


@pytest.mark.parametrize(("status", "mode"), [(503, "live"), (0, "live"), (0, "shadow")])
def test_an_upstream_that_is_down(known: Known, tmp_path: Path, status: int, mode: Any) -> None:
    place(known.home, tmp_path, ServingSettings(mode, audit_rate=0.0))
    text = known.left[0]
    for choice in ("error", "degraded"):
        task = f"on_upstream_down: {choice}"
        with Standin() as api, serve(settings(api.url, tmp_path, task), tmp_path) as served:
            api.misbehave(Fault("status", status=status) if status else Fault("reset"))
            response = served.post(asked(text))
            if choice == "degraded" and mode == "live":
                assert (response.status_code, response.headers["x-tracer-decision"]) == (200, "degraded")
                expected = PolicyRegistry(known.home).load().decide([text]).labels[0]
                assert content(response) == expected
            else:
                assert response.status_code == (status or 502)
                assert set(response.json()) == {"error"}
            assert served.traces() == []


def test_a_policy_that_is_damaged_leaves_the_teacher(known: Known, tmp_path: Path) -> None:
    folder = place(known.home, tmp_path, ANY_AUDIT)
    files = {file: file.read_bytes() for file in (folder / "policies" / "v0001").iterdir()}
    for file, whole in files.items():
        file.write_bytes(whole[:-9])
    text, label = next(iter(known.handled.items()))
    with Standin({text: "billing"}) as api, serve(settings(api.url, tmp_path), tmp_path, tend_s=0.05) as served:
        assert content(served.post(asked(text))) == "billing"
        assert httpx2.get(served.url + "/health").json()["tasks"] == {"desk": {"policy": None, "broken": True}}
        for file, whole in files.items():
            file.write_bytes(whole)
        end = time.monotonic() + 10.0
        while served.gateway.serving.lines["desk"].broken and time.monotonic() < end:
            time.sleep(0.02)
        assert content(served.post(asked(text))) == label


def test_nothing_that_is_sent_makes_it_fail(known: Known, tmp_path: Path) -> None:
    place(known.home, tmp_path, ANY_AUDIT)
    rng = random.Random(0)
    whole = json.dumps(asked("where is my order")).encode()
    with Standin() as api, serve(settings(api.url, tmp_path), tmp_path) as served:
        for path in (CHAT, "/v1/responses", "/v1/messages", "/v1/decisions", "/v1/systemone", "/v1/classify"):
            for _ in range(25):
                body = bytearray(whole)
                for _ in range(rng.randrange(1, 8)):
                    body[rng.randrange(len(body))] = rng.randrange(256)
                assert httpx2.post(served.url + path, content=bytes(body)).status_code < 500
            for odd in (b"", b"[]", b"null", b"{" * 10_000, b'{"model": "desk-router"}', b"\xff\xfe"):
                assert httpx2.post(served.url + path, content=odd).status_code < 500
