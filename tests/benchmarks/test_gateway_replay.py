"""The replay benchmark: its teacher drifts when told, and its counts tell what was seen from what was lost."""

from __future__ import annotations

import sys
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from benchmarks import load_servers, replay_client, replay_standin
from benchmarks.gateway_replay import audited, circle, kept, would_be
from benchmarks.replay_client import Call
from tracer.types import Origin, Seen, Trace


def call(name: str, answer: str, truth: str = "a", decision: str = "deferred") -> Call:
    return Call(name, f"text {name}", truth, answer, decision, "", "v0001", Decimal(0), 0.0)


def trace(name: str, label: str, seen: str | None = None, *, handled: bool = True, origin: Origin = "audit") -> Trace:
    told = None if seen is None else Seen("v0001", seen, handled, 0.9)
    return Trace(name, f"text {name}", label, origin=origin, seen=told)


def test_a_drift_gives_every_label_another_and_loses_none() -> None:
    drift = circle(["a", "b", "c"])
    assert drift == {"a": "b", "b": "c", "c": "a"}


def test_the_teacher_says_what_it_is_told_to_and_counts_tokens() -> None:
    teacher = replay_standin.Teacher({"hello": "a", "bye": "z"}, circle(["a", "b"]))
    asked: dict[str, Any] = {"messages": [{"content": "p" * 400}, {"content": "hello"}]}

    def label() -> str:
        return str(teacher.complete(asked)["choices"][0]["message"]["content"])

    assert label() == "a"
    teacher.drifted = True
    assert label() == "b"
    asked["messages"][1]["content"] = "bye"
    assert label() == "z", "no part of the drift"
    usage = teacher.complete(asked)["usage"]
    assert (usage["prompt_tokens"], usage["completion_tokens"]) == replay_standin.tokens("p" * 400, "bye", "z")
    assert usage["prompt_tokens"] > 100
    asked["messages"][1]["content"] = "never seen"
    with pytest.raises(KeyError):
        teacher.complete(asked)


def test_a_lost_trace_and_a_wrong_one_are_counted() -> None:
    calls = [call("1", "a"), call("2", "a", decision="audit"), call("3", "a", decision="audit"), call("4", "b")]
    calls += [call("5", "b", decision="handled")]
    traces = {"1": trace("1", "b"), "2": trace("2", "a"), "3": trace("3", "a", origin="deferred")}
    assert kept(calls, traces, {"tracer_traces_dropped": 2.0}) == {
        "n_asked": 4, "n_kept": 2, "n_audits": 2, "n_audits_kept": 1, "n_traces": 3, "n_dropped": 2,
    }  # fmt: skip


def test_audits_count_where_the_policy_would_have_answered() -> None:
    calls = [call(str(i), "a", decision="audit" if i < 4 else "deferred") for i in range(6)]
    traces = {
        "0": trace("0", "a", "a"), "1": trace("1", "a", "b"), "2": trace("2", "a", "b", handled=False),
        "3": trace("3", "a"), "4": trace("4", "a", "a"), "5": trace("5", "a", "b", handled=False),
    }  # fmt: skip
    assert [(one.id, agreed) for one, agreed in audited(calls, traces)] == [("0", True), ("1", False)]
    assert would_be(calls, traces) == {"n": 6, "n_handled": 3, "n_agreed": 2}


def test_an_answer_without_the_gateways_headers_is_no_measurement(tmp_path: Path) -> None:
    file = tmp_path / "teacher.json"
    file.write_text('{"labels": {"hello": "a"}, "drift": {}}')
    port = load_servers.free_port()
    script = str(load_servers.HERE / "replay_standin.py")
    command = [sys.executable, script, str(port), str(file), "0.001", "0.1", "0"]
    with load_servers.started("stand-in", command, port, None, ready="/stats") as server:
        with pytest.raises(KeyError, match="x-tracer-call-id"):
            replay_client.asked(f"http://127.0.0.1:{port}", "m", "p", ["hello"], ["a"], 100.0)
        assert b'"n": 1' in server.get("/stats")
        server.post("{}", "/drift")
        assert b'"drifted": true' in server.get("/stats")
