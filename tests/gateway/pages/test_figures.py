"""What the page says is what the store says, and nothing that is unknown is called zero."""

from __future__ import annotations

import json
import re
import sqlite3
import time
from datetime import timedelta
from decimal import Decimal
from html import unescape
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.gateway.pages.conftest import ADMIN, NOW, TOKEN, Open, Visit
from tests.gateway.pages.homes import TEACHER, at_noon
from tests.gateway.serving import asked
from tracer.cost import call_usd, price_of
from tracer.flywheel.watching import look
from tracer.gateway.pages.ledgers import Ledger, total
from tracer.policies.registry import PolicyRegistry
from tracer.serving.tallies import Tally
from tracer.traces.store import TraceStore
from tracer.types import Trace, Usage

FORM: dict[str, Any] = {
    "type": "json_schema",
    "json_schema": {
        "name": "l",
        "schema": {
            "type": "object",
            "properties": {"label": {"enum": ["billing", "returns", "orders"]}},
            "required": ["label"],
        },
    },
}


def plain(html: str) -> str:
    """The words of a page, without markup."""
    return re.sub(r"\s+", " ", unescape(re.sub(r"<(style|script).*?</\1>|<[^>]+>", " ", html, flags=re.DOTALL)))


def shown(visit: Visit, path: str = "/tasks/desk") -> str:
    reply = visit.get(path)
    assert reply.status_code == 200
    return plain(reply.text)


def scraped(visit: Visit) -> dict[str, float]:
    text = httpx2.get(visit.served.url + "/metrics").text
    return {
        match[1]: float(match[2])
        for match in re.finditer(r'^(tracer_\w+){task="desk"} (\S+)$', text, flags=re.MULTILINE)
    }


def test_the_live_agreement_is_what_the_flywheels_look_says(opened: Open, lived: tuple[Path, int]) -> None:
    with opened(tend_s=0.2) as visit:
        monitor = look(visit.served.task).monitor
        assert monitor is not None
        assert 5 < monitor.n_handled < monitor.n_audits
        low, high = monitor.interval
        assert f"{monitor.n_agreed} of {monitor.n_handled} audits agree; {low:.1%} to {high:.1%}" in shown(visit, "/")
        assert f"{low:.1%} to {high:.1%}, target 80.0%" in shown(visit)
        until = time.monotonic() + 20.0
        while "tracer_live_agreement" not in scraped(visit) and time.monotonic() < until:
            time.sleep(0.1)
        told = scraped(visit)
        assert told["tracer_live_agreement"] == pytest.approx(monitor.agreement)
        assert told["tracer_live_agreement_lower"] == pytest.approx(low)
        assert told["tracer_live_agreement_upper"] == pytest.approx(high)
        assert (told["tracer_target"], told["tracer_audits_counted"], told["tracer_alarm"]) == (
            0.8,
            monitor.n_handled,
            0.0,
        )


def test_without_a_policy_the_gauges_say_that_nothing_is_known(opened: Open) -> None:
    with opened(tend_s=0.2) as visit:
        PolicyRegistry(visit.served.task).activate(None)
        until = time.monotonic() + 20.0
        while "tracer_alarm" not in scraped(visit) and time.monotonic() < until:
            time.sleep(0.1)
        told = scraped(visit)
        assert str(told["tracer_live_agreement"]) == str(told["tracer_target"]) == "nan"
        assert "No policy is in force." in shown(visit)


def test_a_demotion_stays_in_sight_until_something_follows(opened: Open) -> None:
    with opened() as visit:
        home, monitor = visit.served.task, look(visit.served.task).monitor
        assert monitor is not None
        audits = f"{monitor.n_handled} handled audits of v0001 until it was demoted"
        registry = PolicyRegistry(home)
        registry.activate(None, event="demote", note="broke a promise about refunds")
        page = shown(visit)
        assert audits in page
        assert "Demoted: audits said that v0001 breaks its promise; the teacher answers everything." in page
        assert "refunds" not in page, "a note may quote a label"
        assert "demoted" in shown(visit, "/")
        visit.login()
        looks = visit.served.gateway._looks
        assert "Demoted: broke a promise about refunds" in shown(visit)
        registry.record("keep", note="the gate refused", version="v0001")
        looks.forget("desk")
        assert audits in shown(visit), "nothing came into force"
        registry.activate("v0001", event="promote")
        looks.forget("desk")
        page = shown(visit)
        assert "Demoted:" not in page
        assert "since it came into force" in page


def test_a_step_down_is_told_of_too(opened: Open) -> None:
    with opened() as visit:
        registry = PolicyRegistry(visit.served.task)
        safer = registry.save(registry.load("v0001")).version
        registry.activate(safer, event="demote", note="")
        page = shown(visit)
        assert f"v0001 breaks its promise; {safer}, at a safer threshold, answers." in page
        assert "until it was demoted" not in page


def test_an_alias_that_is_declared_is_not_proposed(opened: Open) -> None:
    with opened(ADMIN, "mode: observe", empty=True) as visit:
        for i in range(60):
            visit.served.post(asked(f"message number {i}", response_format=FORM))
        until = time.monotonic() + 10.0
        while not visit.served.gateway.discovery.proposals() and time.monotonic() < until:
            time.sleep(0.1)
        assert visit.served.gateway.discovery.proposals()
        assert "Found in your traffic" not in shown(visit, "/")


def test_coverage_and_requests_are_those_of_the_tallies(opened: Open, lived: tuple[Path, int]) -> None:
    with opened() as visit:
        with TraceStore.open(visit.served.task) as store:
            tallies, n_traces = store.traffic(), store.count()
        assert sum(tally.n for tally in tallies) == lived[1]
        handled = sum(int(str(tally.facts["handled"])) for tally in tallies)
        page = shown(visit)
        assert f"Requests {lived[1]:,}" in page
        assert f"Handled {handled:,} {handled / lived[1]:.1%}" in page
        assert f"Traces {n_traces:,}" in page


def test_requests_count_before_their_tally_is_written(opened: Open) -> None:
    with opened(now=time.time) as visit:
        before = int(re.findall(r"Requests today ([\d,]+)", shown(visit, "/"))[0])
        for i in range(7):
            visit.served.post(asked(f"where is parcel {i}"))
        visit.served.gateway._looks.forget("desk")
        assert int(re.findall(r"Requests today ([\d,]+)", shown(visit, "/"))[0]) == before + 7
        with TraceStore.open(visit.served.task) as store:
            assert all(tally.started < NOW for tally in store.traffic()), "a look writes nothing"


def test_dollars_are_calls_by_mean_tokens_at_list_price(opened: Open) -> None:
    with opened() as visit:
        with TraceStore.open(visit.served.task) as store:
            told = [trace for _, trace in store.traces() if trace.usage is not None]
            served = sum(int(str(tally.facts["served"])) for tally in store.traffic())
        price = price_of(TEACHER)
        assert price is not None
        spent = sum((call_usd(price, trace.usage) for trace in told if trace.usage), Decimal(0))
        saved = served * spent / len(told)
        page = shown(visit)
        assert f"saved: ${saved:.{1 - saved.adjusted()}f}" in page or f"saved: ${saved:.4f}" in page
        assert f"{len(told):,}" in page


def test_an_unknown_price_is_unknown_and_not_nothing(opened: Open) -> None:
    with opened(task="teacher: our-own-llama") as visit:
        store = visit.served.gateway.serving.lines["desk"].store
        store.append([Trace("c" * 32, "hello", "x", teacher="our-own-llama", time=at_noon(), usage=Usage(10, 1))])
        page = shown(visit)
        assert re.search(r"Saved today unknown 30 days: unknown", page)
        assert re.search(r"Spent today unknown", page)


def test_tallies_that_do_not_say_what_was_served_leave_the_saving_unknown(tmp_path: Path) -> None:
    now = at_noon()
    with TraceStore.open(tmp_path) as store:
        store.append([Trace("a", "hi", "x", teacher=TEACHER, time=now, usage=Usage(100, 10))])
        store.tally("v0001", (now - timedelta(hours=1)).timestamp(), 30.0, 10, {"handled": 4})
        ledger = Ledger(TEACHER, lambda _: None)
        with store.recent() as recent:
            ledger.refresh(recent, now.timestamp(), [])
        day = total(ledger.spans(now.timestamp(), 1, 24))
        assert (day.n, day.handled, day.served, day.saved, day.calls) == (10, 4, None, None, 1)
        assert day.spent is not None
        store.tally("v0001", now.timestamp(), 30.0, 10, {"handled": 4, "served": 3})
        with store.recent() as recent:
            ledger.refresh(recent, now.timestamp(), [Tally("v0001", now, 1.0, 5, {"handled": 2, "served": 2})])
        hour = ledger.spans(now.timestamp(), 1, 1)[0]
        assert (hour.n, hour.handled, hour.served, hour.calls) == (15, 6, 5, 10)
        assert hour.saved == hour.spent / 2  # type: ignore[operator]


def test_what_was_not_kept_is_not_shown(opened: Open) -> None:
    with opened(task="capture: hash", more="") as visit:
        for i in range(12):
            visit.served.post(asked(f"secret {i} of which the digest alone is kept"))
        assert visit.served.gateway.serving.lines["desk"].recorder.flush(10.0)
        page = shown(visit)
        assert "The text was not kept" in page
        assert "sha256:" not in page
        assert "of which the digest" not in page


def test_a_page_stands_where_its_sources_do_not(opened: Open) -> None:
    with opened() as visit:
        (visit.served.task / "history.jsonl").write_text("{broken\n{broken\n")
        assert "policies: PolicyError" in shown(visit)
        (visit.served.task / "settings.json").write_text("{")
        visit.served.gateway._looks.forget("desk")
        assert "Not readable just now" in shown(visit, "/")
        file = visit.served.task / "traces.sqlite"
        with sqlite3.connect(file) as connection:
            connection.execute("DROP TABLE tracer_traffic")
        connection.close()
        visit.served.gateway._looks.forget("desk")
        assert "trace store: StoreError" in shown(visit)


def test_damaged_rows_stop_neither_the_page_nor_the_writing(opened: Open) -> None:
    with opened(tend_s=0.2, now=time.time) as visit:
        file = visit.served.task / "traces.sqlite"
        connection = sqlite3.connect(file)
        damage = ('{"handled": ', time.time() - 60)
        connection.execute("UPDATE tracer_traffic SET facts = ?, started = ?", damage)
        connection.commit()
        connection.close()
        until = time.monotonic() + 20.0
        while "Not readable just now" not in shown(visit) and time.monotonic() < until:
            time.sleep(0.2)  # what was read before may be shown for some seconds
        assert "Not readable just now" in shown(visit)
        visit.served.post(asked("where is my parcel"))
        until = time.monotonic() + 20.0
        with TraceStore.open(visit.served.task) as store, store.recent() as recent:
            task = recent._task
        n = 0
        while not n and time.monotonic() < until:
            time.sleep(0.1)
            connection = sqlite3.connect(file)
            query = "SELECT count(*) FROM tracer_traffic WHERE task = ? AND json_valid(facts)"
            n = connection.execute(query, (task,)).fetchone()[0]
            connection.close()
        assert n == 1


def test_an_empty_gateway_says_what_to_do(opened: Open) -> None:
    with opened(empty=True, task="mode: observe") as visit:
        page = shown(visit)
        assert "No policy yet." in page
        assert "No calls in this time." in page
        for i in range(3):
            visit.served.post(asked(f"hello {i}"))
        assert "no policy" in shown(visit, "/")


def report(visit: Visit, accept: str, token: str = TOKEN, task: str = "desk") -> httpx2.Response:
    headers = {"authorization": f"Bearer {token}", "accept": accept}
    return httpx2.get(f"{visit.served.url}/admin/report/{task}", headers=headers, timeout=60.0)


def test_the_report_of_the_policy_in_force(opened: Open) -> None:
    with opened() as visit:
        assert report(visit, "text/html", "wrong").status_code == 401
        page = report(visit, "text/html,application/xhtml+xml,*/*;q=0.8")
        policy = page.headers["content-security-policy"]
        assert "sandbox allow-scripts" in policy
        assert "unsafe" not in policy
        hashes = re.findall(r"'(sha256-[^']+)'", page.text.partition("<body")[0])
        assert hashes
        assert all(known in policy for known in hashes)
        facts = report(visit, "application/json").json()
        assert (facts["made"]["version"], facts["verdict"]) == ("v0001", "certified")
        assert facts["money"]["call_usd"] is not None
        assert json.dumps(facts["headline"])[1:40] in json.dumps(page.text)
        visit.login()
        assert visit.get("/tasks/desk/report").text == page.text
        PolicyRegistry(visit.served.task).activate(None)
        visit.served.gateway._looks.forget("desk")
        assert visit.get("/tasks/desk/report").status_code == 409
        assert report(visit, "application/json").status_code == 400
        assert (
            httpx2.get(
                visit.served.url + "/admin/report/none", headers={"authorization": f"Bearer {TOKEN}"}
            ).status_code
            == 404
        )


def test_what_discovery_found_is_proposed(opened: Open, tmp_path: Path) -> None:
    with opened(ADMIN, empty=True) as visit:
        for i in range(60):
            body = asked(f"message number {i}") | {"model": "gpt-4o-mini", "response_format": FORM}
            visit.served.post(body)
        until = time.monotonic() + 10.0
        while "Found in your traffic" not in shown(visit, "/") and time.monotonic() < until:
            time.sleep(0.1)
        page = shown(visit, "/")
        assert "Found in your traffic" in page
        assert "returns" not in page, "labels are what callers wrote"
        visit.login()
        assert "returns" in shown(visit, "/")
