"""The load benchmark: its clients read answers right, its stand-in answers, its counts are paired."""

from __future__ import annotations

import json
import time
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from benchmarks import gateway_load, load_client, load_servers, load_tables, load_tasks
from benchmarks.load_servers import Cores, Server

ANSWER = (
    b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 5\r\n"
    b"x-tracer-decision: handled\r\nX-Tracer-Overhead-Ms: 0.25\r\n\r\nhello"
)


def test_an_answer_is_read_once_its_head_is_there() -> None:
    head = ANSWER.index(b"\r\n\r\n") + 4
    assert load_client.head_of(bytearray(ANSWER)) == (len(ANSWER), 200, "handled", "0.25")
    assert load_client.head_of(ANSWER[:head]) == (len(ANSWER), 200, "handled", "0.25")
    assert load_client.head_of(ANSWER[: head - 1]) is None
    plain = b"HTTP/1.1 503 No\r\ncontent-length: 0\r\n\r\n"
    assert load_client.head_of(plain) == (len(plain), 503, "", "")


def test_an_answer_without_length_is_refused() -> None:
    with pytest.raises(ValueError, match="content-length"):
        load_client.head_of(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n")


def test_quantiles_are_values_that_were_seen() -> None:
    found = load_client.quantiles([float(i) for i in range(1, 201)])
    assert found == {"p50_ms": 100.0, "p99_ms": 198.0, "max_ms": 200.0}
    assert load_client.quantiles([7.0]) == {"p50_ms": 7.0, "p99_ms": 7.0, "max_ms": 7.0}
    assert load_client.quantiles([]) == {}


def test_spellings_differ_and_have_the_same_words() -> None:
    text = "a b c d".replace(" ", load_client.GAP)
    spellings = [load_client.varied(text, number) for number in range(8)]
    assert len(set(spellings)) == 8
    assert {tuple(spelling.split()) for spelling in spellings} == {("a", "b", "c", "d")}
    with pytest.raises(ValueError, match="3 blanks"):
        load_client.varied(text, 8)


def test_calls_take_turns_and_say_their_length() -> None:
    bodies = ['{"a": "ä' + load_client.GAP + 'b"}', '{"a": "b' + load_client.GAP + 'c"}']
    sent = list(islice(load_client.calls(bodies, "/v1", vary=True), 4))
    assert len(set(sent)) == 4
    for call in sent:
        head, _, raw = call.partition(b"\r\n\r\n")
        assert f"content-length: {len(raw)}".encode() in head
        json.loads(raw)


def found(**other: Any) -> dict[str, Any]:
    return {"statuses": {"200": 5}, "decisions": {"handled": {"n": 5}}, "reopened": 0, **other}


def test_what_was_not_answered_as_wanted_is_no_measurement() -> None:
    gateway_load.checked(found(), "handled")
    gateway_load.checked(found(decisions={"passed": {"n": 5}, "handled": {"n": 1}}), None)
    for wrong in (
        {"statuses": {"200": 4, "502": 1}}, {"decisions": {"handled": {"n": 4}, "deferred": {"n": 1}}}, {"reopened": 1},
    ):  # fmt: skip
        with pytest.raises(RuntimeError):
            gateway_load.checked(found(**wrong), "handled")


def test_ratios_are_within_rounds() -> None:
    ours, echo = [{"per_s": 10}, {"per_s": 40}, {"per_s": 30}], [{"per_s": 20}, {"per_s": 40}, {"per_s": 40}]
    assert load_tables.paired(ours, echo, lambda a, b: a["per_s"] / b["per_s"]) == (0.75, 0.5, 1.0)
    assert load_tables.middle(ours, "per_s") == (30.0, 10.0, 40.0)
    assert load_tables.spread((0.75, 0.5, 1.0), ".2f") == "0.75 (0.50 to 1.00)"
    assert load_tables.spread((1.0, 1.0, 1.0), ".0f") == "1"


def test_a_body_names_all_labels_and_the_schema_too() -> None:
    labels = ["a", "b"]
    plain = json.loads(load_tasks.body("desk", load_tasks.instructions(labels), "hi"))
    assert plain["messages"][0]["content"].endswith("- a\n- b")
    assert "response_format" not in plain
    typed = json.loads(load_tasks.body("desk", "p", "hi", labels))
    assert typed["response_format"]["json_schema"]["schema"]["properties"]["intent"]["enum"] == labels


def test_compromised_releases_of_litellm_are_not_started(tmp_path: Path) -> None:
    python = tmp_path / "bin" / "python"
    (tmp_path / "lib" / "python3.11" / "site-packages" / "litellm-1.82.8.dist-info").mkdir(parents=True)
    assert load_servers.litellm_versions(python) == {"litellm": "1.82.8"}
    with pytest.raises(RuntimeError, match="must not run"):
        load_servers.litellm(python, "m", 1, tmp_path, None)


def test_clients_measure_the_stand_in(tmp_path: Path) -> None:
    bodies = tmp_path / "bodies.json"
    bodies.write_text(json.dumps([load_tasks.body("desk", "p", text) for text in ("one", "two")]), encoding="utf-8")
    cores = Cores.here()
    with load_servers.standin("stand-in", "card_arrival", cores.server) as server:
        seen = gateway_load.asked(server, bodies, cores.clients, clients=3, warm_s=0.0, requests=50)
        told = json.loads(server.get("/stats"))
        assert _sleeps_and_wakes(server)
    assert (seen["n"], seen["statuses"], seen["reopened"]) == (50, {"200": 50}, 0)
    assert seen["decisions"][""]["p50_ms"] == seen["p50_ms"] > 0.0
    assert 50 <= told["requests"] <= 53  # those that were on their way at the end
    assert server.process.returncode is not None


def _sleeps_and_wakes(server: Server) -> bool:
    def sleeps() -> bool:
        stat = Path(f"/proc/{server.process.pid}/stat").read_text(encoding="ascii")
        return stat.rsplit(")", 1)[1].split()[0] == "T"

    with server.awake():
        awake = not sleeps()
    until = time.monotonic() + 10.0
    while not sleeps() and time.monotonic() < until:
        time.sleep(0.01)
    return awake and sleeps()
