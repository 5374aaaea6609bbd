"""A process that runs one job after another, each in a fork that may be told to kill itself at a named step.

Run as a script: jobs come in as lines of JSON, answers go out as lines of JSON. The libraries are loaded once, and no
job runs in the process that forks, so that each one starts as a fresh process would.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tracer import flywheel, storage
from tracer.config import FitConfig
from tracer.flywheel import forgetting, homes, switching, watching
from tracer.policies.registry import PolicyRegistry
from tracer.serving.recorder import BatchRecorder
from tracer.types import Trace

NOW = datetime(2026, 4, 14, 12, tzinfo=UTC)
LEXICAL = FitConfig(targets=(0.7,), features="lexical")


def _wait_for(path: Path) -> None:
    until = time.monotonic() + 60.0
    while not path.exists():
        if time.monotonic() > until:
            raise TimeoutError(str(path))
        time.sleep(0.002)


def _fit(home: Path, job: dict[str, Any]) -> object:
    log = job.get("log")
    config = FitConfig.from_dict(LEXICAL.as_dict() | {"targets": job.get("targets", [0.7])})
    verdict = flywheel.fit(log, home=home, config=config, now=NOW, discard=job.get("discard", False))
    return type(verdict).__name__


def _update(home: Path, job: dict[str, Any]) -> object:
    done = flywheel.update(job.get("log"), home=home, now=NOW, on_refusal=job.get("on_refusal", "keep")).update
    assert done is not None
    return {"action": done.action, "added": done.n_added, "known": done.n_known}


def _watch(home: Path, _job: dict[str, Any]) -> object:
    return [notice.kind for notice in watching.watch(home, now=NOW)[1]]


def _forget(home: Path, job: dict[str, Any]) -> object:
    return len(forgetting.forget(home, containing=job["containing"], now=NOW).traces)


def _activate(home: Path, job: dict[str, Any]) -> object:
    switching.promote(home, job["version"], now=NOW)
    return None


def _rollback(home: Path, _job: dict[str, Any]) -> object:
    return switching.roll_back(home, now=NOW)


def _remove(home: Path, job: dict[str, Any]) -> object:
    with homes.locked(home):
        PolicyRegistry(home).remove(job["version"], now=NOW)
    return None


def _nothing(home: Path, _job: dict[str, Any]) -> object:
    """What the next fit does first: finish what was decided, clear up, and read the traces."""
    with homes.fitting(home):
        settings = flywheel.Settings.read(home)
        return None if settings is None else len(homes.stored_traces(home, settings))


def _append(home: Path, job: dict[str, Any]) -> object:
    """Traces one small batch after another until the file ``stop`` is there; how many."""
    n = 0
    with homes.store_of(home, flywheel.Settings.read(home)) as store:
        while not (stop := Path(job["stop"])).exists() and n < 20_000:
            store.append([Trace(f"live-{n + i}", f"live text {n + i}", "late", origin="deferred") for i in range(5)])
            n += 5
            (stop.parent / "appending").touch()
            time.sleep(0.002)
    return n


def _record(home: Path, job: dict[str, Any]) -> object:
    """Traces through a recorder for ever; writes down, flushed, up to which number they were acknowledged."""
    with homes.store_of(home, flywheel.Settings.read(home)) as store, Path(job["acknowledged"]).open("w") as file:
        recorder = BatchRecorder(store.append, max_batch=7, max_wait_s=0.001)
        for n in range(1_000_000):
            recorder(Trace(f"live-{n}", f"live text {n}", "late", origin="deferred"))
            if n % 20 == 19:
                assert recorder.flush(30.0)
                file.write(f"{n}\n")
                file.flush()
    return None


JOBS: dict[str, Callable[[Path, dict[str, Any]], object]] = {
    "fit": _fit, "update": _update, "watch": _watch, "forget": _forget, "activate": _activate, "rollback": _rollback,
    "remove": _remove, "nothing": _nothing, "append": _append, "record": _record,
}  # fmt: skip


def _without_privileges() -> None:
    """Give up what lets root write where the mode of a folder says that nobody may (Linux: no capability is left)."""
    libc = ctypes.CDLL(None, use_errno=True)
    header, nothing = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    if libc.capset(header, nothing):
        raise OSError(ctypes.get_errno(), "capset")


def _run(job: dict[str, Any]) -> dict[str, Any]:
    """What a job returned or raised, and its steps; does not return where it is to be killed at one of them."""
    steps: list[str] = []

    def on_step(name: str) -> None:
        steps.append(name)
        if len(steps) - 1 == job.get("kill_at"):
            os.kill(os.getpid(), signal.SIGKILL)
        if name == job.get("pause_at"):
            Path(job["paused"]).touch()
            _wait_for(Path(job["go"]))
        if name == job.get("limit_at"):
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (job["limit"], resource.RLIM_INFINITY))

    storage.on_step = on_step
    if job.get("unprivileged"):
        _without_privileges()
    os.environ.pop(homes.DATABASE_URL, None)
    if job.get("url"):
        os.environ[homes.DATABASE_URL] = job["url"]
    try:
        return {"value": JOBS[job["do"]](Path(job["home"]), job), "steps": steps}
    except BaseException as error:  # noqa: BLE001 - the parent judges it
        trace = traceback.format_exc()
        return {"error": type(error).__name__, "told": str(error), "trace": trace, "steps": steps}


def main() -> None:
    warnings.simplefilter("error")
    for line in sys.stdin:
        job = json.loads(line)
        answer = Path(job["answer"])
        child = os.fork()
        if not child:
            done = json.dumps(_run(job))
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
            answer.write_text(done)
            os._exit(0)
        (answer.parent / f"{answer.name}.pid").write_text(str(child))
        _, status = os.waitpid(child, 0)
        sys.stdout.write(json.dumps({"signal": os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0}) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    import sklearn.linear_model  # noqa: F401 - loaded before the forks

    main()
