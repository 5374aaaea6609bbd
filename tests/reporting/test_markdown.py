"""Markdown carries the figures of the page, and no markup of strangers."""

from __future__ import annotations

import re

import pytest

from tracer.reporting import html, markdown
from tracer.reporting.context import Facts
from tracer.reporting.words import NOTHING, dec, num, pct, points, short, usd


@pytest.mark.parametrize("kind", ["success", "refusal"])
def test_markdown_and_page_carry_the_same_figures(kind: str, request: pytest.FixtureRequest) -> None:
    facts: Facts = request.getfixturevalue(kind)
    document, page = markdown.document(facts), html.page(facts)
    own = facts["ownership"]
    figures = [num(own["n_agreed"]), *(num(why["n"]) for why in own["reasons"])]
    target = facts["frontier"]["target"] if facts["certificate"] else None
    likely = [row for row in facts["frontier"]["rows"] if row["n_handled"] and row["coverage"] >= 0.05]
    counted = [facts["frontier"]["point"] if row["target"] == target else row for row in likely]
    figures += [f"{num(row['n_agreed'])} of {num(row['n_handled'])} ({pct(row['agreement'])})" for row in counted]
    for row in facts["classes"]:
        figures += [row["label"], pct(row["coverage"]), pct(row["agreement"])]
    figures += [usd(s["saved_year"], 0) for s in facts["money"]["savings"]]
    for figure in figures:
        assert figure in document
        assert figure in page
    for name in set(html.sections(facts)) - {"map"}:
        assert f"## {html.SECTIONS[name][1]}\n" in document


def test_a_text_cannot_leave_its_cell_or_its_line(hostile: Facts) -> None:
    document = markdown.document(hostile)
    tables = [line for line in document.splitlines() if line.startswith("|")]
    bars = {len(re.findall(r"(?<!\\)\|", line)) for line in tables}
    assert bars <= {4, 5, 7}
    assert not re.search(r"(?<!\\)<script", document)
    assert "https://" not in document
    assert "\u2028" not in document
    document.encode()


def test_numbers_read_as_people_read_them() -> None:
    assert [pct(x) for x in (None, 0.5, 0.9996, 1.0)] == [NOTHING, "50.0%", ">99.9%", "100.0%"]
    assert [points(x) for x in (0.123, -0.05, 0.0001)] == ["+12.3 points", "\N{MINUS SIGN}5.0 points", "±0.0 points"]
    assert (num(1234), dec(0.123456), usd(None), usd("1234.5", 0)) == ("1,234", "0.1235", "unknown", "$1,234")
    assert short("abcdef", 4) == "abc…"
