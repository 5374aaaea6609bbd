"""The loop as a process: watch, refit when it is due, tell the operator, wait. Any number of replicas may run it.

Each refit is a process of its own, so that its memory goes back and its crash stays its own. Who refits holds the
home's lock (and PostgreSQL's, where the traces are there): the others find it taken and go on watching.
"""

from __future__ import annotations

import json
import logging
import math
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tracer import storage
from tracer.errors import ConfigError, TracerError
from tracer.features.dense import Embedder
from tracer.features.sources import embedder_from_name
from tracer.flywheel.homes import CACHE, store_of, stored_traces
from tracer.flywheel.lines import is_foreign, news
from tracer.flywheel.settings import Settings
from tracer.flywheel.updating import ShadowRoom
from tracer.flywheel.watching import Notice, View, watch
from tracer.monitoring.alarms import MonitorConfig
from tracer.policies.registry import PolicyRegistry

log = logging.getLogger("tracer.flywheel")

WEBHOOK = "TRACER_WEBHOOK"
"""Environment variable with a URL that is told of alarms, warnings and promotions (POST, JSON)."""
METRICS = "metrics.prom"
"""File in a home folder with the state in Prometheus' text format, for a textfile collector."""
GROWN = 1.2
"""Traces grown by this factor since the last attempt make a refit due, on reused shadow traces if need be.

Geometric growth keeps the number of attempts, and so what the ledger spends, logarithmic in the traces.
"""
BUSY = 4
"""Exit code of a refit that found another one at work."""
_TOLD = {"promote": "promotion", "demote": "alarm", "new line": "warning", "teacher": "warning", "recovered": "warning"}
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
    room = ShadowRoom.of(dataset, config, line)
    n_fresh, needed = room.n_fresh, room.n_needed
    with store_of(home, settings) as store:
        if is_foreign(line, news(store.load(), settings)):
            return Due(True, "most new traces come from another teacher or prompt", n_fresh, needed)
    new = int((dataset.numbers > line.decided).sum())
    if not new and not settings.tainted:
        return Due(False, "no new trace since the last attempt", 0, needed)
    if room.hopeless and config.guarantee == "certified" and not settings.tainted:
        n = room.n_fresh + room.n_older
        return Due(False, f"{n:,} of {room.n_least:,} shadow traces that an attempt is worth", n_fresh, needed)
    reason = settings.refit
    if not reason and n_fresh >= needed and config.guarantee == "certified":  # an estimate waits for audits, and growth
        reason = f"{n_fresh:,} fresh shadow traces"
    wanted = math.ceil(GROWN * max(len(dataset) - new, 1)) - (len(dataset) - new)
    if not reason and new >= wanted:
        reason = f"{new:,} new traces"
    waiting = f"{n_fresh:,} of {needed:,} fresh shadow traces, {new:,} of {wanted:,} new traces"
    return Due(bool(reason), reason or waiting, n_fresh, needed)


def run(
    home: Path,
    *,
    every_s: float = 60.0,
    once: bool = False,
    wait: bool = False,
    config: MonitorConfig | None = None,
    on_notice: Callable[[Notice], None] | None = None,
    command: Sequence[str] | None = None,
    longest_s: float = 6 * 3600.0,
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> int:
    """Watch a home and refit when it is due, until interrupted, or ``once``; the last refit's exit code.

    ``command`` refits: by default ``tracer update`` without a log, in a process of its own, which is ended after
    ``longest_s``; watching goes on meanwhile. 0 and 3 (refused) are verdicts, 4 says that another replica is at it;
    anything else is a failure, after which the next one waits longer. What goes wrong in a look is logged, and looked
    at again. Raises ConfigError where nothing was fitted, unless it is to ``wait`` for that.
    """
    if Settings.read(home) is None:
        if once or not wait:
            raise ConfigError(f"{home}: nothing was fitted here yet; run `tracer fit` first")
        log.info("waiting for `tracer fit`: nothing was fitted in %s yet", home)
        while Settings.read(home) is None:
            sleep(every_s)
    refit = tuple(command or (sys.executable, "-m", "tracer.cli", "update", "--home", str(home)))
    loop = _Loop(home, refit, config, on_notice or tell, longest_s, clock)
    try:
        while True:
            loop.turn(once=once)
            if once:
                return loop.code
            sleep(every_s)
    finally:
        loop.stop()


@dataclass(slots=True, eq=False)
class _Loop:
    """What a loop remembers between its turns."""

    home: Path
    refit: tuple[str, ...]
    config: MonitorConfig | None
    on_notice: Callable[[Notice], None]
    longest_s: float
    clock: Callable[[], float]
    backoff: Backoff = field(default_factory=Backoff)
    code: int = 0
    missed: int = 0
    status: str = ""
    running: subprocess.Popen[bytes] | None = None
    since: float = 0.0
    told: int = 0
    embedder: tuple[str, Embedder] | None = None

    def turn(self, *, once: bool) -> None:
        """Look and act, start a refit where one is due, see whether one has ended. What fails stops no loop."""
        view, wanted = None, Due(False, "not looked at", 0, 0)
        try:
            view, notices = watch(self.home, config=self.config, embedder=self._embedder())
            for notice in notices:
                self.on_notice(notice)
            wanted = due(self.home, view.settings)
            self.missed = 0
        except (TracerError, OSError) as error:
            self.missed += 1
            level = logging.WARNING if self.missed in (1, 10) or self.missed % 100 == 0 else logging.INFO
            log.log(level, "not watched, %d times in a row: %s", self.missed, error)
        self._ended()
        if wanted.now and self.running is None and (once or self.clock() >= self.backoff.until):
            log.info("refit: %s", wanted.reason)
            self.told = len(PolicyRegistry(self.home).history())
            # What it prints is for people: a log gets a line an event.
            shown = None if sys.stdout.isatty() else subprocess.DEVNULL
            self.running, self.since = subprocess.Popen(self.refit, stdout=shown), self.clock()
        if once and self.running is not None:
            self.running.wait()
            self._ended()
        if once or view is None or view.status != self.status:
            log.info("%s; refit: %s", "not watched" if view is None else view.status, wanted.reason)
        self.status = self.status if view is None else view.status
        publish(self.home, view, wanted, self.missed, datetime.now(UTC))

    def stop(self) -> None:
        """End a refit that is running: the next one finds what it had decided."""
        if self.running is not None:
            self.running.terminate()
            self.running.wait()

    def _ended(self) -> None:
        if self.running is None:
            return
        code = self.running.poll()
        if code is None:
            if self.clock() - self.since > self.longest_s:
                log.warning("the refit takes longer than %g seconds: it is ended", self.longest_s)
                self.running.kill()
            return
        self.running, self.code = None, code
        if code in (0, 3):
            self.backoff = Backoff()
            self._tell_what_happened()
        elif code == BUSY:
            log.info("another process refits")
        else:
            self.backoff = self.backoff.after_failure(self.clock())
            log.warning("the refit failed with exit code %d; the next one waits", code)

    def _tell_what_happened(self) -> None:
        """Whoever is told of alarms hears too what a refit did."""
        try:
            events = PolicyRegistry(self.home).history()[self.told :]
        except TracerError as error:
            log.warning("what the refit did cannot be told: %s", error)
            return
        for event in events:
            if event.event not in _TOLD:
                log.info("%s: %s", event.event, " ".join(event.note.split()) or event.after or "done")
            elif event.event != "demote" or "audits of what it handles" not in event.note:
                self.on_notice(
                    Notice(_TOLD[event.event], f"{event.event} {event.after or 'the teacher'}: {event.note}")
                )

    def _embedder(self) -> Embedder | None:
        """What a challenger that reads embeddings is judged with; made once."""
        settings = Settings.read(self.home)
        if settings is None or settings.challenger is None or settings.embedder is None:
            return None
        if self.embedder is None or self.embedder[0] != settings.embedder:
            self.embedder = settings.embedder, embedder_from_name(settings.embedder, cache=self.home / CACHE)
        return self.embedder[1]


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
        "held": view.settings.held,
        "challenger": view.settings.challenger.version if view.settings.challenger is not None else None,
        "monitor": None if monitor is None else monitor.as_dict()["shown"]
        | {"n_audits": monitor.n_audits, "n_handled": monitor.n_handled, "n_agreed": monitor.n_agreed},
        "warnings": [] if view.drift is None else [w.as_dict() for w in view.drift.warnings()],
    }  # fmt: skip


def publish(home: Path, view: View | None, wanted: Due, missed: int, now: datetime) -> None:
    """Write the metrics file; without a view only that it was missed, so many times in a row. A failure is logged."""
    gauges: dict[str, Any] = {"tracer_looks_missed": missed}
    if view is not None:
        gauges |= _gauges(home, view, wanted, now)
    text = "".join(f"# TYPE {name} gauge\n{name} {value}\n" for name, value in gauges.items() if value is not None)
    try:
        storage.write_atomic(home / METRICS, text.encode())
    except OSError as error:
        log.warning("%s cannot be written: %s", home / METRICS, error.strerror)


def _gauges(home: Path, view: View, wanted: Due, now: datetime) -> dict[str, Any]:
    known = facts(view, wanted, now)
    shown = known["monitor"] or {}
    demoted = [e.time for e in PolicyRegistry(home).history() if e.event == "demote" and e.time is not None]
    return {
        "tracer_last_demotion_timestamp_seconds": demoted[-1].timestamp() if demoted else None,
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
