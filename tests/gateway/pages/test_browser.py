"""The live page in a real browser: it fits a phone, can be read in light and dark, and its forms work."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.gateway.pages.conftest import ADMIN, TOKEN, Open
from tests.gateway.serving import asked
from tests.reporting.test_browser import CONTRASTS
from tracer.policies.registry import PolicyRegistry
from tracer.traces.store import TraceStore
from tracer.types import Seen, Trace

pytestmark = pytest.mark.browser

PHONE = {"width": 360, "height": 740}
DESK = {"width": 1280, "height": 900}
WIDE = "w" * 300
"""A word that no line holds."""


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    from playwright import sync_api  # these tests run on request alone: whoever asks for them must have a browser

    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    assert path is not None, "no Chromium on the path: install Debian's package chromium"
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@contextmanager
def tab(browser: Any, url: str, **context: Any) -> Iterator[Any]:
    """A page in the browser that must not complain and asks this gateway alone."""
    trouble: list[str] = []
    opened = browser.new_context(base_url=url, **context)
    page = opened.new_page()
    page.on("console", lambda message: trouble.append(f"console: {message.text}"))
    page.on("pageerror", lambda error: trouble.append(f"error: {error}"))
    page.on("dialog", lambda dialog: trouble.append(f"dialog: {dialog.message}"))
    page.on("request", lambda asked_: None if asked_.url.startswith(url) else trouble.append(f"request: {asked_.url}"))
    try:
        yield page
    finally:
        opened.close()
    assert trouble == []


def login(page: Any) -> None:
    page.goto("/login")
    page.get_by_label("Admin token").fill(TOKEN)
    page.get_by_role("button", name="Log in").click()
    page.get_by_text("You are logged in as the admin.").wait_for()  # the address is tidied at once


def overflow(page: Any) -> int:
    """Pixels by which the page is wider than the screen."""
    return int(page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth"))


def unfold(page: Any) -> None:
    page.evaluate("document.querySelectorAll('details').forEach(node => { node.open = true })")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [DESK, PHONE], ids=["desk", "phone"])
def test_pages_fit_and_can_be_read(chromium: Any, opened: Open, scheme: str, size: dict[str, int]) -> None:
    with opened() as visit:
        hostile = "<script>alert(1)</script>" + WIDE
        visit.served.gateway.serving.lines["desk"].store.append(
            [Trace("e" * 32, hostile, WIDE, origin="audit", seen=Seen("v0001", hostile, True, 0.9))]
        )
        PolicyRegistry(visit.served.task).record("note", note=WIDE, version="v0001")
        with tab(chromium, visit.served.url, viewport=size, color_scheme=scheme) as page:
            for path in ("/", "/tasks/desk", "/login"):
                page.goto(path)
                assert overflow(page) <= 0
                assert page.evaluate(CONTRASTS) == []
            login(page)
            for path in ("/", "/tasks/desk", "/tasks/desk?range=24h", "/tasks/none"):
                if path != "/tasks/none":
                    page.goto(path)
                unfold(page)
                assert overflow(page) <= 0
                assert page.evaluate(CONTRASTS) == []
                for button in page.locator("button:visible, a.button:visible").all():
                    box = button.bounding_box()
                    assert box["height"] >= 32, "a thumb must find it"
            assert page.locator("svg[role=img]").count() >= 3
            for chart in page.locator("svg[role=img]").all():
                named = chart.get_attribute("aria-labelledby").split()
                assert all(page.locator(f"[id='{name}']").text_content() for name in named)


def test_promote_and_roll_back_by_hand(chromium: Any, opened: Open) -> None:
    with opened() as visit:
        registry = PolicyRegistry(visit.served.task)
        second = registry.save(registry.load("v0001")).version
        with tab(chromium, visit.served.url, viewport=PHONE) as page:
            login(page)
            page.get_by_role("link", name="desk").click()
            page.get_by_text("Promote…").click()
            page.get_by_label("Note").first.fill("tried by hand")
            page.get_by_role("button", name=f"Put {second} in force").click()
            assert page.get_by_role("status").inner_text() == "The version is in force."
            assert registry.active_version() == second
            assert registry.history()[-1].note == "tried by hand"
            page.get_by_text("Roll back…").click()
            page.get_by_role("button", name="Roll back").click()
            assert page.locator(".versions .active b").inner_text() == "v0001"
            assert registry.active_version() == "v0001"
            page.get_by_text("Pause…").click()
            page.get_by_role("button", name="Pause this task").click()
            assert page.locator(".pills").first.inner_text().endswith("no policy")
            assert registry.active_version() is None
            page.get_by_role("link", name="All tasks").click()
            page.get_by_text("Send everything to the teachers…").click()
            page.get_by_role("button", name="Switch off now").click()
            assert "Switched off" in page.locator("h1").inner_text()
            page.get_by_role("button", name="Switch on again").click()
            assert "Switched off" not in page.locator("h1").inner_text()
            page.get_by_role("button", name="Log out").click()
            assert page.get_by_role("link", name="Admin login").is_visible()


def test_the_page_takes_up_what_happens(chromium: Any, opened: Open) -> None:
    from playwright.sync_api import expect

    with opened() as visit, tab(chromium, visit.served.url, viewport=DESK) as page:
        page.clock.install()
        page.goto("/")
        traces = page.locator(".facts dd").nth(3)
        before = traces.inner_text()
        visit.served.gateway.serving.lines["desk"].store.append([Trace("f" * 32, "one more", "x")])
        page.clock.run_for(4_000)
        page.wait_for_timeout(3_100)
        page.clock.run_for(11_000)
        expect(traces).not_to_have_text(before)
        assert int(traces.inner_text().replace(",", "")) == int(before.replace(",", "")) + 1


def test_without_scripts_all_of_it_works(chromium: Any, opened: Open) -> None:
    with opened() as visit, tab(chromium, visit.served.url, java_script_enabled=False) as page:
        login(page)
        page.goto("/tasks/desk")
        page.get_by_role("link", name="30d").click()
        assert page.locator(".ranges [aria-current]").inner_text() == "30d"
        page.get_by_text("Pause…").click()
        page.get_by_role("button", name="Pause this task").click()
        assert PolicyRegistry(visit.served.task).active_version() is None


def test_the_report_opens_in_its_sandbox(chromium: Any, opened: Open) -> None:
    from playwright.sync_api import expect

    with opened() as visit, tab(chromium, visit.served.url, viewport=DESK) as page:
        login(page)
        page.goto("/tasks/desk")
        page.get_by_role("link", name="Open the report of v0001").click()
        expect(page).to_have_title(re.compile("^Tracer report"), timeout=60_000)
        assert page.evaluate("self.origin") == "null", "it reaches neither cookies nor the gateway"
        page.get_by_label("label", exact=True).check()


def test_a_new_gateway_is_no_empty_page(chromium: Any, opened: Open) -> None:
    with opened(ADMIN, "mode: observe", empty=True) as visit:
        for i in range(5):
            visit.served.post(asked(f"message {i}"))
        with tab(chromium, visit.served.url, viewport=PHONE) as page:
            page.goto("/tasks/desk")
            assert "No policy yet." in page.locator("main").inner_text()
            assert overflow(page) <= 0


def test_homes_of_tests_are_left_alone(lived: tuple[Path, int]) -> None:
    with TraceStore.open(lived[0]) as store:
        assert all(trace.id not in ("e" * 32, "f" * 32) for _, trace in store.traces())
