"""One fit of ``tracer-llm`` in its own environment: ``PEER_PYTHON peer_fit.py FOLDER``. Prints JSON.

Uses only the peer's public interface, with its defaults and the one target 0.95.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np


def peak() -> float:
    """Largest resident memory of this process so far, MiB. Not ``ru_maxrss``, which starts at the parent's."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM:")).split()[1]) / 1024


def main() -> None:
    """Fit, count on the test traces, and time single predictions."""
    import tracer as peer

    module: Any = peer
    folder = Path(sys.argv[1])
    # One target, as ours: each further one would train the pool three times more.
    config = module.FitConfig(target_teacher_agreement=0.95, frontier_targets=(0.95,), verbose=False)
    with tempfile.TemporaryDirectory() as home:
        began = time.perf_counter()
        module.fit(folder / "traces.jsonl", home, config=config)
        fit_s = time.perf_counter() - began
        peak_mib = peak()
        router = module.load_router(home)
        vectors = np.load(folder / "test.npy").astype(np.float32)
        lines = (folder / "test.jsonl").read_text(encoding="utf-8").splitlines()
        labels = [json.loads(line)["teacher"] for line in lines]
        answers = router.predict_batch(vectors)
        handled = [bool(h) for h in answers["handled"]]
        agreed = [h and a == label for a, h, label in zip(answers["labels"], handled, labels, strict=True)]
        laps = []
        for vector in vectors[:100]:
            began = time.perf_counter()
            router.predict(vector)
            laps.append(time.perf_counter() - began)
    json.dump(
        {
            "fit_s": round(fit_s, 2), "peak_mib": round(peak_mib), "n": len(labels), "n_handled": sum(handled),
            "n_agreed": sum(agreed), "decision_ms": round(float(np.median(laps)) * 1e3, 3),
        },
        sys.stdout,
    )  # fmt: skip


if __name__ == "__main__":
    main()
