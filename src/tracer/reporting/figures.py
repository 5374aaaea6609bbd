"""The numbers of a report: what is owned and deferred, agreement along coverage, the frontier, the classes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from tracer.explanations.table import RoutingTable
from tracer.stats import binomial
from tracer.types import Reason

REASONS: Mapping[Reason, str] = {
    "below_threshold": "not sure enough",
    "novel": "unlike any trace",
    "always_defer": "a rule sends them to the teacher",
    "error_cost": "an error would cost more than a teacher call",
    "class_floor": "their class agrees too rarely",
}
NOT_LEARNED = "(labels that are not learned)"
_STEPS = 100
_FEWEST = 20
"""Rows below which a share says little enough to be left off the curve."""


def ownership(table: RoutingTable) -> dict[str, Any]:
    """How many rows are handled, in agreement or not, and why the others are deferred."""
    n, handled = len(table), int(table.handled.sum())
    agreed = int((table.handled & table.agree).sum())
    why = Counter(table.reason(row) for row in np.flatnonzero(~table.handled).tolist())
    return {
        "n": n,
        "n_handled": handled,
        "n_agreed": agreed,
        "n_deferred": n - handled,
        "coverage": handled / n if n else 0.0,
        "reasons": [
            {"reason": reason, "words": REASONS.get(reason, reason), "n": count}
            for reason, count in sorted(why.items(), key=lambda item: (-item[1], item[0]))
        ],
    }


def curve(table: RoutingTable) -> list[dict[str, float]]:
    """Agreement along coverage: what the highest scores would agree on, with 95% intervals point by point."""
    scores, agree = _ranked(table)
    n = len(table)
    ends = np.flatnonzero(np.r_[np.diff(scores) < 0, True]) + 1 if len(scores) else np.empty(0, dtype=np.intp)
    ends = ends[ends >= min(_FEWEST, n)]
    if len(ends) > _STEPS:
        ends = ends[np.unique(np.linspace(0, len(ends) - 1, _STEPS).round().astype(np.intp))]
    reached = np.cumsum(agree)
    points = []
    for k in ends.tolist():
        agreed = int(reached[k - 1])
        low, high = binomial.agreement_interval(agreed, k)
        points.append({"coverage": k / n, "agreement": agreed / k, "low": low, "high": high})
    return points


def frontier(table: RoutingTable | None, report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The estimated frontier; beside each target what the held-out rows show at its coverage, with a 95% interval.

    The estimate is from training rows, the counts from rows that no model trained on. Neither is a guarantee. Without
    a table the counts are None.
    """
    reached = None if table is None else np.cumsum(_ranked(table)[1])
    rows = []
    for point in report.get("frontier", ()):
        row = {"target": point["target"], "coverage": point["coverage"]}
        k = 0 if table is None or reached is None else min(round(point["coverage"] * len(table)), len(reached))
        agreed = int(reached[k - 1]) if reached is not None and k else 0
        low, high = binomial.agreement_interval(agreed, k)
        counted = {"n_handled": k, "n_agreed": agreed, "agreement": agreed / k, "low": low, "high": high} if k else {}
        rows.append(row | dict.fromkeys(("n_handled", "n_agreed", "agreement", "low", "high")) | counted)
    return rows


def counts(table: RoutingTable) -> list[dict[str, Any]]:
    """Traces, handled and agreed of each teacher label, the most frequent first."""
    names = [label if code >= 0 else NOT_LEARNED for label, code in zip(table.labels, table.y.tolist(), strict=True)]
    n = Counter(names)
    handled: Counter[str] = Counter()
    agreed: Counter[str] = Counter()
    for name, took, good in zip(names, table.handled.tolist(), table.agree.tolist(), strict=True):
        handled[name] += took
        agreed[name] += took and good
    order = sorted(n, key=lambda name: (-n[name], name))
    return [{"label": x, "n": n[x], "n_handled": handled[x], "n_agreed": agreed[x]} for x in order]


def classes(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Counts by label with what derives from them: rates, and the exact 95% interval of handled agreement."""
    out = []
    for row in rows:
        handled, agreed = row["n_handled"], row["n_agreed"]
        low, high = binomial.agreement_interval(agreed, handled) if handled else (None, None)
        out.append({
            **row, "n_disagreed": handled - agreed, "coverage": handled / row["n"],
            "agreement": agreed / handled if handled else None, "low": low, "high": high,
        })  # fmt: skip
    return out


def _ranked(table: RoutingTable) -> tuple[Any, Any]:
    """Scores and agreement (m,) of the rows that are not barred, the highest score first."""
    rows = np.flatnonzero(np.isfinite(table.scores))
    rows = rows[np.argsort(-table.scores[rows], kind="stable")]
    return table.scores[rows], table.agree[rows]
