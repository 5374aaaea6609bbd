"""The facts as one page: no network, everything escaped, allowed to run only what it was written with."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from functools import cache
from importlib import resources
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from tracer.reporting import charts, words

SECTIONS = {
    "disagreements": ("Disagreements", "Where surrogate and teacher disagree"),
    "frontier": ("Frontier", "How much at which agreement"),
    "classes": ("Labels", "Label by label"),
    "deltas": ("Changes", "What changed since the last refit"),
    "map": ("Map", "Map of traces"),
    "pairs": ("Boundary", "Boundary pairs"),
    "cards": ("Cards", "Typical inputs"),
    "slices": ("Slices", "Slices that stand out"),
    "quality": ("Teacher", "The teacher's labels"),
    "money": ("Cost", "Cost"),
    "made": ("Made", "How it was made"),
}
"""Sections in the order of a refusal: what went wrong comes first. Name in the menu, and title."""


def page(facts: Mapping[str, Any]) -> str:
    """The report as one HTML document."""
    # Hashes rather than 'unsafe-inline': what a trace might smuggle in would not run even if it were not escaped.
    style, script = _own("style.css"), _own("page.js")
    names = sections(facts)
    template = _environment().get_template("page.html.j2")
    return template.render(
        facts=facts,
        contents=[(name, SECTIONS[name][0]) for name in names],
        titles={name: SECTIONS[name][1] for name in names},
        frontier_chart=charts.frontier_chart(facts) if facts["frontier"] else "",
        map_chart=charts.map_chart(facts) if facts["map"] else "",
        map_data=charts.map_data(facts) if facts["map"] else None,
        style=Markup(style),  # noqa: S704 - our own files
        script=Markup(script),  # noqa: S704
        style_hash=_hash(style),
        script_hash=_hash(script),
    )


def sections(facts: Mapping[str, Any]) -> list[str]:
    """Names of the sections that these facts fill, in their order."""
    order = list(SECTIONS)
    if facts["verdict"] != "refused":
        order.remove("disagreements")
        order.insert(order.index("quality"), "disagreements")
    artefacts = facts["artefacts"] or {}
    there = {name: bool(facts.get(name)) for name in ("frontier", "classes", "map", "quality")}
    there |= {name: bool(artefacts.get(name)) for name in ("disagreements", "deltas", "slices", "pairs", "cards")}
    there |= {"money": bool(facts["frontier"]), "made": True}
    return [name for name in order if there[name]]


def content_policy() -> str:
    """A content security policy for a server that hands out the page: its own script and style, and nothing else."""
    style, script = (_hash(_own(name)) for name in ("style.css", "page.js"))
    return (
        f"default-src 'none'; style-src '{style}'; script-src '{script}'; img-src data:; base-uri 'none'; "
        "form-action 'none'; frame-ancestors 'none'; sandbox allow-scripts"
    )


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("tracer.reporting"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= words.FILTERS
    environment.policies["json.dumps_kwargs"] = {"ensure_ascii": False, "separators": (",", ":")}
    return environment


@cache
def _own(name: str) -> str:
    return (resources.files("tracer.reporting") / "templates" / name).read_text(encoding="utf-8")


def _hash(content: str) -> str:
    """The source expression of a content security policy that allows just this content."""
    return "sha256-" + base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
