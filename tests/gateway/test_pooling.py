"""What workers share: numbers that add up, reloads that reach all, rates that are divided."""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from tracer.errors import ConfigError
from tracer.gateway.auth import Bucket
from tracer.gateway.config import parse
from tracer.gateway.metrics import Metrics
from tracer.gateway.pooling import Pool, add_up, announce, bury, count, served
from tracer.gateway.workers import VARIABLE, Supervisor, bound, shared_out

CONFIG = """
upstreams: {main: {base_url: "http://127.0.0.1:9/v1"}}
limits: {requests_per_s: 10, queue: 7}
keys: {one: {hash: "sha256:HASH", requests_per_s: 1}}
listen: {workers: 4}
""".replace("HASH", "0" * 64)


def told(*, handled: int, deferred: int = 0, waiting: float = 0.0, written: float = 0.0, policy: str = "v1") -> bytes:
    metrics = Metrics()
    for decision, n in (("handled", handled), ("deferred", deferred)):
        for _ in range(n):
            metrics.count("desk", decision, decision, 200, 0.0003, 0.002)
    metrics.coverage.labels("desk").set(handled / max(handled + deferred, 1))
    metrics.queue.labels("desk").set(waiting)
    metrics.written.labels("desk").set(written)
    metrics.policy.labels("desk", policy, "live").set(1)
    return generate_latest(metrics.registry)


def values(content: bytes) -> dict[str, float]:
    found = {}
    for family in text_string_to_metric_families(content.decode()):
        for sample in family.samples:
            labels = {k: v for k, v in sample.labels.items() if k not in ("task", "reason", "mode")}
            found[" ".join([sample.name, *labels.values()])] = sample.value
    return found


def test_numbers_of_the_living_and_the_dead_add_up() -> None:
    own, other = told(handled=3, deferred=1, waiting=2, written=5), told(handled=0, deferred=4, waiting=1, policy="v2")
    gone = told(handled=2, waiting=9, written=7, policy="v0")
    found = values(add_up(own, [other], gone))
    assert found["tracer_requests_total handled"] == 5
    assert found["tracer_requests_total deferred"] == 5
    assert found["tracer_overhead_seconds_count"] == 10
    assert found["tracer_overhead_seconds_bucket 0.0005"] == 10
    assert found["tracer_overhead_seconds_bucket 0.00025"] == 0
    assert found["tracer_request_seconds_sum handled"] == pytest.approx(0.01)
    assert found["tracer_coverage"] == 0.5
    assert found["tracer_queue_depth"] == 3, "what waited in a worker that died waits no more"
    assert found["tracer_traces_written"] == 12, "what it wrote is written"
    assert {key for key in found if key.startswith("tracer_policy_info")} == {"tracer_policy_info v1"}
    assert not [key for key in found if "_created" in key]
    assert values(add_up(own, ())) == {k: v for k, v in values(own).items() if "_created" not in k}


def test_a_worker_that_dies_takes_no_number_with_it(tmp_path: Path) -> None:
    first, second = Pool(tmp_path, 0), Pool(tmp_path, 1)
    assert not served(tmp_path)
    second.publish(told(handled=4))
    assert served(tmp_path)
    for n in (4, 7):
        assert values(first.merged(told(handled=1)))["tracer_requests_total handled"] == 1 + n
        bury(tmp_path, 1)
        assert values(first.merged(told(handled=1)))["tracer_requests_total handled"] == 1 + n
        second.publish(told(handled=3))


def test_a_reload_is_asked_of_all_others_once(tmp_path: Path) -> None:
    first, second = Pool(tmp_path, 0), Pool(tmp_path, 1)
    first.announce()
    assert [first.asked(), second.asked(), second.asked(), Pool(tmp_path, 2).asked()] == [False, True, False, False]


def test_who_starts_takes_the_settings_in_force_and_what_was_asked_since(tmp_path: Path) -> None:
    first, path = Pool(tmp_path, 0), tmp_path / "tracer.yaml"
    assert first.kept() is None
    first.keep()
    assert first.kept() is None, "nothing was read"
    path.write_text("one")
    first.read = "one"
    first.keep()
    late = Pool(tmp_path, 1)
    assert (late.kept(), late.differs(path), late.asked()) == ("one", False, False)
    path.write_text("two")
    time.sleep(0.02)
    announce(tmp_path)
    assert late.differs(path)
    assert Pool(tmp_path, 2).asked(), "a reload that the kept settings may not have"


def test_a_place_that_stays_empty_takes_no_connection(tmp_path: Path) -> None:
    sockets = bound("127.0.0.1", 0, 2)
    address = sockets[0].getsockname()
    sockets[1].listen()
    dies = f"import os, socket, json; place = json.loads(os.environ['{VARIABLE}']); "
    dies += "s = socket.socket(fileno=place['accepting']); s.listen(); raise SystemExit(1)"
    supervisor = Supervisor([sys.executable, "-c", dies], sockets[:1], grace_s=1.0)
    (tmp_path / "worker-9.prom").touch()
    lifeline, held = os.pipe()
    slow = threading.Thread(target=supervisor._supervise, args=(tmp_path, lifeline))
    slow.start()
    try:
        until = time.monotonic() + 10.0
        while supervisor._slots[0].failures < 1 and time.monotonic() < until:
            time.sleep(0.01)
        assert sockets[0].fileno() == -1, "what listened is closed"
        assert supervisor._slots[0].socket.getsockname() == address, "and the place is kept"
    finally:
        supervisor._stop.set()
        slow.join(10)
        os.close(held)
        os.close(lifeline)
        supervisor._slots[0].socket.close()
        sockets[1].close()


def test_all_can_tell_how_many_answer(tmp_path: Path) -> None:
    first, second = Pool(tmp_path, 0), Pool(tmp_path, 1)
    assert first.living() is None
    first.publish(told(handled=1))
    count(tmp_path, [True, True, False])
    assert (first.living(), second.living()) == ((1, 3), (1, 3)), "one runs and has not come up"
    second.publish(told(handled=1))
    count(tmp_path, [True, True, False])
    assert first.living() == (2, 3)


def test_rates_are_divided_and_queues_are_not() -> None:
    whole = parse(CONFIG, {})
    part = shared_out(whole, whole.listen.workers)
    assert (part.limits.requests_per_s, part.keys[0].requests_per_s) == (2.5, 0.25)
    assert (part.limits.upstream_concurrency, part.limits.queue) == (50, 7)
    assert replace(part, limits=whole.limits, keys=whole.keys) == whole
    assert shared_out(whole, 1) == whole
    clock = [0.0]
    buckets = [Bucket(part.limits.requests_per_s or 0.0, lambda: clock[0]) for _ in range(4)]
    admitted = 0
    for step in range(2000):
        clock[0] = step / 100
        admitted += sum(bucket.wait() == 0.0 for bucket in buckets)
    assert admitted == pytest.approx(10 * 20, abs=12)


def test_a_port_is_nobody_elses() -> None:
    sockets = bound("127.0.0.1", 0, 3)
    try:
        ports = {one.getsockname()[1] for one in sockets}
        assert len(ports) == 1
        assert ports != {0}
        sockets[0].listen()
        with pytest.raises(ConfigError, match="cannot listen on"):
            bound("127.0.0.1", ports.pop(), 2)
    finally:
        for one in sockets:
            one.close()


@pytest.mark.parametrize("listen", ["{workers: 0}", "{workers: two}", "{worker: 2}"])
def test_a_wrong_number_of_workers_is_refused(listen: str) -> None:
    with pytest.raises(ConfigError, match="listen"):
        parse(CONFIG.replace("{workers: 4}", listen), {})


def test_sockets_are_let_go_of_by_the_probe() -> None:
    (one,) = bound("127.0.0.1", 0, 1)
    with one:
        one.listen()
        with socket.create_connection(one.getsockname()[:2], timeout=5):
            pass
