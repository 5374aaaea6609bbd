"""The gateway's process is killed, or told to stop, under load."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from tests.gateway.conftest import Known
from tests.gateway.loading import Got, check_labels, check_traces, drive, running, stored, teachers
from tests.gateway.serving import place, settings
from tests.gateway.standin import Fault, Standin
from tracer.policies.registry import PolicyRegistry
from tracer.policies.serving_settings import ServingSettings
from tracer.traces.store import TraceStore

pytestmark = pytest.mark.slow


def test_killed_under_load_what_was_committed_is_there(known: Known, tmp_path: Path) -> None:
    folder = place(known.home, tmp_path, ServingSettings(audit_rate=0.3))
    texts = [*list(known.handled)[:400], *known.left[:600]]
    labels = teachers(texts)
    config = tmp_path / "tracer.yaml"
    with Standin(labels, latency_s=0.02) as api:
        config.write_text(settings(api.url, tmp_path, more="log_level: error"))
        seen: list[str] = []
        before: list[Got] = []
        for round_ in range(3):
            with running(config) as one:
                killed = threading.Event()

                def kill(
                    process: object = one, killed: threading.Event = killed, at: float = 1.7 + 0.3 * round_
                ) -> None:
                    time.sleep(at)
                    seen.extend(trace.id for trace in stored(folder))  # committed: another process has read it
                    one.kill()
                    killed.set()

                killer = threading.Thread(target=kill)
                killer.start()
                got = drive(one.url, texts, until=killed.is_set)
                killer.join()
                before += got
                assert {found.status for found in got} <= {0, 200}, "an answer, or a broken connection"
                check_labels(got, known, labels)
        with running(config) as one:
            after = drive(one.url, texts[:200])
            assert {found.status for found in after} == {200}
            check_labels(after, known, labels)
            assert one.terminate() in (0, -15)
    traces = {trace.id: trace for trace in stored(folder)}
    assert len(set(seen)) > 50
    assert set(seen) <= set(traces), "a committed trace is lost"
    check_traces([traces[one.id] for one in after if one.id in traces], after, labels)
    given = {one.id: one for one in (*before, *after) if one.status == 200}
    for id_, trace in traces.items():
        assert trace.label == labels[trace.text]
        assert id_ not in given or given[id_].text == trace.text
    assert PolicyRegistry(folder).active_version() == "v0001"


def test_told_to_stop_under_load_each_accepted_request_is_answered(known: Known, tmp_path: Path) -> None:
    folder = place(known.home, tmp_path, ServingSettings(audit_rate=0.3))
    texts = [*list(known.handled)[:400], *known.left[:600]]
    labels = teachers(texts)
    config = tmp_path / "tracer.yaml"
    stopped = threading.Event()
    with Standin(labels, latency_s=0.05) as api:
        config.write_text(settings(api.url, tmp_path, more="log_level: error"))
        with running(config) as one:

            def stop() -> None:
                time.sleep(1.5)
                stopped.set()
                assert one.terminate() in (0, -15)

            stopper = threading.Thread(target=stop)
            stopper.start()
            got = drive(one.url, texts)
            stopper.join()
            log = one.log.read_text()
    assert "Traceback" not in log
    assert {found.status for found in got} <= {0, 200}
    assert sum(found.status == 200 for found in got) > 100
    check_labels(got, known, labels)
    check_traces(stored(folder), got, labels)
    # A request that the upstream was asked for had been accepted: it has its answer.
    answered = sum(found.status == 200 and found.decision != "handled" for found in got)
    assert answered == len(api.asked)
    with TraceStore.open(folder) as store:
        assert sum(row.n for row in store.traffic()) == sum(found.status == 200 for found in got)


def test_long_streams_end_within_the_drain(known: Known, tmp_path: Path) -> None:
    folder = place(known.home, tmp_path, ServingSettings(audit_rate=0.0))
    texts = list(known.left[:8])
    labels = {text: " ".join(["word"] * 12) for text in texts}
    config = tmp_path / "tracer.yaml"
    with Standin(labels) as api:
        api.misbehave(*[Fault("slow_chunks", seconds=0.3)] * len(texts))
        config.write_text(settings(api.url, tmp_path, more="log_level: error"))
        with running(config) as one:

            def stop() -> None:
                end = time.monotonic() + 20.0
                while len(api.asked) < len(texts) and time.monotonic() < end:
                    time.sleep(0.02)
                begun.set()
                assert one.terminate() in (0, -15)

            begun = threading.Event()
            stopper = threading.Thread(target=stop)
            stopper.start()
            got = drive(one.url, texts, n_clients=8, stream=True)
            stopper.join()
    assert begun.is_set()
    assert [(found.status, found.label) for found in got] == [(200, labels[found.text]) for found in got]
    assert min(found.seconds for found in got) > 2.0
    check_traces(stored(folder), got, labels)


def test_a_stream_that_does_not_end_is_cut_when_the_drain_is_over(known: Known, tmp_path: Path) -> None:
    """Its client sees a stream without an end, never half a label for a whole one; nothing of it is recorded."""
    folder = place(known.home, tmp_path, ServingSettings(audit_rate=0.0))
    config = tmp_path / "tracer.yaml"
    text = known.left[0]
    with Standin({text: "word " * 100}) as api:
        api.misbehave(Fault("slow_chunks", seconds=1.5))
        config.write_text(settings(api.url, tmp_path, more="log_level: error"))
        with running(config) as one:
            got: list[Got] = []
            client = threading.Thread(
                target=lambda: got.extend(drive(one.url, [text], n_clients=1, stream=True, timeout=60.0))
            )
            client.start()
            while not api.asked:
                time.sleep(0.02)
            begun = time.monotonic()
            one.terminate(60.0)
            assert time.monotonic() - begun < 45.0
            client.join(30)
    assert [(found.status, found.label) for found in got] in ([(0, "")], [(200, "")])
    assert stored(folder) == []
