"""The paper's protocol with ``tracer-llm`` in its own environment: ``PEER_PYTHON peer_protocol.py FOLDER TARGET DAYS``.

FOLDER holds ``day1.jsonl``, ``day1.npy``, ... and ``test.jsonl``, ``test.npy``. Uses only the peer's public interface,
with its defaults but for the target, and but for gradient boosting: it adds that below 4,000 training rows and one fit
then takes more than an hour. Prints JSON, one entry a day.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np


def main() -> None:
    """Fit on the first day, update with the others, and count on the test traces after each."""
    import tracer as peer

    module: Any = peer
    folder, target, days = Path(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3])
    vectors = np.load(folder / "test.npy").astype(np.float32)
    test = [json.loads(line) for line in (folder / "test.jsonl").read_text(encoding="utf-8").splitlines()]
    out = []
    with tempfile.TemporaryDirectory() as home:
        for day in range(1, days + 1):
            config = module.FitConfig(
                target_teacher_agreement=target, frontier_targets=(target,), verbose=False, skip_candidates=("gbt",)
            )
            began = time.perf_counter()
            traces = folder / f"day{day}.jsonl"
            result = module.fit(traces, home, config=config) if day == 1 else module.update(traces, home, config=config)
            entry: dict[str, object] = {"day": day, "seconds": round(time.perf_counter() - began, 1)}
            manifest = result.manifest
            entry["family"] = manifest.selected_method
            entry["test"] = _count(module.load_router(home), vectors, test) if manifest.selected_method else None
            out.append(entry)
    json.dump(out, sys.stdout)


def _count(router: Any, vectors: Any, test: list[dict[str, str]]) -> dict[str, int]:
    answers = router.predict_batch(vectors)
    handled = [bool(h) for h in answers["handled"]]
    rows = list(zip(answers["labels"], handled, test, strict=True))
    return {
        "n": len(test),
        "n_handled": sum(handled),
        "n_agreed": sum(h and label == row["teacher"] for label, h, row in rows),
        "n_right": sum((label if h else row["teacher"]) == row["ground_truth"] for label, h, row in rows),
    }


if __name__ == "__main__":
    main()
