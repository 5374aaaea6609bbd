"""Figures of docs/benchmarks.md, drawn from the results files by ``benchmarks.tables``.

A figure carries the digest of the figures it shows, so that a test can tell a stale picture without drawing it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks import flywheel_loop
from benchmarks.common import TITLES
from benchmarks.protocol import PUBLISHED

FOLDER = Path(__file__).parent.parent / "docs" / "figures"
COVERAGE = FOLDER / "coverage.svg"
FLYWHEEL = FOLDER / "flywheel.svg"

_HINDSIGHT = "Tracer's own score, hindsight"
_STYLES = {
    "Tracer, certified": ("#0b6e4f", "o", "-", 2.4),
    "Tracer, paper mode": ("#08a045", "s", "--", 1.4),
    "tracer-llm 0.3.3": ("#b23a48", "D", "-", 1.4),
    "confidence threshold, calibrated": ("#2d5d9f", "^", "-", 1.4),
    "semantic cache, calibrated": ("#d98e04", "v", "-", 1.4),
    _HINDSIGHT: ("#666666", "", ":", 1.4),
    "the paper, published": ("#7b4fa3", "P", "-.", 1.4),
}
Series = dict[str, list[tuple[float, float, bool]]]
"""By method: target, coverage, and whether the agreement on the test traces reached the target."""


def coverage_series(result: dict[str, Any]) -> Series:
    """What the coverage figure shows of one data set."""
    keys = [str(t) for t in result["targets"]]
    base = result["baselines"]
    counts = {
        "Tracer, certified": [result["certified"][k][-1]["test"] for k in keys],
        "Tracer, paper mode": [result["paper"][k][-1]["test"] for k in keys],
        "tracer-llm 0.3.3": [result["peer"][k][-1]["test"] for k in keys] if result["peer"] else [],
        "confidence threshold, calibrated": [c["calibrated"] for c in base["confidence"]],
        "semantic cache, calibrated": [c["calibrated"] for c in base["cache"]],
        _HINDSIGHT: [result["certified"][k][-1].get("ceiling") for k in keys],
    }
    out: Series = {}
    for name, cells in counts.items():
        # Refused: nothing is handled. Hindsight has no score to look at where no policy is in force.
        out[name] = [
            _point(target, c)
            for target, c in zip(result["targets"], cells, strict=False)
            if c is not None or name != _HINDSIGHT
        ]
    published = PUBLISHED[result["data"]]["tracer"]
    out["the paper, published"] = [
        (t, published[t][0], published[t][1] is None or published[t][1] >= t) for t in result["targets"]
    ]
    return out


def _point(target: float, counts: dict[str, Any] | None) -> tuple[float, float, bool]:
    if counts is None:
        return target, 0.0, True
    kept = counts["n_agreed"] >= target * counts["n_handled"]
    return target, round(counts["n_handled"] / counts["n"], 4), kept


def digest(series: dict[str, Series]) -> str:
    """What a coverage figure is known by."""
    return _digest_of(series)


def flywheel_digest(results: Mapping[str, dict[str, Any]]) -> str:
    """What the flywheel figure is known by."""
    return _digest_of(flywheel_points(results))


def _digest_of(points: object) -> str:
    return hashlib.sha256(json.dumps(points, sort_keys=True).encode()).hexdigest()[:16]


def coverage_points(results: Mapping[str, dict[str, Any]]) -> dict[str, Series]:
    """The coverage figure's points by data set."""
    names = [name for name in TITLES if f"protocol_{name}" in results]
    return {name: coverage_series(results[f"protocol_{name}"]) for name in names}


def flywheel_points(results: Mapping[str, dict[str, Any]]) -> dict[str, dict[str, list[float]]]:
    """The flywheel figure's points: by data set and arm, the mean coverage over lives at the end of each day."""
    found = results.get("flywheel_loop", {"real": {}})["real"]
    return {
        flywheel_loop.TITLES[name]: {
            arm: [
                round(sum(flywheel_loop.coverage(life, day) for life in lives) / len(lives), 4)
                for day in range(len(lives[0]["days"]["asked"]))
            ]
            for arm, lives in content["arms"].items()
        }
        for name, content in found.items()
    }


def draw_flywheel(results: Mapping[str, dict[str, Any]]) -> None:
    """Coverage of the truth by day. Needs matplotlib."""
    import matplotlib as mpl

    mpl.use("svg")
    from matplotlib import pyplot as plt

    points = flywheel_points(results)
    if not points:
        return
    mpl.rcParams.update(
        {"svg.hashsalt": "tracer", "font.size": 10, "axes.spines.top": False, "axes.spines.right": False}
    )
    colours = ("#0b6e4f", "#08a045", "#b23a48", "#666666")
    lines = ("-", "--", "-", ":")
    figure, axes = plt.subplots(1, len(points), figsize=(4.0 * len(points), 3.6), squeeze=False)
    for axis, (title, arms) in zip(axes[0], points.items(), strict=True):
        for (arm, values), colour, line in zip(arms.items(), colours, lines, strict=True):
            axis.plot(range(1, len(values) + 1), values, line, color=colour, label=arm, linewidth=1.8)
        axis.set_title(title)
        axis.set_xlabel("day")
        axis.grid(axis="y", color="#dddddd", linewidth=0.6)
    axes[0][0].set_ylabel("coverage of the truth")
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncols=4, frameon=False, fontsize=9)
    figure.tight_layout(rect=(0, 0.09, 1, 1))
    FOLDER.mkdir(parents=True, exist_ok=True)
    figure.savefig(FLYWHEEL, metadata={"Date": None, "Description": _digest_of(points)})
    plt.close(figure)
    print(f"wrote {FLYWHEEL.relative_to(FOLDER.parent.parent)}")


def draw(results: Mapping[str, dict[str, Any]]) -> None:
    """Draw all figures. Needs matplotlib."""
    import matplotlib as mpl

    mpl.use("svg")
    from matplotlib import pyplot as plt

    series = coverage_points(results)
    if not series:
        return
    mpl.rcParams.update(
        {"svg.hashsalt": "tracer", "font.size": 10, "axes.spines.top": False, "axes.spines.right": False}
    )
    figure, axes = plt.subplots(1, len(series), figsize=(5.2 * len(series), 4.4), sharey=True, squeeze=False)
    for axis, (name, methods) in zip(axes[0], series.items(), strict=True):
        for method, points in methods.items():
            colour, marker, line, width = _STYLES[method]
            targets, coverages = [p[0] for p in points], [p[1] for p in points]
            axis.plot(targets, coverages, line, color=colour, linewidth=width, label=method, zorder=width)
            for target, coverage, kept in points:
                if marker:
                    face = colour if kept else "white"
                    axis.plot(
                        target, coverage, marker, color=colour, markerfacecolor=face, markersize=6.5, zorder=2 + width
                    )
        axis.set_title(TITLES[name])
        axis.set_xlabel("target agreement with the teacher")
        axis.set_xticks([0.80, 0.85, 0.90, 0.95])
        axis.grid(axis="y", color="#dddddd", linewidth=0.6)
    axes[0][0].set_ylabel("coverage on the official test traces")
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncols=4, frameon=False, fontsize=9)
    figure.text(0.5, 0.115, "hollow: agreement on the test traces is below the target", ha="center", fontsize=9)
    figure.tight_layout(rect=(0, 0.14, 1, 1))
    FOLDER.mkdir(parents=True, exist_ok=True)
    figure.savefig(COVERAGE, metadata={"Date": None, "Description": digest(series)})
    print(f"wrote {COVERAGE.relative_to(FOLDER.parent.parent)}")
