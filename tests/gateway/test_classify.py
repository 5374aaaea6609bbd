"""Native calls: audits and deferrals come back, by the caller's hand or by the gateway's own asking."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from tests.gateway.conftest import Known
from tests.gateway.serving import CHAT, MODEL, SYSTEM, Served, place, serve, settings
from tests.gateway.standin import Fault, Standin
from tracer.errors import StoreError
from tracer.gateway.opened import NAME, OpenCalls, Opened
from tracer.policies.serving_settings import ServingSettings
from tracer.traces.digests import digest_of
from tracer.types import FAILED, Usage

PLAIN = ServingSettings(audit_rate=0.0)
AUDITED = ServingSettings(audit_rate=1.0)
LABELLED = "callers_label: true"
DESKS = ("accounts", "billing", "office", "orders", "returns", "sales", "technical")
FALLBACK = (
    f"teacher: gpt-4o-mini\nlabel: {{options: [{', '.join(DESKS)}]}}\nfallback: {{system: '{SYSTEM}', field: desk}}"
)
NOWHERE = "http://127.0.0.1:9"


def classify(served: Served, text: str, **more: Any) -> dict[str, Any]:
    response = served.post({"task": "desk", "text": text, **more}, "/v1/classify")
    assert response.status_code == 200, response.text
    told: dict[str, Any] = response.json()
    return told


def hand_in(served: Served, **body: Any) -> tuple[int, Any]:
    response = served.post({"task": "desk", **body}, "/v1/classify/label")
    return response.status_code, response.json()


def test_a_label_that_is_handed_in_makes_the_trace_of_its_call(known: Known, tmp_path: Path) -> None:
    place(known.home, tmp_path, AUDITED)
    text, label = next(iter(known.handled.items()))
    with serve(settings(NOWHERE, tmp_path, LABELLED), tmp_path) as served:
        told = classify(served, text)
        assert (told["label"], told["decision"]) == (None, "audit")
        usage = {"input_tokens": 80, "output_tokens": 2}
        more = {"id": told["id"], "label": "sales", "teacher": "my-llm", "prompt": "p1", "usage": usage}
        assert hand_in(served, **more) == (200, {"id": told["id"], "status": "recorded"})
        (trace,) = served.traces()
        assert (trace.id, trace.text, trace.label, trace.origin) == (told["id"], text, "sales", "audit")
        assert (trace.teacher, trace.prompt, trace.usage) == ("my-llm", "p1", Usage(80, 2))
        assert trace.seen is not None
        assert (trace.seen.label, trace.seen.handled, trace.seen.policy) == (label, True, "v0001")
        # Once more is no second trace, and no other label.
        assert hand_in(served, id=told["id"], label="sales") == (200, {"id": told["id"], "status": "known"})
        assert hand_in(served, id=told["id"], label="billing")[0] == 409
        assert hand_in(served, id="f" * 32, label="billing")[0] == 404
        assert len(served.traces()) == 1


def test_labels_come_in_lists_and_say_what_became_of_each(known: Known, tmp_path: Path) -> None:
    place(known.home, tmp_path, PLAIN)
    with serve(settings(NOWHERE, tmp_path, LABELLED), tmp_path) as served:
        texts = [next(iter(known.handled)), *known.left[:3]]
        results = served.post({"task": "desk", "texts": texts}, "/v1/classify/batch").json()["results"]
        given = [{"id": one["id"], "label": "office"} for one in results]
        status, told = hand_in(served, labels=[*given, given[1], {"id": "x", "label": "a"}])
        assert status == 200
        assert [one["status"] for one in told["results"]] == ["unknown", *["recorded"] * 3, "known", "unknown"]
        assert sorted(trace.text for trace in served.traces()) == sorted(known.left[:3])
        assert {trace.origin for trace in served.traces()} == {"deferred"}


def test_without_a_promise_no_audit_is_drawn_and_labels_only_train(known: Known, tmp_path: Path) -> None:
    place(known.home, tmp_path, ServingSettings("shadow", audit_rate=1.0))
    text = next(iter(known.handled))
    with serve(settings(NOWHERE, tmp_path), tmp_path) as served:
        told = classify(served, text)
        assert (told["decision"], told["reason"], told["label"]) == ("deferred", "shadow", None)
        hand_in(served, id=told["id"], label="sales")
        (trace,) = served.traces()
        assert trace.origin == "requested", "a caller who labels as it likes chooses what is in the sample"
        ServingSettings(audit_rate=1.0).write(served.task)
        until = time.monotonic() + 10.0
        while (told := classify(served, text))["decision"] != "handled" and time.monotonic() < until:
            time.sleep(0.1)
        assert (told["decision"], told["source"]) == ("handled", "surrogate")


@pytest.mark.parametrize("promised", [True, False])
def test_a_label_that_does_not_come_in_time_is_a_failure_where_it_was_promised(
    known: Known, tmp_path: Path, promised: bool
) -> None:
    place(known.home, tmp_path, AUDITED if promised else ServingSettings("shadow"))
    text = next(iter(known.handled))
    task = "callers_label: true\ncallers_label_within_s: 1" if promised else "callers_label_within_s: 1"
    with serve(settings(NOWHERE, tmp_path, task), tmp_path, tend_s=0.1) as served:
        told = classify(served, text)
        time.sleep(1.5)
        assert hand_in(served, id=told["id"], label="sales")[0] == 404
        assert [(trace.label, trace.origin) for trace in served.traces()] == ([(FAILED, "audit")] if promised else [])


def test_a_caller_can_say_that_its_teacher_failed(known: Known, tmp_path: Path) -> None:
    place(known.home, tmp_path, AUDITED)
    with serve(settings(NOWHERE, tmp_path, LABELLED), tmp_path) as served:
        told = classify(served, known.left[0])
        assert hand_in(served, id=told["id"], label=None)[0] == 200
        assert [(trace.label, trace.origin) for trace in served.traces()] == [(FAILED, "audit")]


def test_in_shadow_what_the_policy_says_is_told_and_recorded(known: Known, tmp_path: Path) -> None:
    place(known.home, tmp_path, PLAIN)
    texts = list(known.handled)[:2]
    with Standin(default="office") as api, serve(settings(api.url, tmp_path, FALLBACK), tmp_path) as served:
        for mode, told in (("shadow", True), ("llm", False)):
            body = {"task": "desk", "texts": [*texts, known.left[0]]}
            results = served.post(body, "/v1/classify/batch", x_tracer_mode=mode).json()["results"]
            assert {(one["label"], one["source"]) for one in results} == {("office", "teacher")}
            assert {one["reason"] for one in results} == {"shadow" if told else "requested"}
            assert [one["score"] is not None for one in results] == [told] * 3
            seen = {trace.text: trace.seen for trace in served.traces()[-3:]}
            for text in texts:
                one = seen[text]
                assert (one and (one.label, one.handled)) == ((known.handled[text], True) if told else None)
            assert {trace.origin for trace in served.traces()} == {"requested"}
    with serve(settings(NOWHERE, tmp_path), tmp_path) as served:
        answer = served.post({"task": "desk", "text": texts[0]}, "/v1/classify", x_tracer_mode="shadow").json()
        assert (answer["label"], answer["reason"]) == (None, "shadow")
        hand_in(served, id=answer["id"], label="sales")
        assert [one and one.label for one in [served.traces()[-1].seen]] == [known.handled[texts[0]]]


@pytest.mark.parametrize("promise", ["", LABELLED])
def test_a_mistyped_label_can_be_corrected(known: Known, tmp_path: Path, promise: str) -> None:
    place(known.home, tmp_path, PLAIN)
    task = f"label: {{options: [{', '.join(DESKS)}]}}\n{promise}"
    with serve(settings(NOWHERE, tmp_path, task), tmp_path) as served:
        told = classify(served, known.left[0])
        status, refused = hand_in(served, id=told["id"], label="Sales")
        assert (status, "not a label of this task" in refused["error"]["message"]) == (422, True)
        _, listed = hand_in(served, labels=[{"id": told["id"], "label": label} for label in ("Sales", "sales")])
        assert [one["status"] for one in listed["results"]] == ["no_label", "recorded"]
        assert [trace.label for trace in served.traces()] == ["sales"]


def test_native_calls_are_logged_and_their_saving_counted(
    known: Known, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    place(known.home, tmp_path, PLAIN)
    caplog.set_level("INFO", "tracer.gateway.requests")
    task = f"{LABELLED}\nteacher: gpt-4o-mini"
    text, other = next(iter(known.handled)), known.left[0]
    with serve(settings(NOWHERE, tmp_path, task), tmp_path) as served:
        left = classify(served, other)
        hand_in(served, id=left["id"], label="sales", usage={"input_tokens": 1000, "output_tokens": 10})
        told = classify(served, text)
        served.post({"task": "desk", "texts": [text, text, other]}, "/v1/classify/batch")
        assert served.post({"task": "none", "text": text}, "/v1/classify").status_code == 404
        metrics = served.client.get(served.url + "/metrics").text.splitlines()
    (saved,) = [float(line.split()[1]) for line in metrics if line.startswith('tracer_saved_usd_total{task="desk"}')]
    assert saved == pytest.approx(3 * (1000 * 0.15 + 10 * 0.6) / 1e6)
    lines = [json.loads(record.getMessage()) for record in caplog.records if record.name == "tracer.gateway.requests"]
    assert [(one["id"], one["decision"], one["status"]) for one in lines] == [
        (left["id"], "deferred", 200), ("", "", 200), (told["id"], "handled", 200), ("", "", 200), ("", "", 404),
    ]  # fmt: skip
    assert [one["task"] for one in lines] == ["desk"] * 4 + [""]
    assert (lines[2]["policy"], lines[2]["reason"]) == ("v0001", "handled")
    assert (lines[3]["n"], lines[3]["handled"]) == (3, 2)
    assert text not in caplog.text


def test_open_calls_outlive_the_process(known: Known, tmp_path: Path) -> None:
    place(known.home, tmp_path, AUDITED)
    config = settings(NOWHERE, tmp_path, LABELLED)
    with serve(config, tmp_path) as served:
        told = classify(served, known.left[0])
    with serve(config, tmp_path) as served:
        assert hand_in(served, id=told["id"], label="sales")[0] == 200
        assert [trace.label for trace in served.traces()] == ["sales"]


@pytest.mark.parametrize("task", ["capture: 'off'", "capture: hash", "redact: ['[a-z]+']"])
def test_a_text_waits_as_it_may_be_stored(known: Known, tmp_path: Path, task: str) -> None:
    place(known.home, tmp_path, PLAIN)
    text = known.left[0]
    with serve(settings(NOWHERE, tmp_path, f"{LABELLED}\n{task}"), tmp_path) as served:
        told = classify(served, text)
        path = served.task / NAME
        files = [path, path.with_name(f"{NAME}-wal")]
        stored = b"".join(file.read_bytes() for file in files if file.exists())
        assert text.split()[1].encode() not in stored
        assert hand_in(served, id=told["id"], label="sales")[0] == (404 if "off" in task else 200)
        unseen = served.post({"task": "desk", "text": text}, "/v1/classify", x_tracer_no_store="1").json()
        assert hand_in(served, id=unseen["id"], label="sales")[0] == 404


@pytest.mark.parametrize(
    "body",
    [{}, {"id": "a"}, {"id": "", "label": "a"}, {"id": "a", "label": ""}, {"id": "a", "label": FAILED},
     {"id": "a", "label": 1}, {"id": 1, "label": "a"}, {"id": "a", "label": "b", "usage": {"input_tokens": -1}},
     {"id": "a", "label": "b", "usage": 1}, {"labels": []}, {"labels": [{}]}, {"labels": "a"},
     {"id": "a", "label": "b", "teacher": 1}],
)  # fmt: skip
def test_what_is_no_label_is_refused(tmp_path: Path, body: dict[str, Any]) -> None:
    with serve(settings(NOWHERE, tmp_path), tmp_path) as served:
        status, told = hand_in(served, **body)
        assert (status, list(told)) == (400, ["error"])


def test_open_calls_are_bounded(tmp_path: Path) -> None:
    calls = OpenCalls(tmp_path, 10.0, most=4)
    made = [Opened(f"{i}", "text", 0.0, "audit", None, i >= 3) for i in range(8)]
    calls.put(made, 0.0)
    assert calls.dropped == 4, "one that nobody waits for, and three that are owed"
    assert [calls.take(f"{i}", "a", 1.0)[0] for i in (0, 2, 3, 4, 5)] == [
        "recorded", "unknown", "recorded", "recorded", "unknown",
    ]  # fmt: skip
    assert calls.expired(9.0) == []
    assert calls.expired(10.0) == [], "number 1 waited for nothing that was owed"
    calls.put(made, 10.0)
    assert calls.dropped == 8, "there was room for four again"
    assert [call.id for call in calls.expired(20.0)] == ["3", "4"]


def test_texts_that_no_file_may_hold_wait_in_memory(tmp_path: Path) -> None:
    calls = OpenCalls(tmp_path, 10.0, on_disk=False)
    calls.put([Opened(name, f"secret {name}", 0.0, "audit", None, True) for name in "abc"], 0.0)
    assert all(b"secret" not in file.read_bytes() for file in tmp_path.iterdir())
    status, call = calls.take("a", "x", 1.0)
    assert (status, call and call.text) == ("recorded", "secret a")
    other = OpenCalls(tmp_path, 10.0, on_disk=False)
    assert other.take("b", "x", 1.0) == ("unknown", None)
    assert other.expired(500.0) == [], "what another process has is not its to forget"
    status, call = calls.take("b", "x", 2.0)
    assert (status, call and call.text) == ("recorded", "secret b"), "nor was the label burnt"
    assert [call.text for call in calls.expired(500.0)] == ["secret c"]
    calls.put([Opened("d", "secret d", 0.0, "audit", None, True)], 500.0)
    assert other.expired(1e6) == []
    assert calls.expired(1e6) == [], "forgotten an hour after its time, as where a process has ended"


def test_texts_in_memory_outlive_other_settings(tmp_path: Path) -> None:
    calls = OpenCalls(tmp_path, 10.0, on_disk=False)
    calls.put([Opened("a", "secret a", 0.0, "audit", None, True)], 0.0)
    calls.renew(20.0, on_disk=True)
    calls.put([Opened("b", "text b", 0.0, "audit", None, True)], 0.0)
    assert [call.id for call in calls.expired(15.0)] == ["a"], "each waits as long as was said when it came"
    status, call = calls.take("b", "x", 1.0)
    assert (status, call and call.text) == ("recorded", "text b")
    calls.renew(20.0, on_disk=False)
    calls.put([Opened("c", "secret c", 0.0, "audit", None, True)], 0.0)
    calls.renew(20.0, on_disk=True)
    status, call = calls.take("c", "x", 1.0)
    assert (status, call and call.text) == ("recorded", digest_of("secret c"))
    assert OpenCalls(tmp_path, 10.0).take("b", "x", 1.0)[0] == "known"


def test_a_damaged_file_begins_anew_and_one_that_is_none_says_so(tmp_path: Path) -> None:
    (tmp_path / NAME).write_bytes(b"no database at all" * 100)
    calls = OpenCalls(tmp_path, 10.0)
    calls.put([Opened("a", "text", 0.0, "audit", None, True)], 0.0)
    assert calls.take("a", "x", 1.0)[0] == "recorded"
    calls.close()
    with pytest.raises(StoreError):
        OpenCalls(tmp_path / "nowhere", 10.0).put([Opened("a", "text", 0.0, "audit", None, True)], 0.0)


def test_the_gateway_asks_the_teacher_itself(known: Known, tmp_path: Path) -> None:
    place(known.home, tmp_path, PLAIN)
    (text, label), other = next(iter(known.handled.items())), known.left[0]
    with Standin({other: "returns"}) as api, serve(settings(api.url, tmp_path, FALLBACK), tmp_path) as served:
        told = classify(served, text)
        assert (told["label"], told["source"], api.asked) == (label, "surrogate", [])
        told = classify(served, other)
        assert (told["label"], told["source"], told["decision"]) == ("returns", "teacher", "deferred")
        assert hand_in(served, id=told["id"], label="sales")[0] == 404, "nothing is waited for"
        (trace,) = served.traces()
        assert (trace.id, trace.text, trace.label, trace.origin) == (told["id"], other, "returns", "deferred")


def test_the_same_call_on_another_path_is_the_same_line(known: Known, tmp_path: Path) -> None:
    place(known.home, tmp_path, AUDITED)
    text = known.left[0]
    with Standin({text: "returns"}) as api, serve(settings(api.url, tmp_path, FALLBACK), tmp_path) as served:
        told = classify(served, text)
        assert (told["label"], told["source"]) == ("returns", "teacher")
        sent = json.loads(api.asked[-1].body)
        assert api.asked[-1].path == CHAT
        assert served.post({**sent, "model": MODEL}, x_tracer_task="desk").status_code == 200
        one, two = served.traces()
        assert (one.prompt, one.teacher, one.label) == (two.prompt, two.teacher, two.label)
        assert one.usage == two.usage
        assert one.id == told["id"]
        assert sent["response_format"]["json_schema"]["schema"]["properties"]["desk"]["enum"] == list(DESKS)


@pytest.mark.parametrize("fault", [Fault("status", status=503), Fault("reset"), Fault("malformed")])
def test_a_teacher_that_fails_is_told_and_recorded(known: Known, tmp_path: Path, fault: Fault) -> None:
    place(known.home, tmp_path, AUDITED)
    text = known.left[0]
    with Standin() as api, serve(settings(api.url, tmp_path, FALLBACK), tmp_path) as served:
        api.misbehave(fault, fault, fault)
        response = served.post({"task": "desk", "text": text}, "/v1/classify")
        assert response.status_code in (502, 503)
        assert response.json()["error"]["message"]
        own = classify(served, text, fallback="sales")
        assert (own["label"], own["source"]) == ("sales", "fallback")
        (told,) = served.post({"task": "desk", "texts": [text]}, "/v1/classify/batch").json()["results"]
        assert (told["label"], told["source"]) == (None, "none")
        assert told["error"]


def test_a_batch_asks_a_few_at_once(known: Known, tmp_path: Path) -> None:
    place(known.home, tmp_path, AUDITED)
    texts = list(known.left[:12])
    task = FALLBACK.replace("field: desk", "field: desk, at_once: 3")
    with Standin(default="orders", latency_s=0.05) as api, serve(settings(api.url, tmp_path, task), tmp_path) as served:
        results = served.post({"task": "desk", "texts": texts}, "/v1/classify/batch").json()["results"]
        assert {one["label"] for one in results} == {"orders"}
        assert sorted(trace.text for trace in served.traces()) == sorted(texts)
        assert {one["id"] for one in results} == {trace.id for trace in served.traces()}
        assert 1 < api.n_connections <= 3


def test_an_embedding_alone_cannot_be_shown(known: Known, tmp_path: Path) -> None:
    with Standin() as api, serve(settings(api.url, tmp_path, FALLBACK + "\nmode: observe"), tmp_path) as served:
        told = served.post({"task": "desk", "embedding": [0.0, 1.0]}, "/v1/classify").json()
        assert (told["label"], told["decision"]) == (None, "deferred")
        assert "send the text" in told["error"]
        assert api.asked == []
