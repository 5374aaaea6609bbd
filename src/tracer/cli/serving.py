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
            from tracer.gateway import app, auth, logs, printing, serving, telemetry
            from tracer.gateway import workers as pool
            from tracer.gateway.config import parse, read
            from tracer.gateway.settings import GatewayConfig
        except ImportError as error:
            raise _missing(error) from error
        place = pool.Place.found(os.environ)
        shared = place.pool() if place is not None else None
        text = (shared.kept() if shared is not None else None) or read(config)
        known = parse(text, os.environ, source=str(config))
        at = host or known.listen.host
        auth.check_bind(known, at)
        if known.telemetry.enabled:
            telemetry.require()
        if dry_run:
            serving.Chains(pool.shared_out(known, workers or known.listen.workers))
            print_json(printing.written(known))
            return
        logs.log_as_json(log_level or known.log_level)
        n = place.n if place is not None else workers or known.listen.workers
        at_port = known.listen.port if port is None else port
        if place is None and n > 1:
            serving.Chains(pool.shared_out(known, n))  # what is wrong with the settings shows here, once
            sockets = pool.bound(at, at_port, n)
            # Workers are given their sockets, and do not know the address.
            name, number = f"[{at}]" if ":" in at else at, sockets[0].getsockname()[1]
            log.info("listening on http://%s:%d, with %d workers", name, number, n)
            command = (sys.executable, "-P", "-m", "tracer.cli", *sys.argv[1:])
            raise typer.Exit(pool.Supervisor(command, sockets, grace_s=app.DRAIN_S + _WRITING_S, settings=text).run())

        def again() -> GatewayConfig:
            text = read(config)
            found = pool.shared_out(parse(text, os.environ, source=str(config)), n)
            if shared is not None:
                shared.read = text
            return found

        gateway = serving.Gateway(
            pool.shared_out(known, n),
            reader=again,
            path=config,
            pool=shared,
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
            from tracer.gateway.discovery import ENUM_CALLS, FIRST_LOOK, stored
            from tracer.gateway.serving import TEND_S
        except ImportError as error:
            raise _missing(error) from error
        known = load(config, os.environ)
        seen = stored(known.home)
        found = [proposal for proposal in seen if not proposal.is_of(known.tasks)]
        if json:
            print_json([proposal.as_dict() for proposal in found])
            return
        if not found and seen:
            out.print("all traffic that was found is declared")
        elif not found:
            out.print(
                f"no task was found yet: it takes {ENUM_CALLS} calls under one prompt where the request lists its "
                f"labels, and {2 * FIRST_LOOK} at least where it does not; what is found is written every "
                f"{TEND_S:g} seconds",
                soft_wrap=True,
            )
        for proposal in found:
            out.print(escape(proposal.yaml()), soft_wrap=True)


def _missing(error: ImportError) -> Exception:
    if isinstance(error, MissingExtraError):
        return error
    return MissingExtraError(error.name or "starlette", "gateway", "the gateway")
