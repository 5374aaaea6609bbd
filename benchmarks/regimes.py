"""The signature of a routing regime (the paper's Table 4): what a boundary looks like from outside.

Full offload: every label and length handled alike, no pair of inputs on opposite sides. Partial: handled rates that
differ by label and length, and pairs. Refusal: nothing is handled.
"""

from __future__ import annotations

from collections import Counter
from itertools import product
from typing import Any

import numpy as np

from benchmarks.common import share, table
from tracer.policies.policy import Policy
from tracer.types import Dataset

_MIN_SUPPORT = 10


def signature(policy: Policy, test: Dataset) -> dict[str, Any]:
    """Handled counts by teacher label (with at least ten test traces) and by length, and pairs across the boundary."""
    handled = policy.decide(test.texts, test.dense).handled
    by_label = Counter(test.labels)
    kept = Counter(label for label, h in zip(test.labels, handled, strict=True) if h)
    rates = sorted(
        ((kept[label] / n, label, kept[label], n) for label, n in by_label.items() if n >= _MIN_SUPPORT),
    )
    words = np.array([len(text.split()) for text in test.texts or ()])
    low, high = np.quantile(words, [1 / 3, 2 / 3])
    bins = {"short": words <= low, "medium": (words > low) & (words <= high), "long": words > high}
    return {
        "n_labels": len(by_label),
        "lowest": {"label": rates[0][1], "n_handled": rates[0][2], "n": rates[0][3]},
        "highest": {"label": rates[-1][1], "n_handled": rates[-1][2], "n": rates[-1][3]},
        "lengths": {name: {"n_handled": int(handled[rows].sum()), "n": int(rows.sum())} for name, rows in bins.items()},
        "longest_short": int(low),
        "longest_medium": int(high),
        # Labels with inputs on both sides: each of them has a pair of the same label and opposite decisions.
        "n_labels_with_pairs": sum(0 < kept[label] < n for label, n in by_label.items()),
    }


def _by_label(found: dict[str, Any]) -> str:
    lowest, highest = (share(found[key]["n_handled"], found[key]["n"]) for key in ("lowest", "highest"))
    return f"{lowest} in all labels" if lowest == highest else f"{lowest} ({found['lowest']['label']}) to {highest}"


def render(protocols: list[dict[str, Any]], titles: dict[str, str], refusals: dict[str, Any] | None) -> str:
    """The signatures of the last day at the strictest target, beside the paper's."""
    rows = []
    for result, mode in product(protocols, ("certified", "paper")):
        days = result[mode][str(max(result["targets"]))]
        found, last = days[-1].get("signature"), days[-1]
        if found is None:
            continue
        test = last["test"]
        lengths = found["lengths"].values()
        spread = [share(bin_["n_handled"], bin_["n"]) for bin_ in lengths]
        rows.append(
            [
                f"{titles[result['data']]} at {max(result['targets']):g}, {mode} mode",
                share(test["n_handled"], test["n"]),
                _by_label(found),
                " / ".join(spread),
                f"{found['n_labels_with_pairs']} of {found['n_labels']}",
            ]
        )
    if refusals:
        refused = sum(not r["promoted"] for r in refusals["rows"])
        shown = f"NLI, {refused} of {len(refusals['rows'])} refused, both modes"
        rows.append([shown, "0 where refused", "-", "-", "none; the refusal gives counts and advice"])
    rows += [
        ["the paper: CLINC150, full offload", "1.000", "1.000 in all labels", "-", "none"],
        ["the paper: Banking77 at 0.95, partial", "0.832", "0.782 to 0.964", "0.883 to 0.910", "pairs"],
        ["the paper: MNLI, refusal", "0", "-", "-", "no report"],
    ]
    head = [
        "regime",
        "coverage",
        "handled rate by label",
        "by length: short / medium / long",
        "labels with inputs on both sides",
    ]
    return f"""## Signatures of the regimes

What the boundary looks like from outside (the paper's Table 4), on the official test traces after the last day; labels with
at least {_MIN_SUPPORT} test traces, lengths in thirds by words.

{table(head, rows)}
"""
