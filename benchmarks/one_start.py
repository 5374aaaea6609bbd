"""What a process of its own measures for `benchmarks.speed_serving`; nothing heavy is imported before its clock starts.

``python one_start.py start HOME``: import, load, first decision, memory. ``python one_start.py texts HOME``: waits for
a line, then decides on ``HOME/texts.json``.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path


def start(home: str) -> dict[str, object]:
    """Milliseconds and MiB of a fresh router."""
    began = time.perf_counter()
    from tracer import Router

    imported = time.perf_counter()
    router = Router.load(home)
    loaded = time.perf_counter()
    router.route("how long does a card payment take to go through")
    routed = time.perf_counter()
    return {
        "import_ms": (imported - began) * 1e3,
        "load_ms": (loaded - imported) * 1e3,
        "first_ms": (routed - loaded) * 1e3,
        "rss_mib": _status("VmRSS") / 1024,
        "heavy": sorted({name.split(".")[0] for name in sys.modules} & {"scipy", "sklearn", "onnxruntime", "asyncio"}),
        **_mapped(home),
    }


def texts(home: str) -> None:
    """Seconds for all the texts, after a line on stdin."""
    from tracer import PolicyRegistry

    policy = PolicyRegistry(home).load()
    messages = json.loads((Path(home) / "texts.json").read_text(encoding="utf-8"))
    policy.decide(messages[:2000])
    print("ready", flush=True)
    sys.stdin.readline()
    began = time.perf_counter()
    policy.decide(messages)
    print(time.perf_counter() - began, flush=True)


def _status(key: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return int(next(line for line in lines if line.startswith(key + ":")).split()[1])


def _mapped(home: str) -> dict[str, float]:
    """Of the mapped weights: MiB in memory, and MiB that this process has written to and so no longer shares."""
    sizes, inside = {"Rss": 0, "Private_Dirty": 0}, False
    for line in Path("/proc/self/smaps").read_text(encoding="utf-8").splitlines():
        first = line.split()[0]
        if "-" in first and not first.endswith(":"):
            inside = home in line
        elif inside and first[:-1] in sizes:
            sizes[first[:-1]] += int(line.split()[1])
    return {"mapped_mib": sizes["Rss"] / 1024, "mapped_private_mib": sizes["Private_Dirty"] / 1024}


if __name__ == "__main__":
    if sys.argv[1] == "start":
        json.dump(start(sys.argv[2]), sys.stdout)
    else:
        texts(sys.argv[2])
