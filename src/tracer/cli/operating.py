"""Verbs for whoever operates a policy: status, history, promote, rollback, mode, flywheel run."""

from __future__ import annotations

import logging
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, cast

import typer
from rich.logging import RichHandler
from rich.table import Table

from tracer.cli import options
from tracer.cli.common import OBSERVED, err, errors_as_exits, escape, observed, out, percent, print_json
from tracer.errors import ConfigError, TraceError
from tracer.flywheel import homes, running, switching, watching
from tracer.flywheel.fitting import level_of
from tracer.flywheel.settings import Settings
from tracer.flywheel.watching import View
from tracer.monitoring import budgets
from tracer.monitoring.alarms import MonitorConfig
from tracer.policies.registry import OFF, PolicyRegistry
from tracer.policies.serving_settings import Mode, ServingSettings
from tracer.reporting.texts import clean
from tracer.serving.states import KILL_SWITCH, switched_off

Note = Annotated[str, typer.Option(help="A remark for the history.")]
_ARL = MonitorConfig().arl
Arl = Annotated[float, typer.Option(help="Handled audits that pass on average, at least, before a false alarm.")]


def status(
    home: options.Home = Path(homes.HOME),
    days: Annotated[
        float | None,
        typer.Option(help="Show the audit rate that certifies within so many days; needs --calls-per-day."),
    ] = None,
    calls_per_day: Annotated[float | None, typer.Option("--calls-per-day", help="Present traffic.")] = None,
    arl: Arl = _ARL,
    json: options.Json = False,
) -> None:
    """How the policy in force does: live agreement from audits, warnings, what the next refit waits for.

    Reads only: `tracer flywheel run` acts.
    """
    with errors_as_exits():
        view = watching.look(home, MonitorConfig(arl=arl))
        wanted = running.due(home, view.settings)
        known = running.facts(view, wanted, datetime.now(UTC))
        serving = ServingSettings.read(home)
        plan = None if days is None else _plan(view, days, calls_per_day)
        off = (home / OFF).exists() or switched_off()
        known |= {"mode": serving.mode, "share": serving.share, "audit_rate": serving.audit_rate, "off": off}
        known["observed"] = observed(home)
        if plan is not None:
            known["plan"] = {"rate": plan.rate, "reachable": plan.reachable, "statement": plan.statement()}
        if json:
            print_json(known)
            return
        _show_status(known, view)
        if plan is not None:
            out.print(plan.statement())


def _plan(view: View, days: float, calls_per_day: float | None) -> budgets.Plan:
    if calls_per_day is None:
        raise ConfigError("--days needs --calls-per-day, the present traffic")
    if view.active is None:
        raise ConfigError("no policy is in force: how much it would handle is not known")
    config, certificate = view.settings.config, view.active.certificate
    return budgets.rate_for(
        days, calls_per_day, target=config.target, level=level_of(config, view.settings.line.attempts + 1),
        agreement=budgets.expected_agreement(certificate), coverage=certificate.coverage,
    )  # fmt: skip


def _show_status(known: dict[str, Any], view: View) -> None:
    styles = {"quiet": "green", "warn": "yellow", "alarm": "red", "teacher": "yellow"}
    word = known["status"]
    if known["off"]:
        word = f"switched off by {KILL_SWITCH}" if switched_off() else "switched off"
    policy = f"policy {known['policy']} ({known['guarantee']})" if known["policy"] else "no policy: the teacher answers"
    out.print(f"[bold {styles[known['status']]}]{word}[/]  {policy}, target {known['target']:g}")
    share = f" for a share of {known['share']:g}" if known["mode"] == "canary" else ""
    if known["observed"]:
        out.print(OBSERVED)
    else:
        out.print(f"mode {known['mode']}{share}, {known['audit_rate']:.1%} of traffic is audited")
    if view.monitor is not None:
        monitor = view.monitor
        low, high = monitor.interval
        seen = f"{monitor.n_agreed:,} of {monitor.n_handled:,} audits of what it handles agree"
        bounds = f", {low:.1%} to {high:.1%} at any time" if monitor.n_handled else ""
        out.print(f"live agreement: {seen}{bounds}; coverage when certified {percent(known['certified_coverage'])}")
        out.print(f"alarm detector: {monitor.detector_value:,.0f} of {monitor.monitor.config.arl:,.0f}")
        rows = [row for row in monitor.class_table() if row.verdict == "violating"]
        for row in rows:
            out.print(f"[yellow]label {escape(row.label)}[/]: {row.n_agreed} of {row.n} audits agree", highlight=False)
    for warning in known["warnings"]:
        out.print(f"[yellow]warning[/] {escape(warning['message'])}")
    names = "; ".join(
        f"{teacher or 'not named'}" + (f", {prompt}" if prompt else "") for teacher, prompt in known["fingerprints"]
    )
    out.print(f"policy line {known['line']} (teacher: {escape(names)}), {known['attempts']} attempts")
    if known["held"]:
        out.print("held: everything goes to the teacher until a version is promoted by hand")
    if known["challenger"]:
        out.print(f"policy {known['challenger']} waits for audits to certify it")
    out.print(f"refit: {'due, ' if known['refit_due'] else ''}{escape(known['refit_reason'])}")


def history(home: options.Home = Path(homes.HOME), json: options.Json = False) -> None:
    """What happened to the policies: fits, promotions, demotions, refusals, alarms, notes."""
    with errors_as_exits():
        registry = PolicyRegistry(home)
        events = registry.history()
        if json:
            print_json({
                "active": registry.active_version(), "versions": list(registry.versions()),
                "events": [
                    {
                        "time": e.time.isoformat() if e.time else None, "event": e.event, "from": e.before,
                        "to": e.after, "moved": e.moved, "note": e.note, "facts": dict(e.facts),
                    }
                    for e in events
                ],
            })  # fmt: skip
            return
        if not events:
            out.print(f"nothing happened in {home} yet")
            return
        table = Table("time", "event", "from", "to", "note", title=f"policies of {home}")
        for e in events:
            when = e.time.isoformat(sep=" ", timespec="seconds")[:19] if e.time else "-"
            moved = (
                (e.before or "teacher", e.after or "teacher") if e.moved else (str(e.facts.get("version") or ""), "")
            )
            table.add_row(when, e.event, *moved, escape(e.note))
        out.print(table)
        out.print(f"in force: {registry.active_version() or 'the teacher'}")


def promote(
    version: Annotated[str, typer.Argument(help="A version such as v0002, or teacher.")],
    home: options.Home = Path(homes.HOME),
    note: Note = "",
) -> None:
    """Put a version in force, atomically; `teacher` sends everything to the teacher."""
    with errors_as_exits():
        name = None if version == "teacher" else version
        switching.promote(home, name, note=note)
        held = "" if name else "; nothing is promoted until you promote a version"
        out.print(f"{name or 'the teacher'} is in force in {home}; routers take it up within a second{held}")


def rollback(home: options.Home = Path(homes.HOME), note: Note = "") -> None:
    """Put the version in force that was before; again for the one before that."""
    with errors_as_exits():
        out.print(f"policy {switching.roll_back(home, note=note)} is in force in {home} again")


def note(
    version: Annotated[str, typer.Argument(help="A version such as v0002.")],
    text: Annotated[str, typer.Argument(help="The remark.")],
    home: options.Home = Path(homes.HOME),
) -> None:
    """Write a remark on a version into the history."""
    with errors_as_exits():
        PolicyRegistry(home).note(version, text)


def mode(
    name: Annotated[
        str | None, typer.Argument(help="shadow, canary or live; shows the present one if left out.")
    ] = None,
    home: options.Home = Path(homes.HOME),
    share: Annotated[float | None, typer.Option(help="Share of traffic served in canary, in [0, 1].")] = None,
    audit_rate: Annotated[float | None, typer.Option(help="Share of traffic that the teacher answers anyway.")] = None,
) -> None:
    """How the policy is served: shadow (decide, but ask the teacher), canary (a share), or live."""
    with errors_as_exits():
        if not home.is_dir():
            raise TraceError(f"{home}: there is no such home folder")
        before = ServingSettings.read(home)
        if name == "canary" and share is None and before.mode != "canary":
            raise ConfigError("canary needs --share, the share of traffic that the policy serves")
        if name in ("live", "shadow") and share is None:
            share = 1.0
        changed = ServingSettings(
            cast("Mode", before.mode if name is None else name),
            before.share if share is None else share,
            before.audit_rate if audit_rate is None else audit_rate,
        )
        if changed != before:
            with homes.locked(home):
                changed.write(home)
        out.print(f"mode {changed.mode}, share {changed.share:g}, audit rate {changed.audit_rate:g}")


flywheel_app = typer.Typer(
    help="The loop that keeps a policy true: watch, refit, promote, demote.", no_args_is_help=True
)


@flywheel_app.callback()
def _group() -> None:
    """The loop that keeps a policy true."""


@flywheel_app.command("run")
def flywheel_run(
    home: options.Home = Path(homes.HOME),
    every: Annotated[float, typer.Option(help="Seconds between looks.")] = 60.0,
    once: Annotated[bool, typer.Option("--once", help="Look and act once, then stop: for cron.")] = False,
    wait: Annotated[bool, typer.Option("--wait", help="Wait for the first fit, where there was none.")] = False,
    arl: Arl = _ARL,
) -> None:
    """Watch a home, refit when enough fresh traces came or an alarm rang, promote and demote; until interrupted.

    Tells of alarms in the log, in metrics.prom, and at the URL in TRACER_WEBHOOK. Any number of replicas may run.
    Each event is a line of the log; silence means that nothing changed.
    """
    # As the first process of a container it would be deaf to SIGTERM otherwise.
    before = signal.signal(signal.SIGTERM, _interrupt)
    with errors_as_exits(), _logged():
        try:
            code = running.run(home, every_s=every, once=once, wait=wait, config=MonitorConfig(arl=arl))
        except KeyboardInterrupt:
            code = 0
        finally:
            signal.signal(signal.SIGTERM, before)
    raise typer.Exit(code)


class _Lines(logging.Handler):
    """A line a record on standard error, whatever that is by then."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            sys.stderr.write(clean(self.format(record)).replace("\n", " ") + "\n")
        except Exception:  # noqa: BLE001 - as `logging` has it: what cannot be told must not end the loop
            self.handleError(record)


@contextmanager
def _logged() -> Iterator[None]:
    """Tell of events for as long as the loop runs, where nobody else listens."""
    logger = logging.getLogger("tracer")
    level, handler = logger.level, None if logger.handlers else _log_handler()
    logger.setLevel(logging.INFO)
    if handler is not None:
        logger.addHandler(handler)
    try:
        yield
    finally:
        logger.setLevel(level)
        if handler is not None:
            logger.removeHandler(handler)


def _log_handler() -> logging.Handler:
    """For people, or a line an event where nobody looks."""
    if err.is_terminal:
        return RichHandler(console=err, show_path=False, markup=False)
    handler = _Lines()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    return handler


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def settings_of(home: Path) -> Settings:
    """The settings of a home. Raises TraceError where nothing was fitted."""
    settings = Settings.read(home)
    if settings is None:
        raise TraceError(f"{home}: nothing was fitted here yet; run `tracer fit` first")
    return settings
