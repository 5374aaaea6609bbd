"""Charts as inline SVG. They carry numbers and class names only; colours are the page's, through CSS.

The library escapes nothing: no text from a trace may be drawn here, labels and texts belong to the template.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import svg
from markupsafe import Markup, escape

_WIDTH, _HEIGHT = 720, 392
_LEFT, _RIGHT, _TOP, _BOTTOM = 62, 26, 38, 58
_LIKELY = 0.05
"""Coverage below which a gate refuses more often than not."""
_ESCAPED = "<>&'\"\\\n\t"
_MAP_WIDTH, _MAP_HEIGHT, _MARGIN = 900, 560, 14


class _Plane:
    """Shares in [0, 1] by shares in [``floor``, 1], and where they lie on the paper."""

    def __init__(self, floor: float) -> None:
        self.floor = floor

    def x(self, share: float) -> float:
        return round(_LEFT + share * (_WIDTH - _LEFT - _RIGHT), 1)

    def y(self, share: float) -> float:
        height = (1.0 - max(share, self.floor)) / (1.0 - self.floor)
        return round(_TOP + height * (_HEIGHT - _TOP - _BOTTOM), 1)


def frontier_chart(facts: Mapping[str, Any]) -> Markup:
    """Agreement along coverage with its band, the estimated frontier, the target, and the certificate's point."""
    frontier = facts["frontier"]
    curve, rows, point = frontier["curve"], frontier["rows"], frontier["point"]
    likely = [row for row in rows if row["coverage"] >= _LIKELY]
    lows = [p["low"] for p in curve] + [r["target"] for r in likely] + ([point["low"]] if point else [])
    plane = _Plane(max(0.0, min(0.9, int(min(lows, default=0.5) * 20 - 0.4) / 20)))
    parts: list[svg.Element] = [*_axes(plane)]
    target = frontier["target"]
    parts.append(_line("target", plane.x(0), plane.y(target), plane.x(1), plane.y(target)))
    below = plane.y(target) < _TOP + 24  # where the name would run into the axis above
    words = plane.y(target) + (18 if below else -6)
    # At the end that the certificate's point leaves free; what it covers could not be read.
    left = bool(point) and point["coverage"] > 0.75
    at, anchor = (plane.x(0.12), "start") if left else (plane.x(1) - 6, "end")
    parts.append(_text("target-name", at, words, f"target {target:g}", anchor))
    if curve:
        upper = [(plane.x(p["coverage"]), plane.y(p["high"])) for p in curve]
        lower = [(plane.x(p["coverage"]), plane.y(p["low"])) for p in reversed(curve)]
        middle = [(plane.x(p["coverage"]), plane.y(p["agreement"])) for p in curve]
        parts.append(svg.Polygon(points=_points([*upper, *lower]), class_=["band"]))
        parts.append(svg.Polyline(points=_points(middle), class_=["curve"]))
    parts += [_diamond(plane.x(row["coverage"]), plane.y(row["target"]), f"target {row['target']:g}") for row in likely]
    if point:
        x = plane.x(point["coverage"])
        parts.append(_line("whisker", x, plane.y(point["low"]), x, plane.y(point["high"])))
        parts += [_line("whisker", x - 5, plane.y(v), x + 5, plane.y(v)) for v in (point["low"], point["high"])]
        parts.append(svg.Circle(cx=x, cy=plane.y(point["agreement"]), r=7, class_=["point", facts["verdict"]]))
    described = _described(frontier)
    return _drawing("frontier", "Agreement along coverage", described, _WIDTH, _HEIGHT, parts)


def map_chart(facts: Mapping[str, Any]) -> Markup:
    """The map's points in the order of the facts: filled where handled, rings where deferred, crosses where wrong."""
    atlas = facts["map"]
    codes = {name: code for code, name in enumerate(atlas["labels"])}
    parts: list[svg.Element] = []
    for p in atlas["points"]:
        x, y = _place(p)
        kinds = [p["decision"][0], f"l{codes.get(p['label'], len(codes))}"]
        if p["decision"] == "disagreed":
            parts.append(svg.Path(d=_cross(x, y), class_=["x", kinds[1]]))
        else:
            parts.append(svg.Circle(cx=x, cy=y, r=4, class_=kinds))
    described = f"{atlas['n_shown']:,} traces; similar inputs lie near each other. The table by label has the figures."
    return _drawing("map", "Map of traces", described, _MAP_WIDTH, _MAP_HEIGHT, parts)


def map_data(facts: Mapping[str, Any]) -> dict[str, Any]:
    """What the page's script reads: of each point its place, text, label, the surrogate's, score and decision.

    Labels are codes into ``names``, of which the first are those that the page lists.
    """
    points = facts["map"]["points"]
    names = dict.fromkeys([*facts["map"]["labels"], *(p["label"] for p in points), *(p["predicted"] for p in points)])
    code = {name: i for i, name in enumerate(names)}
    rows = [
        [*_place(p), _affordable(p["text"]), code[p["label"]], code[p["predicted"]], p["score"], p["decision"]]
        for p in points
    ]
    return {"names": [_affordable(name, 80) for name in names], "points": rows}


def _affordable(text: str, most: int = 200) -> str:
    """The beginning of a text that takes few bytes in the page, whatever its characters."""
    spent = 0
    for i, character in enumerate(text):
        spent += 6 if character in _ESCAPED else len(character.encode())
        if spent > most:
            return text[:i] + "\N{HORIZONTAL ELLIPSIS}"
    return text


def _place(point: Mapping[str, Any]) -> tuple[int, int]:
    """Where a point of the map lies on the paper."""
    x = round(_MARGIN + point["x"] * (_MAP_WIDTH - 2 * _MARGIN))
    return x, round(_MARGIN + (1.0 - point["y"]) * (_MAP_HEIGHT - 2 * _MARGIN))


def _axes(plane: _Plane) -> list[svg.Element]:
    parts: list[svg.Element] = []
    for step in range(6):
        share = step / 5
        parts.append(_text("tick", plane.x(share), _HEIGHT - _BOTTOM + 24, f"{share:.0%}", "middle"))
    step_size = 0.05 if plane.floor >= 0.7 else 0.1
    share = 1.0
    while share >= plane.floor - 1e-9:
        parts.append(_line("grid", plane.x(0), plane.y(share), plane.x(1), plane.y(share)))
        parts.append(_text("tick", _LEFT - 8, plane.y(share) + 4, f"{share:.0%}", "end"))
        share -= step_size
    parts.append(_text("axis", plane.x(0.5), _HEIGHT - 8, "share of requests handled", "middle"))
    parts.append(_text("axis", 4, 16, "agreement of what is handled", "start"))
    return parts


def _described(frontier: Mapping[str, Any]) -> str:
    said = [
        f"target {row['target']:g}: about {row['coverage']:.0%} handled"
        for row in frontier["rows"]
        if row["coverage"] >= _LIKELY
    ]
    point = frontier["point"]
    if point:
        said.append(
            f"the gate counted {point['n_agreed']:,} of {point['n_handled']:,} in agreement "
            f"at a coverage of {point['coverage']:.1%}"
        )
    return "; ".join(said) + "."


def _drawing(name: str, title: str, described: str, width: int, height: int, parts: Sequence[svg.Element]) -> Markup:
    head: list[svg.Element] = [
        svg.Title(id=f"{name}-title", text=escape(title)),
        svg.Desc(id=f"{name}-desc", text=escape(described)),
    ]
    drawing = svg.SVG(
        viewBox=svg.ViewBoxSpec(0, 0, width, height),
        class_=["chart"],
        id=f"{name}-chart",
        xmlns=None,
        extra={"role": "img", "aria-labelledby": f"{name}-title {name}-desc"},
        elements=[*head, *parts],
    )
    return Markup(str(drawing))  # noqa: S704 - built from numbers, class names and escaped words


def _text(kind: str, x: float, y: float, words: str, anchor: Any) -> svg.Text:
    return svg.Text(x=x, y=y, text=escape(words), class_=[kind], text_anchor=anchor)


def _line(kind: str, x1: float, y1: float, x2: float, y2: float) -> svg.Line:
    return svg.Line(x1=x1, y1=y1, x2=x2, y2=y2, class_=[kind])


def _diamond(x: float, y: float, words: str) -> svg.Path:
    steps: list[svg.PathData] = [svg.M(x, round(y - 6, 1)), svg.l(6, 6), svg.l(-6, 6), svg.l(-6, -6), svg.Z()]
    return svg.Path(d=steps, class_=["estimate"], elements=[svg.Title(text=escape(words))])


def _cross(x: int, y: int) -> list[svg.PathData]:
    return [svg.M(x - 4, y - 4), svg.l(8, 8), svg.m(0, -8), svg.l(-8, 8)]


def _points(pairs: Sequence[tuple[float, float]]) -> list[svg.Point]:
    return [svg.Point(x, y) for x, y in pairs]
