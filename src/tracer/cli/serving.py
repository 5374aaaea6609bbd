"""``tracer serve``: the gateway; ``tracer tasks``: what it found in traffic that nobody declared."""

from __future__ import annotations

import gc
import logging
import os
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from tracer.cli import options
from tracer.cli.common import errors_as_exits, escape, out, print_json
from tracer.errors import MissingExtraError

log = logging.getLogger("tracer.gateway")

_WRITING_S = 20.0
"""Seconds that a worker has, once its requests are over, to write what waits."""
Config = Annotated[Path, typer.Option("--config", "-c", help="The gateway's settings.")]

LogLevel = Literal["debug", "info", "warning", "error"]


def serve(
    config: Config = Path("tracer.yaml"),
    host: Annotated[str | None, typer.Option(help="Address to listen on, instead of listen.host.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on, instead of listen.port.")] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, max=256, help="Processes that answer, instead of listen.workers.")
    ] = None,
    log_level: Annotated[LogLevel | None, typer.Option(help="Instead of log_level.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check the settings, print them and stop.")] = False,
) -> None:
    """Answer where the LLM endpoint was: what a policy handles here, everything else by the upstream."""
    with errors_as_exits():
        try:
            from tracer.gateway import app, auth, logs, serving, telemetry
            from tracer.gateway import workers as pool
            from tracer.gateway.config import load
        except ImportError as error:
            raise _missing(error) from error
        known = load(config, os.environ)
        at = host or known.listen.host
        auth.check_bind(known, at)
        if known.telemetry.enabled:
            telemetry.require()
        if dry_run:
            serving.Chains(known)
            print_json(known.redacted())
            return
        logs.log_as_json(log_level or known.log_level)
        place = pool.Place.found(os.environ)
        n = place.n if place is not None else workers or known.listen.workers
        at_port = known.listen.port if port is None else port
        if place is None and n > 1:
            serving.Chains(known)  # what is wrong with the settings shows here, once
            sockets = pool.bound(at, at_port, n)
            # Workers are given their sockets, and do not know the address.
            name, number = f"[{at}]" if ":" in at else at, sockets[0].getsockname()[1]
            log.info("listening on http://%s:%d, with %d workers", name, number, n)
            command = (sys.executable, "-P", "-m", "tracer.cli", *sys.argv[1:])
            raise typer.Exit(pool.Supervisor(command, sockets, grace_s=app.DRAIN_S + _WRITING_S).run())
        gateway = serving.Gateway(
            pool.shared_out(known, n),
            reader=lambda: pool.shared_out(load(config, os.environ), n),
            path=config,
            pool=place.pool() if place is not None else None,
        )
        server = app.server(gateway, at, at_port)
        gateway.open()
        gc.collect()
        gc.freeze()  # what was loaded stays: no collection need look at it again
        if place is None:
            server.run()
        else:
            place.orphaned(lambda: setattr(server, "should_exit", True))
            server.run([place.listening()])
        if not server.started:
            raise typer.Exit(1)


def tasks(config: Config = Path("tracer.yaml"), json: options.Json = False) -> None:
    """Classification traffic that was found under prompts of no task, as YAML to paste under `tasks:`."""
    with errors_as_exits():
        try:
            from tracer.gateway.config import load
            from tracer.gateway.discovery import stored
        except ImportError as error:
            raise _missing(error) from error
        found = stored(load(config, os.environ).home)
        if json:
            print_json([proposal.as_dict() for proposal in found])
            return
        if not found:
            out.print("no task was found yet: let the gateway see some hundred calls")
        for proposal in found:
            out.print(escape(proposal.yaml()), soft_wrap=True)


def _missing(error: ImportError) -> Exception:
    if isinstance(error, MissingExtraError):
        return error
    return MissingExtraError(error.name or "starlette", "gateway", "the gateway")
