"""The page in a real browser: what a reader clicks works, and nothing is fetched."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tracer.reporting import html
from tracer.reporting.context import Facts

pytestmark = pytest.mark.browser

PHONE = {"width": 390, "height": 844}
CONTRASTS = """() => {
  const channel = (v) => { v /= 255; return v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4; };
  const light = (rgb) => 0.2126 * channel(rgb[0]) + 0.7152 * channel(rgb[1]) + 0.0722 * channel(rgb[2]);
  const parts = (css) => css.match(/[\\d.]+/g).map(Number);
  const ground = (node) => {
    for (; node; node = node.parentElement) {
      const rgb = parts(getComputedStyle(node).backgroundColor);
      if (rgb.length < 4 || rgb[3] === 1) return rgb;
    }
    return [255, 255, 255];
  };
  const out = [];
  const read = "p, li, td, th, dt, dd, h1, h2, h3, a, summary, footer, button, .name, .verdict, .small";
  for (const node of document.querySelectorAll(read)) {
    if (!node.textContent.trim() || !node.getClientRects().length) continue;
    const [a, b] = [light(parts(getComputedStyle(node).color)), light(ground(node))];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < 4.5) out.push(node.tagName + "." + node.className + " " + ratio.toFixed(2));
  }
  return out;
}"""


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    from playwright import sync_api  # these tests run on request alone: whoever asks for them must have a browser

    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    assert path is not None, "no Chromium on the path: install Debian's package chromium"
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


class Visit:
    """A page open in the browser, and all that it complained about or asked the network for."""

    def __init__(self, browser: Any, file: Path, **context: Any) -> None:
        self.trouble: list[str] = []
        self.context = browser.new_context(**context)
        self.page = self.context.new_page()
        self.page.on("console", lambda message: self.trouble.append(f"console: {message.text}"))
        self.page.on("pageerror", lambda error: self.trouble.append(f"error: {error}"))
        self.page.on("dialog", self._spoke)
        self.page.on("request", self._asked)
        self.address = file.as_uri()
        self.page.goto(self.address)

    def _spoke(self, dialog: Any) -> None:
        self.trouble.append(f"dialog: {dialog.message}")
        dialog.dismiss()

    def _asked(self, request: Any) -> None:
        if request.url.partition("#")[0] != self.address and not request.url.startswith("data:"):
            self.trouble.append(f"request: {request.url}")

    def __enter__(self) -> Visit:
        return self

    def __exit__(self, *_: object) -> None:
        self.context.close()
        assert self.trouble == []


@pytest.fixture(params=["success", "refusal", "hostile"])
def file(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    facts: Facts = request.getfixturevalue(request.param)
    path = tmp_path / f"{request.param}.html"
    path.write_text(html.page(facts), encoding="utf-8")
    return path


@pytest.fixture
def report(success: Facts, tmp_path: Path) -> Path:
    path = tmp_path / "report.html"
    path.write_text(html.page(success), encoding="utf-8")
    return path


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [{"width": 1280, "height": 900}, PHONE], ids=["desk", "phone"])
def test_a_page_opens_fits_and_can_be_read(chromium: Any, file: Path, scheme: str, size: dict[str, int]) -> None:
    with Visit(chromium, file, color_scheme=scheme, viewport=size) as visit:
        assert visit.page.title().startswith("Tracer report")
        assert visit.page.evaluate("document.documentElement.scrollWidth") <= size["width"]
        assert visit.page.evaluate(CONTRASTS) == []
        for summary in visit.page.locator("summary").all():
            summary.click()
        assert visit.page.evaluate("document.documentElement.scrollWidth") <= size["width"]


def test_the_table_sorts_by_mouse_and_keyboard_and_says_so(chromium: Any, report: Path, success: Facts) -> None:
    with Visit(chromium, report) as visit:
        page = visit.page
        first = page.locator("#label-table tbody tr").first.locator("th")
        heads = page.locator("#label-table thead th")
        assert heads.nth(1).get_attribute("aria-sort") == "descending"
        heads.nth(0).locator("button").click()
        assert heads.nth(0).get_attribute("aria-sort") == "ascending"
        assert first.inner_text() == min(row["label"] for row in success["classes"])
        heads.nth(4).locator("button").focus()
        page.keyboard.press("Enter")
        assert heads.nth(4).get_attribute("aria-sort") == "descending"
        assert heads.nth(0).get_attribute("aria-sort") == "none"
        worst = max(row["n_disagreed"] for row in success["classes"])
        assert page.locator("#label-table tbody tr").first.locator("td").nth(3).inner_text() == str(worst)
        page.keyboard.press("Enter")
        assert heads.nth(4).get_attribute("aria-sort") == "ascending"


def test_a_label_is_found_as_one_types(chromium: Any, report: Path, success: Facts) -> None:
    wanted = success["classes"][2]["label"]
    with Visit(chromium, report) as visit:
        visit.page.get_by_label("Find a label").press_sequentially(wanted.upper())
        rows = visit.page.locator("#label-table tbody tr:visible")
        assert [row.locator("th").inner_text() for row in rows.all()] == [wanted]
        assert visit.page.locator("#found").inner_text() == f"1 of {len(success['classes'])} labels"
        visit.page.get_by_label("Find a label").fill("")
        assert visit.page.locator("#label-table tbody tr:visible").count() == len(success["classes"])


def test_the_map_changes_colour_and_tells_what_a_point_is(chromium: Any, report: Path, success: Facts) -> None:
    colour = "node => getComputedStyle(node).getPropertyValue('--c')"
    with Visit(chromium, report) as visit:
        page = visit.page
        dots = page.locator("#map-chart circle.a")
        assert len({dot.evaluate(colour) for dot in dots.all()}) == 1
        page.get_by_label("label", exact=True).check()
        assert len({dot.evaluate(colour) for dot in dots.all()}) > 3
        page.locator("#map-figure").focus()
        page.keyboard.press("ArrowRight")
        told = page.locator("#map-detail").inner_text()
        assert "teacher" in told
        page.keyboard.press("ArrowLeft")
        assert page.locator("#map-detail").inner_text() != told
        dots.first.hover(force=True)
        texts = {point["text"] for point in success["map"]["points"]}
        assert page.locator("#map-detail bdi").first.inner_text() in texts
        page.get_by_label("Show").select_option(label=success["map"]["labels"][0])
        shown = page.locator("#map-chart :is(circle, path):not(.off)").count()
        assert shown == sum(p["label"] == success["map"]["labels"][0] for p in success["map"]["points"])


def test_light_and_dark_can_be_chosen_against_the_system(chromium: Any, report: Path) -> None:
    ground = "getComputedStyle(document.body).backgroundColor"
    with Visit(chromium, report, color_scheme="light") as visit:
        button, before = visit.page.locator("#theme"), visit.page.evaluate(ground)
        assert button.get_attribute("aria-pressed") == "false"
        button.click()
        assert button.get_attribute("aria-pressed") == "true"
        assert visit.page.evaluate(ground) != before
        assert visit.page.evaluate(CONTRASTS) == []
        button.click()
        assert visit.page.evaluate(ground) == before


def test_without_scripts_the_page_is_whole(chromium: Any, report: Path, success: Facts) -> None:
    with Visit(chromium, report, java_script_enabled=False) as visit:
        assert visit.page.locator("#label-table tbody tr:visible").count() == len(success["classes"])
        assert visit.page.locator("#map-chart circle:visible").count() > 0
        assert visit.page.locator(".tools:visible, #theme:visible").count() == 0


def test_it_prints_whole_on_white(chromium: Any, report: Path) -> None:
    with Visit(chromium, report, color_scheme="dark") as visit:
        assert len(visit.page.pdf()) > 20_000
        visit.page.emulate_media(media="print")
        assert visit.page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
        assert visit.page.locator(".top:visible, .tools:visible").count() == 0
        height = visit.page.locator(".tall").evaluate("node => node.scrollHeight - node.clientHeight")
        assert height <= 1


def test_what_was_smuggled_in_would_not_run(chromium: Any, tmp_path: Path, success: Facts) -> None:
    """The second wall: even markup that escaped the escaping is not run, for its hash is not the page's."""
    page = html.page(success).replace("<h1>", "<script>document.title = 'owned'</script><h1>", 1)
    path = tmp_path / "broken.html"
    path.write_text(page, encoding="utf-8")
    context = chromium.new_context()
    tab = context.new_page()
    tab.goto(path.as_uri())
    assert tab.title().startswith("Tracer report")
    context.close()
