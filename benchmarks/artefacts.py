"""The five artefacts on real tasks: the paper's Table 4 as counts, how long they take, and reports to look at.

python -m benchmarks.artefacts --data FOLDER [--reports FOLDER]
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

from benchmarks.common import QUICK_ROWS, arguments, draw, footer, load_task, table, write_result
from benchmarks.core import premise
from tracer import pipeline
from tracer.config import FitConfig
from tracer.explanations import artefacts
from tracer.explanations.rows import table_of
from tracer.pipeline import Refused
from tracer.reporting import html
from tracer.reporting.gathering import gather

CASES = (("clinc150", 0.95), ("banking77", 0.80), ("banking77", 0.95), ("nli", 0.95))
_TITLES = {"clinc150": "CLINC150", "banking77": "Banking77", "nli": "NLI"}


def measure(data: Path, name: str, target: float, reports: Path | None, *, quick: bool) -> dict[str, Any]:
    """Fit, build the artefacts of the policy or of the best candidate of a refusal, and count."""
    task = load_task(data, name, group_by=premise if name == "nli" else None, limit=QUICK_ROWS if quick else None)
    traces = draw(task.train, len(task.train), 0)
    config = FitConfig(targets=(target,), ledger="promotion")
    began = time.perf_counter()
    verdict = pipeline.fit(traces, config, encodings=task.encodings)
    fitted = time.perf_counter()
    policy = verdict.best if isinstance(verdict, Refused) else verdict.policy
    assert policy is not None
    found = artefacts.build(table_of(policy, traces, config))
    done = time.perf_counter()
    if reports is not None:
        refusal = verdict.refusal if isinstance(verdict, Refused) else None
        page = html.page(gather(policy, verdict.report.as_dict(), traces, config, refusal=refusal))
        reports.mkdir(parents=True, exist_ok=True)
        (reports / f"{name}-{target:g}.html").write_text(page, encoding="utf-8")
    stored = json.dumps(found.as_dict())
    return {
        "data": name,
        "digest": task.digest,
        "target": target,
        "verdict": "refused" if isinstance(verdict, Refused) else "certified",
        "family": policy.family,
        "n_traces": len(traces),
        "n_rows": found.n_rows,
        "n_handled": found.n_handled,
        "n_agreed": found.n_agreed,
        "n_labels": found.n_labels,
        "n_pairs": len({pair.label for pair in found.pairs.pairs}),
        "n_cards": len(found.cards.cards),
        "n_disagreements": found.disagreements.n,
        "n_discoveries": len(found.slices.found.found),
        "diagnosis": list(found.disagreements.diagnosis.sentences()),
        "fit_s": round(fitted - began, 2),
        "artefacts_s": round(done - fitted, 2),
        "bytes": len(stored),
    }


def main() -> None:
    """All cases."""
    given = arguments(__doc__ or "", _add)
    cells = []
    for name, target in CASES:
        cells.append(measure(given.data, name, target, given.reports, quick=given.quick))
        print(cells[-1], flush=True)
    write_result(
        "artefacts", {"digest": " ".join(dict.fromkeys(c["digest"] for c in cells)), "cells": cells}, quick=given.quick
    )


def _add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--reports", type=Path, help="folder for the HTML reports of all cases")


def render(result: dict[str, Any]) -> str:
    """The regimes, as counts."""
    rows = [
        (
            _TITLES[c["data"]],
            c["target"],
            c["verdict"],
            f"{c['n_handled']:,} of {c['n_rows']:,}",
            c["n_pairs"],
            c["n_disagreements"],
            c["n_discoveries"],
            f"{c['fit_s']}",
            f"{c['artefacts_s']}",
        )
        for c in result["cells"]
    ]
    head = (
        "data", "target", "gate", "handled", "labels with pairs", "disagreements", "bad slices found", "fit, s", "artefacts, s",
    )  # fmt: skip
    said = "\n".join(
        f"- {_TITLES[c['data']]} at {c['target']:g}: {' '.join(c['diagnosis'])}"
        for c in result["cells"]
        if c["diagnosis"]
    )
    return f"""## Artefacts by regime

The five artefacts on shadow traces, after fits of all training traces (the paper's Table 4, as counts): no pairs where all
is handled, pairs where some is deferred, and after a refusal disagreements with what they say of the task.

{table(head, rows)}

What the disagreements say:

{said}

{footer(result)}
"""


if __name__ == "__main__":
    main()
