"""The page: one file, no network, everything escaped, well formed, small."""

from __future__ import annotations

import base64
import hashlib
import re
from collections import Counter
from dataclasses import dataclass, field, replace
from html.parser import HTMLParser

import pytest

from tests.reporting.conftest import HOSTILE, report_of, table_of_texts
from tracer import pipeline
from tracer.config import FitConfig
from tracer.explanations import artefacts
from tracer.pipeline import Certified
from tracer.policies.policy import Policy
from tracer.reporting import html, markdown
from tracer.reporting.context import Facts, facts
from tracer.reporting.gathering import gather
from tracer.types import Dataset

VOID = {"meta", "link", "br", "input", "img", "hr"}
LOADS = {"src", "srcset", "href", "xlink:href", "action", "formaction", "data", "poster", "background", "ping"}


@dataclass
class Page(HTMLParser):
    """What a page holds: elements in order, attributes, text, and whether each element was closed in its turn."""

    source: str
    tags: list[str] = field(default_factory=list)
    attributes: list[tuple[str, str, str]] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    open: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        HTMLParser.__init__(self)
        self.feed(self.source)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> at {self.getpos()}"

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


@pytest.fixture(params=["success", "refusal", "hostile"])
def found(request: pytest.FixtureRequest) -> Facts:
    return dict(request.getfixturevalue(request.param))


def test_a_page_is_well_formed_and_its_ids_are_its_own(found: Facts) -> None:
    page = Page(html.page(found))
    ids = Counter(value for _, name, value in page.attributes if name == "id")
    assert max(ids.values()) == 1
    links = {value[1:] for _, name, value in page.attributes if name == "href" and value.startswith("#")}
    named = {
        w
        for _, name, value in page.attributes
        if name in {"aria-labelledby", "aria-describedby", "for"}
        for w in value.split()
    }
    assert links | named <= set(ids)
    assert page.tags.count("h1") == page.tags.count("main") == 1


def test_a_page_loads_nothing_and_allows_only_its_own_script_and_style(found: Facts) -> None:
    source = html.page(found)
    page = Page(source)
    assert {value for _, name, value in page.attributes if name in LOADS and not value.startswith("#")} == {"data:,"}
    assert not any(name.startswith("on") or name == "style" for _, name, _ in page.attributes)
    assert not {"img", "iframe", "object", "embed", "base", "form", "audio", "video", "foreignobject"} & set(page.tags)
    policy = next(value for tag, name, value in page.attributes if tag == "meta" and "default-src" in value)
    scripts = re.findall(r"<script>(.*?)</script>", source, re.DOTALL)
    styles = re.findall(r"<style>(.*?)</style>", source, re.DOTALL)
    assert len(scripts) == len(styles) == 1
    for content, kind in ((scripts[0], "script-src"), (styles[0], "style-src")):
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{kind} 'sha256-{digest}'" in policy
        assert "http" not in content
        assert "@import" not in content
        assert "url(" not in content
    assert policy.startswith("default-src 'none';")
    assert "unsafe" not in policy


def test_texts_of_an_enemy_stay_texts(hostile: Facts) -> None:
    source = html.page(hostile)
    page = Page(source)
    calm = Page(html.page({**hostile, "artefacts": None, "map": None, "classes": []}))
    assert set(page.tags) - set(calm.tags) <= {
        "article", "blockquote", "b", "bdi", "mark", "details", "summary", "fieldset", "legend", "label", "input",
        "select", "option", "path", "circle", "table", "caption", "ul", "li", "div", "h3",
    }  # fmt: skip
    assert page.tags.count("script") == 2
    shown = " ".join(page.texts)
    assert "<script>alert(1)</script>" in shown
    assert "</style><img src=x onerror=alert(3)>" in shown
    assert "{{ 7 * 7 }} {% raw %} ${7*7}" in shown
    assert "\u202eright to left" in shown
    assert "characters]" in shown  # the text of 100,000 is cut
    assert "a" * 5_000 not in source
    assert "\x00" not in source
    source.encode()


def test_each_text_is_isolated(hostile: Facts) -> None:
    """A mark that turns the writing direction must not turn what stands beside it."""
    source = html.page(hostile)
    inside = re.findall(r"<bdi[^>]*>[^<]*\u202e[^<]*</bdi>", source)
    markup = re.sub(
        r'<script type="application/json".*?</script>|title="[^"]*"|<option.*?</option>', "", source, flags=re.DOTALL
    )
    assert len(inside) > 5
    assert markup.count("\u202e") == len(inside)


def test_data_of_the_map_survives_and_cannot_end_its_element(hostile: Facts) -> None:
    source = html.page(hostile)
    data = re.search(r'<script type="application/json" id="map-data">(.*?)</script>', source, re.DOTALL)
    assert data is not None
    assert "<" not in data[1]
    assert len(hostile["map"]["points"]) == 8 * len(HOSTILE)


@pytest.mark.parametrize("text", ["a message to the support, in plain words ", "<&>'", "\N{FACE WITH TEARS OF JOY}"])
@pytest.mark.parametrize("n_labels", [150, 10_000])
def test_a_page_of_ten_thousand_rows_stays_below_two_megabytes(tiny_policy: Policy, text: str, n_labels: int) -> None:
    texts = [f"{i} {text * 100}" for i in range(10_000)]
    labels = [f"{i % n_labels} {text if n_labels == 150 else text * 60}" for i in range(10_000)]
    table = table_of_texts(texts, labels)
    content = html.page(facts(tiny_policy, report_of(table), table=table, artefacts=artefacts.build(table))).encode()
    assert len(content) < 2_000_000


def test_a_refusal_leads_with_what_went_wrong(refusal: Facts, success: Facts) -> None:
    assert html.sections(refusal)[0] == "disagreements"
    assert html.sections(success)[:3] == ["frontier", "classes", "deltas"]
    page = html.page(refusal)
    assert page.index("What would clear the gate") < page.index('id="disagreements"') < page.index('id="frontier"')


def test_facts_without_a_table_still_make_a_page(success: Facts, tiny_policy: Policy) -> None:
    bare = facts(tiny_policy, {"config": {}}, missing="the traces went away")
    assert bare["ownership"] is None
    page = html.page(bare)
    assert "the traces went away" in page
    assert html.sections(bare) == ["frontier", "money", "made"]


def test_a_policy_trained_on_all_traces_says_that_none_is_left_to_judge_by(small_texts: Dataset) -> None:
    config = FitConfig(targets=(0.7,), guarantee="estimated", features="lexical")
    verdict = pipeline.fit(small_texts, config)
    assert isinstance(verdict, Certified)
    found = gather(verdict.policy, verdict.report.as_dict(), small_texts, config)
    assert found["verdict"] == "estimated"
    assert "none is left to judge by" in html.page(found)
    assert html.sections(found) == ["frontier", "classes", "money", "made"]
    assert "an estimate, not a guarantee" in markdown.document(found)


def test_embeddings_alone_have_a_report(small: Dataset) -> None:
    bare = replace(small, texts=None)
    config = FitConfig(targets=(0.7,))
    verdict = pipeline.fit(bare, config)
    assert isinstance(verdict, Certified)
    page = Page(html.page(gather(verdict.policy, verdict.report.as_dict(), bare, config)))
    assert f"trace {bare.ids[0][:5]}" in " ".join(page.texts)


def test_the_charts_say_in_words_what_they_show(success: Facts) -> None:
    page = html.page(success)
    described = re.search(r'<desc id="frontier-desc">([^<]*)</desc>', page)
    assert described is not None
    assert f"{success['certificate']['n_agreed']:,} of {success['certificate']['n_handled']:,}" in described[1]
