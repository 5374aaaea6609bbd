"""One fit of ours in a process of its own: ``python -m benchmarks.one_fit FOLDER POOL``. Prints JSON.

FOLDER holds ``traces.jsonl``, ``traces.npy``, ``test.jsonl`` and ``test.npy``.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import numpy as np

from benchmarks.peer_fit import peak
from tracer import pipeline
from tracer.config import FitConfig
from tracer.pipeline import Refused
from tracer.traces.loading import load_dataset


def main() -> None:
    """Fit, count on the test traces, and time single decisions."""
    folder, pool = Path(sys.argv[1]), sys.argv[2]
    train, _ = load_dataset(folder / "traces.jsonl")
    test, _ = load_dataset(folder / "test.jsonl")
    began = time.perf_counter()
    verdict = pipeline.fit(train, FitConfig.from_dict({"targets": [0.95], "pool": pool, "ledger": "promotion"}))
    fit_s = time.perf_counter() - began
    peak_mib = peak()
    out: dict[str, object] = {
        "fit_s": round(fit_s, 2),
        "peak_mib": round(peak_mib),
        "n_trainings": verdict.report.n_trainings,
    }
    if not isinstance(verdict, Refused) and test.dense is not None and test.texts is not None:
        decisions = verdict.policy.decide(test.texts, test.dense)
        agree = np.array([a == b for a, b in zip(decisions.labels, test.labels, strict=True)])
        laps = []
        for i in range(300):
            began = time.perf_counter()
            verdict.policy.decide(test.texts[i : i + 1], test.dense[i : i + 1])
            laps.append(time.perf_counter() - began)
        out |= {
            "surrogate": verdict.policy.candidate.name,
            "family": verdict.policy.family,
            "n": len(test),
            "n_handled": int(decisions.handled.sum()),
            "n_agreed": int((decisions.handled & agree).sum()),
            "decision_ms": round(float(np.median(laps)) * 1e3, 3),
        }
    json.dump(out, sys.stdout)


if __name__ == "__main__":
    main()
