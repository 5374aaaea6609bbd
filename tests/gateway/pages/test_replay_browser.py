"""The whole story on the page, in a real browser: an empty store, a first policy, its answers, a drift, a demotion."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.conftest import LEXICAL
from tests.gateway.pages.conftest import ADMIN, TOKEN
from tests.gateway.pages.test_browser import DESK, PHONE, chromium, login, overflow, tab  # noqa: F401 - a fixture
from tests.gateway.serving import Served, asked, serve, settings
from tests.gateway.standin import Standin
from tests.gateway.test_app_operating import until
from tracer import flywheel
from tracer.flywheel.watching import look, watch
from tracer.pipeline import Certified
from tracer.policies.registry import PolicyRegistry
from tracer.policies.serving_settings import ServingSettings
from tracer.types import Dataset

pytestmark = pytest.mark.browser

TARGET = LEXICAL.target
OBSERVED, SHADOWED, LIVE, DRIFTED = 600, 40, 400, 400
AUDIT_RATE = 0.2


@dataclass(slots=True)
class Counts:
    """What the clients saw, by decision, since the policy came."""

    decisions: dict[str, int] = field(default_factory=dict)

    def ask(self, served: Served, texts: Sequence[str]) -> None:
        for text in texts:
            reply = served.post(asked(text))
            assert reply.status_code == 200
            decision = reply.headers["x-tracer-decision"]
            self.decisions[decision] = self.decisions.get(decision, 0) + 1
        served.traces()  # those that wait are written


@pytest.fixture
def turns(messages: Dataset) -> Iterator[str]:
    assert messages.texts is not None
    return iter(messages.texts)


def some(turns: Iterator[str], n: int) -> list[str]:
    return [next(turns) for _ in range(n)]


def shown(page: Any, served: Served, path: str = "/tasks/desk?range=7d") -> str:
    """The words of a page as it is now, not three seconds ago."""
    served.gateway._looks.forget("desk")  # type: ignore[union-attr]
    page.goto(path)
    assert overflow(page) <= 0
    return str(page.locator("main").inner_text())


def tile(page: Any, name: str) -> str:
    """What a tile says, with the small print below it."""
    return str(page.locator(".tile", has=page.locator("dt", has_text=re.compile(f"^{name}$"))).inner_text())


def sums(page: Any, name: str) -> int:
    """A count of the panel *In this time*."""
    row = page.locator(".sums div", has=page.locator("dt", has_text=re.compile(f"^{name}$")))
    return int(row.locator("dd").evaluate("cell => cell.firstChild.textContent").replace(",", ""))


def switch(served: Served, config: list[str], mode: str) -> None:
    config[0] = config[0].replace("mode: observe", f"mode: {mode}")
    reply = httpx2.post(f"{served.url}/admin/reload", headers={"authorization": f"Bearer {TOKEN}"})
    assert reply.status_code == 200


def test_from_an_empty_store_to_a_demotion(
    chromium: Any, messages: Dataset, turns: Iterator[str], tmp_path: Path  # noqa: F811
) -> None:  # fmt: skip
    assert messages.texts is not None
    labels = dict(zip(messages.texts, messages.labels, strict=True))
    names = sorted(set(labels.values()))
    drifted = {text: names[names.index(label) - 1] for text, label in labels.items()}
    task = f"mode: observe\nteacher: gpt-4o-mini\naudit_rate: {AUDIT_RATE}"
    counts = Counts()
    with Standin(labels) as api:
        config = [settings(api.url, tmp_path, task, ADMIN)]
        with (
            serve(config[0], tmp_path, reader=lambda: config[0], rng=random.Random(0)) as served,
            tab(chromium, served.url, viewport=DESK) as page,
        ):
            home = served.task
            login(page)
            Counts().ask(served, some(turns, OBSERVED))
            assert "No policy yet." in shown(page, served)
            assert tile(page, "Traces").split("\n")[1] == str(OBSERVED)
            assert tile(page, "Coverage").endswith("no policy is in force")
            assert "Found in your traffic" not in shown(page, served, "/"), "the task is declared"

            verdict = flywheel.fit(home=home, config=LEXICAL)
            assert isinstance(verdict, Certified)
            switch(served, config, "shadow")
            counts.ask(served, some(turns, SHADOWED))
            assert set(counts.decisions) <= {"deferred", "audit"}, "the teacher answers in shadow"
            assert "would be handled" in shown(page, served)
            assert sums(page, "Answered here") == 0

            ServingSettings("live", 1.0, AUDIT_RATE).write(home)
            assert until(lambda: served.gateway.serving.lines["desk"].router.settings.mode == "live")
            counts.ask(served, some(turns, LIVE))
            alive(page, served, counts, verdict)

            api.relabel(drifted)
            while look(home).status != "alarm":
                counts.ask(served, some(turns, 20))
            assert "Alarm: audits say that the policy breaks its promise." in shown(page, served)
            assert "alarm" in shown(page, served, "/").lower()
            told = look(home).monitor
            assert told is not None
            version = PolicyRegistry(home).active_version()
            _, notices = watch(home)
            assert [notice.kind for notice in notices] == ["alarm"]
            assert until(lambda: served.post(asked("where is it?")).headers["x-tracer-reason"] == "no_policy")
            demoted(page, served, version, f"{told.n_agreed} of {told.n_handled} audits")
            page.set_viewport_size(PHONE)
            demoted(page, served, version, f"{told.n_agreed} of {told.n_handled} audits")


def alive(page: Any, served: Served, counts: Counts, verdict: Certified) -> None:
    """The page of a policy that answers says what the clients saw."""
    words = shown(page, served)
    handled = counts.decisions["handled"]
    assert sums(page, "Answered here") == handled > LIVE // 4
    assert sums(page, "Audits") == counts.decisions["audit"]
    n_decided = sum(counts.decisions.values())
    share = re.search(r"Coverage\n([\d.]+)%", tile(page, "Coverage"))
    assert share is not None
    assert float(share[1]) == pytest.approx(100.0 * sums(page, "Handled") / n_decided, abs=0.06)
    monitor = look(served.task).monitor
    assert monitor is not None
    assert monitor.agreement is not None
    low, high = monitor.interval
    assert low < TARGET < high or low > TARGET
    band = tile(page, "Live agreement")
    assert f"{100 * monitor.agreement:.1f}%" in band
    assert f"{100 * low:.1f}% to" in band
    assert f"target {100 * TARGET:.1f}%" in band
    chart = page.locator("figure", has_text="Live agreement").locator("svg[role=img]")
    assert f"target {100 * TARGET:.0f}%" in chart.text_content()
    assert f"{monitor.n_handled} handled audits of v0001" in words
    saved = page.locator(".legend .saved").inner_text()
    assert re.fullmatch(r"saved: \$0\.\d+", saved)
    assert float(saved.rpartition("$")[2]) > 0.0
    assert "would be handled" not in words
    certificate = verdict.certificate
    assert f"{certificate.n_agreed} of {certificate.n_handled} handled agreed" in words
    assert not page.locator(".notice.bad").count()


def demoted(page: Any, served: Served, version: str | None, audits: str) -> None:
    """The page says what happened, where it is looked for first and in the history, and what holds now."""
    words = shown(page, served)
    assert page.locator(".history li").first.inner_text().split("\n")[1].startswith("Demoted by an alarm")
    assert f"{version} → the teacher" in page.locator(".history li").first.inner_text()
    assert page.locator(".notice.bad").first.inner_text().startswith("Demoted:")
    assert audits in page.locator(".notice.bad").first.inner_text()
    assert "The teacher answers everything" in words
    assert "no policy is in force" in tile(page, "Live agreement")
    assert f"handled audits of {version} until it was demoted" in words
    chart = page.locator("figure", has_text="Live agreement").locator("svg[role=img]")
    assert audits.replace("audits", "handled audits agree") in chart.text_content()
    assert page.locator(".versions .active").count() == 0
    assert page.locator(".example.wrong").count() >= 1, "the audits that rang are shown"
    assert "demoted" in shown(page, served, "/")
    assert page.locator(".card.troubled").count() == 1
