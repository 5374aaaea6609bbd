"""An upstream that misbehaves while 32 clients ask: each has the right label or a clear error, in time."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import httpx2
import pytest

from tests.gateway.conftest import Known
from tests.gateway.loading import N_CLIENTS, check_labels, check_traces, drive, quiet, teachers
from tests.gateway.serving import place, serve, settings
from tests.gateway.standin import Fault, Standin
from tracer.policies.registry import PolicyRegistry
from tracer.policies.serving_settings import ServingSettings
from tracer.types import FAILED

PLAIN = ServingSettings(audit_rate=0.0)
FAULTS = ("status=500", "status=503", "status=429, retry_after=1", "reset", "garbage", "cut",
          "slow_first_byte, seconds=0.2", "hang")  # fmt: skip


def config_of(url: str, home: Path, task: str = "", **given: object) -> str:
    known = {"timeout_s": 0.6, "retries": 0} | given
    return settings(url, home, task).replace("retries: 0", ", ".join(f"{k}: {v}" for k, v in known.items()))


@pytest.mark.parametrize("stream", [False, True])
def test_faults_of_all_kinds_at_once(known: Known, tmp_path: Path, stream: bool) -> None:
    place(known.home, tmp_path, ServingSettings(audit_rate=0.2))
    rng = random.Random(int(stream))
    texts = [*list(known.handled)[:100], *known.left[:150]]
    rng.shuffle(texts)
    labels = teachers(texts)
    # Few enough in a row and in all for the breaker to stay closed: an open one is another test's.
    ill = {i: rng.choice(FAULTS) for i in range(0, len(texts), 7)}

    def headers_of(i: int) -> Mapping[str, str]:
        return {"x-standin": ill[i]} if i in ill else {}

    with Standin(labels, latency_s=0.01) as api, serve(config_of(api.url, tmp_path), tmp_path) as served:
        got = drive(served.url, texts, headers_of=headers_of, stream=stream)
        quiet(served)
        traces = served.traces()
    assert Counter(one.text for one in got) == Counter(texts), "each has an answer"
    told = [one for one in got if not (stream and one.label == "" and one.status == 200)]
    check_labels(told, known, labels)
    check_traces(traces, told, labels)
    counts = Counter(one.status for one in got)
    assert counts[200] >= 0.8 * len(texts), counts
    assert set(counts) <= {0, 200, 429, 500, 502, 503, 504}, counts
    assert max(one.seconds for one in got) < 8.0
    handled = [one for one in got if one.decision == "handled"]
    assert len(handled) > 40
    assert {one.status for one in handled} == {200}, "no upstream is needed for these"
    assert {trace.label for trace in traces if trace.origin == "deferred"} <= set(labels.values())
    assert sum(trace.label == FAILED for trace in traces) < 20


@pytest.mark.parametrize("choice", ["error", "degraded"])
def test_an_upstream_that_is_down_is_left_alone(known: Known, tmp_path: Path, choice: str) -> None:
    place(known.home, tmp_path, PLAIN)
    texts = [*list(known.handled)[:60], *known.left[:140]]
    random.Random(1).shuffle(texts)
    policy = PolicyRegistry(known.home).load()
    with serve(config_of("http://127.0.0.1:9", tmp_path, f"on_upstream_down: {choice}"), tmp_path) as served:
        got = drive(served.url, texts)
        assert served.client.get(served.url + "/health").json()["upstreams"] == {"main": "open"}
        assert served.traces() == []
    assert len(got) == len(texts)
    for one in got:
        if one.decision == "handled" or choice == "degraded":
            assert (one.status, one.label) == (200, policy.decide([one.text]).labels[0])
        else:
            assert one.status in (502, 503)
    assert sum(one.decision == "handled" for one in got) >= 50
    assert max(one.seconds for one in got) < 5.0


@pytest.mark.slow
def test_it_is_asked_again_once_it_is_back(known: Known, tmp_path: Path) -> None:
    place(known.home, tmp_path, PLAIN)
    texts = list(known.left[:200])
    labels = teachers(texts)
    with Standin(labels) as api, serve(config_of(api.url, tmp_path), tmp_path) as served:
        api.misbehave(*[Fault("status", status=500)] * 10)
        first = drive(served.url, texts[:60])
        assert {one.status for one in first} <= {200, 500, 503}
        assert 503 in {one.status for one in first}, "left alone"
        end = time.monotonic() + 40.0
        while time.monotonic() < end:
            state = httpx2.get(served.url + "/health").json()["upstreams"]["main"]
            if state == "half_open":
                break
            time.sleep(0.2)
        api.misbehave(*[None] * len(texts))
        drive(served.url, texts[60:61])
        second = drive(served.url, texts[61:])
        assert {one.status for one in second} == {200}
        check_traces(served.traces(), [*first, *second], labels)


def test_clients_that_leave_take_nothing_with_them(known: Known, tmp_path: Path) -> None:
    """Their connections upstream are closed, and the others go on. (Audits go on to their end: another test's.)"""
    place(known.home, tmp_path, PLAIN)
    texts = list(known.left[: 2 * N_CLIENTS])
    labels = teachers(texts)
    with Standin(labels) as api, serve(config_of(api.url, tmp_path, timeout_s=30), tmp_path) as served:
        left = drive(served.url, texts[:N_CLIENTS], headers_of=lambda _: {"x-standin": "hang"}, timeout=2.0)
        assert {one.status for one in left} == {0}
        got = drive(served.url, texts[N_CLIENTS:])
        check_labels(got, known, labels)
        quiet(served)
        check_traces(served.traces(), got, labels)
        assert len(served.traces()) == N_CLIENTS
        assert served.gateway.serving.chains.breakers == {"main": "closed"}, "that they left says nothing of it"
        end = time.monotonic() + 5.0
        while api.n_closed < N_CLIENTS and time.monotonic() < end:
            time.sleep(0.01)
        assert api.n_closed == N_CLIENTS
