"""A wall clock that jumps: it dates traces, and nothing else depends on it."""

from __future__ import annotations

import ast
import time
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import httpx2
import pytest

import tracer.gateway
from tests.gateway.conftest import Known
from tests.gateway.loading import ask, check_labels, check_traces, quiet, teachers
from tests.gateway.serving import Served, asked, place, serve, settings
from tests.gateway.standin import Fault, Standin
from tracer.gateway.opened import OpenCalls, Opened
from tracer.policies.serving_settings import ServingSettings
from tracer.traces.store import TraceStore
from tracer.types import FAILED

NOON = datetime(2026, 6, 1, 12, tzinfo=UTC)
JUMPS = (timedelta(0), timedelta(days=-1), timedelta(days=31), timedelta(days=-3650), timedelta(seconds=-0.5))


def stamp(now: list[datetime]) -> float:
    return now[0].timestamp()


def test_traces_are_dated_by_the_wall_clock_and_keep_their_order(known: Known, tmp_path: Path) -> None:
    folder = place(known.home, tmp_path, ServingSettings(audit_rate=0.5))
    texts = [*list(known.handled)[:20], *known.left[:20]]
    labels = teachers(texts)
    now = [NOON]
    got, dates = [], {}
    with (
        Standin(labels) as api,
        serve(settings(api.url, tmp_path), tmp_path, now=partial(stamp, now), tend_s=0.02) as served,
    ):
        for jump in JUMPS:
            quiet(served)
            now[0] = NOON + jump
            for text in texts:
                one = ask(served.client, served.url, text, {})
                got.append(one)
                dates[one.id] = now[0]
        assert {one.status for one in got} == {200}
        check_labels(got, known, labels)
        quiet(served)
        traces = served.traces()
        assert served.client.get(served.url + "/metrics").status_code == 200
    check_traces(traces, got, labels)
    assert all(trace.time == dates[trace.id] for trace in traces)
    order = [one.id for one in got if one.decision != "handled"]
    assert [trace.id for trace in traces] == order, "in the order in which they came, whatever their dates"
    with TraceStore.open(folder) as store:
        rows = store.traffic()
    assert sum(row.n for row in rows) == len(got)
    assert all(0.0 <= row.seconds < 120.0 for row in rows)


def test_rates_and_breakers_look_at_a_steady_clock(known: Known, tmp_path: Path) -> None:
    place(known.home, tmp_path, ServingSettings(audit_rate=0.0))
    now = [NOON]
    with (
        Standin(teachers(known.left[:9])) as api,
        serve(
            settings(api.url, tmp_path, more="limits: {requests_per_s: 5}"), tmp_path, now=partial(stamp, now)
        ) as served,
    ):
        spent = burst(served, known.left[0], 12)
        assert 429 in spent
        now[0] += timedelta(days=31)
        assert 429 in burst(served, known.left[0], 12), "a month that passed at once fills no bucket"
        now[0] -= timedelta(days=60)
        time.sleep(1.1)
        assert burst(served, known.left[0], 3) == [200] * 3, "nor does one that is set back keep it empty"
        time.sleep(1.1)
        api.misbehave(*[Fault("status", status=500)] * 5)
        assert burst(served, known.left[0], 5) == [500] * 5
        now[0] += timedelta(days=31)
        assert httpx2.get(served.url + "/health").json()["upstreams"] == {"main": "open"}
        assert httpx2.get(served.url + "/health/readiness").status_code == 200


@pytest.mark.parametrize("jump", [timedelta(minutes=15), timedelta(days=-1)])
def test_a_step_makes_no_label_late(known: Known, tmp_path: Path, jump: timedelta) -> None:
    place(known.home, tmp_path, ServingSettings(audit_rate=1.0))
    now = [NOON]
    task = "callers_label: true\ncallers_label_within_s: 2"
    url = "http://127.0.0.1:9"
    with serve(settings(url, tmp_path, task), tmp_path, now=partial(stamp, now), tend_s=0.05) as served:
        texts = known.left[:4]
        ids = [served.post({"task": "desk", "text": text}, "/v1/classify").json()["id"] for text in texts]
        now[0] += jump
        time.sleep(0.3)
        for name in ids[:2]:
            label = {"task": "desk", "id": name, "label": "sales"}
            assert served.post(label, "/v1/classify/label").status_code == 200
        assert [trace.label for trace in served.traces()] == ["sales"] * 2
        time.sleep(2.0)
        assert [trace.label for trace in served.traces()] == ["sales", "sales", FAILED, FAILED], "in time all the same"
        assert {trace.time for trace in served.traces()} == {NOON}


def test_after_a_new_start_of_the_host_calls_wait_as_long_as_others(tmp_path: Path) -> None:
    before = OpenCalls(tmp_path, 100.0)
    before.put([Opened(name, "text", 0.0, "audit", None, True) for name in "ab"], 1e6)
    before.close()
    after = OpenCalls(tmp_path, 100.0)
    assert after.take("a", "x", 5.0)[0] == "recorded"
    assert after.expired(104.0) == []
    assert [call.id for call in after.expired(105.0)] == ["b"]


def burst(served: Served, text: str, n: int) -> list[int]:
    return [served.post(asked(text)).status_code for _ in range(n)]


def test_discovery_takes_any_clock(tmp_path: Path) -> None:
    now = [NOON]
    schema = {"type": "object", "properties": {"desk": {"type": "string", "enum": ["sales", "billing"]}},
              "required": ["desk"], "additionalProperties": False}  # fmt: skip
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    with (
        Standin(default="sales") as api,
        serve(settings(api.url, tmp_path), tmp_path, now=partial(stamp, now)) as served,
    ):
        for i in range(40):
            now[0] = NOON + JUMPS[i % len(JUMPS)]
            body = {**asked(f"message {i}"), "model": "gpt-4o-mini", "response_format": form}
            assert served.post(body).status_code == 200
        quiet(served)
        end = time.monotonic() + 10.0
        while not any(p.n_calls == 40 for p in served.gateway.discovery.proposals()) and time.monotonic() < end:
            time.sleep(0.02)
        (found,) = served.gateway.discovery.proposals()
        assert found.n_calls == 40
        assert found.yaml()


@pytest.mark.parametrize("room", ["gateway", "serving"])
def test_no_duration_is_taken_from_the_wall_clock(room: str) -> None:
    """``time.time`` and ``datetime.now`` stand only where they are the default of an argument."""
    folder = Path(tracer.gateway.__path__[0]).parent / room
    for path in folder.rglob("*.py"):
        tree = ast.parse(path.read_text())
        functions = [f.args for f in ast.walk(tree) if isinstance(f, ast.FunctionDef | ast.AsyncFunctionDef)]
        given = [d for one in functions for d in (*one.defaults, *one.kw_defaults) if d is not None]
        defaults = {id(node) for default in given for node in ast.walk(default)}
        for node in ast.walk(tree):
            wall = isinstance(node, ast.Attribute) and ast.unparse(node) in (
                "time.time",
                "datetime.now",
                "time.time_ns",
            )
            assert not wall or id(node) in defaults, f"{path.name}:{node.lineno}"  # type: ignore[attr-defined]
