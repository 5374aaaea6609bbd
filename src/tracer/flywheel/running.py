"""The loop as a process: watch, refit when it is due, tell the operator, wait. Any number of replicas may run it.

Each refit is a process of its own, so that its memory goes back and its crash stays its own. Who refits holds the
home's lock (and PostgreSQL's, where the traces are there): the others find it taken and go on watching.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tracer import storage
from tracer.errors import ConfigError, TracerError
from tracer.features.sources import embedder_from_name
from tracer.flywheel.homes import CACHE, store_of, stored_traces
from tracer.flywheel.lines import is_foreign, news
from tracer.flywheel.settings import Settings
from tracer.flywheel.updating import enough_fresh, fresh_shadow
from tracer.flywheel.watching import Notice, View, watch
from tracer.monitoring.alarms import MonitorConfig

log = logging.getLogger("tracer.flywheel")

WEBHOOK = "TRACER_WEBHOOK"
"""Environment variable with a URL that is told of alarms, warnings and promotions (POST, JSON)."""
METRICS = "metrics.prom"
"""File in a home folder with the state in Prometheus' text format, for a textfile collector."""
GROWN = 1.2
"""Traces grown by this factor since the last attempt make a refit due, on reused shadow traces if need be.

Geometric growth keeps the number of attempts, and so what the ledger spends, logarithmic in the traces.
"""
_FIRST_WAIT_S, _LONGEST_WAIT_S = 60.0, 6 * 3600.0


@dataclass(frozen=True, slots=True)
class Due:
    """Whether a refit is due, and why; where not, what is still missing."""

    now: bool
    reason: str
    n_fresh: int
    n_needed: int


@dataclass(frozen=True, slots=True)
class Backoff:
    """Failures in a row and when the next refit may start, in seconds of the clock."""

    failures: int = 0
    until: float = 0.0

    def after_failure(self, now: float) -> Backoff:
        """Twice as long after each failure, six hours at most."""
        wait = min(_FIRST_WAIT_S * 2.0**self.failures, _LONGEST_WAIT_S)
        return Backoff(self.failures + 1, now + wait)


def due(home: Path, settings: Settings) -> Due:
    """Whether a refit is due: another task began, it was asked for, or enough fresh shadow traces came to certify on
    them alone."""
    line, config = settings.line, settings.config
    dataset = stored_traces(home, settings)
    n_fresh, needed = fresh_shadow(dataset, config, line.decided), enough_fresh(config, line.attempts)
    with store_of(home, settings) as store:
        if is_foreign(line, news(store.load(), settings)):
            return Due(True, "most new traces come from another teacher or prompt", n_fresh, needed)
    new = int((dataset.numbers > line.decided).sum())
    if not new:
        return Due(False, "no new trace since the last attempt", 0, needed)
    if settings.refit:
        return Due(True, settings.refit, n_fresh, needed)
    if n_fresh >= needed:
        return Due(True, f"{n_fresh:,} fresh shadow traces", n_fresh, needed)
    if len(dataset) >= GROWN * max(len(dataset) - new, 1):
        return Due(True, f"{new:,} new traces", n_fresh, needed)
    return Due(False, f"{n_fresh:,} of {needed:,} fresh shadow traces, {new:,} new traces", n_fresh, needed)


def run(
    home: Path,
    *,
    every_s: float = 60.0,
    once: bool = False,
    config: MonitorConfig | None = None,
    on_notice: Callable[[Notice], None] | None = None,
    command: Sequence[str] | None = None,
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> int:
    """Watch a home and refit when it is due, until interrupted, or ``once``; the last refit's exit code.

    ``command`` refits: by default ``tracer update`` without a log, in a process of its own. 0 and 3 (refused) are
    verdicts; anything else is a failure, after which the next one waits longer. Raises ConfigError where nothing was
    fitted.
    """
    if Settings.read(home) is None:
        raise ConfigError(f"{home}: nothing was fitted here yet; run `tracer fit` first")
    refit = tuple(command or (sys.executable, "-m", "tracer.cli", "update", "--home", str(home)))
    backoff, code, before = Backoff(), 0, ""
    while True:
        view = _watched(home, config, on_notice or tell)
        settings = Settings.read(home)
        wanted = due(home, settings) if settings is not None else Due(False, "", 0, 0)
        if wanted.now and (once or clock() >= backoff.until):
            log.info("refit: %s", wanted.reason)
            code = subprocess.run(refit, check=False).returncode
            if code in (0, 3):
                backoff = Backoff()
            else:
                backoff = backoff.after_failure(clock())
                log.warning("the refit failed with exit code %d; the next one waits", code)
        if once or view is None or view.status != before:
            log.info("%s; refit: %s", "not watched" if view is None else view.status, wanted.reason)
        before = before if view is None else view.status
        if view is not None:
            publish(home, view, wanted, datetime.now(UTC))
        if once:
            return code
        sleep(every_s)


def _watched(home: Path, config: MonitorConfig | None, on_notice: Callable[[Notice], None]) -> View | None:
    try:
        settings = Settings.read(home)
        name = settings.embedder if settings is not None and settings.challenger is not None else None
        embedder = embedder_from_name(name, cache=home / CACHE) if name else None
        view, notices = watch(home, config=config, embedder=embedder)
    except (TracerError, OSError) as error:
        log.info("not watched this time: %s", error)
        return None
    for notice in notices:
        on_notice(notice)
    return view


def tell(notice: Notice) -> None:
    """Log a notice, and post it where ``TRACER_WEBHOOK`` says; a failure there is logged without the URL."""
    log.log(
        logging.WARNING if notice.kind in ("alarm", "warning") else logging.INFO, "%s: %s", notice.kind, notice.message
    )
    url = os.environ.get(WEBHOOK, "")
    if not url:
        return
    if not url.startswith(("http://", "https://")):
        log.warning("%s is no http URL: nobody was told", WEBHOOK)
        return
    body = json.dumps({"source": "tracer", "kind": notice.kind, "text": notice.message}).encode()
    request = urllib.request.Request(url, data=body, headers={"Content-Type": "application/json"}, method="POST")  # noqa: S310
    try:
        with urllib.request.urlopen(request, timeout=10.0):  # noqa: S310 - the scheme was looked at
            pass
    except (OSError, ValueError) as error:
        log.warning("the webhook could not be told: %s", type(error).__name__)


def facts(view: View, wanted: Due, now: datetime) -> dict[str, Any]:
    """What `tracer status` and the metrics show, JSON-ready."""
    line, monitor = view.settings.line, view.monitor
    certificate = view.active.certificate if view.active is not None else None
    return {
        "time": now.isoformat(timespec="seconds"),
        "status": view.status,
        "policy": view.active.version if view.active is not None else None,
        "guarantee": certificate.guarantee if certificate is not None else None,
        "target": view.settings.config.target,
        "certified_coverage": certificate.coverage if certificate is not None else None,
        "line": line.number,
        "fingerprints": [list(f) for f in line.fingerprints],
        "attempts": line.attempts,
        "traces_through": view.through,
        "n_fresh": wanted.n_fresh,
        "n_fresh_needed": wanted.n_needed,
        "refit_due": wanted.now,
        "refit_reason": wanted.reason,
        "challenger": view.settings.challenger.version if view.settings.challenger is not None else None,
        "monitor": None if monitor is None else monitor.as_dict()["shown"]
        | {"n_audits": monitor.n_audits, "n_handled": monitor.n_handled, "n_agreed": monitor.n_agreed},
        "warnings": [] if view.drift is None else [w.as_dict() for w in view.drift.warnings()],
    }  # fmt: skip


def publish(home: Path, view: View, wanted: Due, now: datetime) -> None:
    """Write the metrics file; a failure is logged."""
    known = facts(view, wanted, now)
    shown = known["monitor"] or {}
    gauges = {
        "tracer_policy_active": int(view.active is not None),
        "tracer_target_agreement": known["target"],
        "tracer_certified_coverage": known["certified_coverage"],
        "tracer_live_agreement": shown.get("agreement"),
        "tracer_live_agreement_lower": (shown.get("interval") or [None])[0],
        "tracer_live_agreement_upper": (shown.get("interval") or [None])[-1],
        "tracer_audits_handled": shown.get("n_handled"),
        "tracer_alarm": int(view.status == "alarm"),
        "tracer_warning": int(view.status == "warn"),
        "tracer_drift_warnings": len(known["warnings"]),
        "tracer_attempts_total": known["attempts"],
        "tracer_fresh_shadow_traces": known["n_fresh"],
        "tracer_refit_due": int(wanted.now),
        "tracer_watched_timestamp_seconds": now.timestamp(),
    }
    text = "".join(f"# TYPE {name} gauge\n{name} {value}\n" for name, value in gauges.items() if value is not None)
    try:
        storage.write_atomic(home / METRICS, text.encode())
    except OSError as error:
        log.warning("%s cannot be written: %s", home / METRICS, error.strerror)
