"""For whoever operates the gateway, with the admin token: tasks, policies, promote, rollback, pause, off, reload."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from tracer.errors import BusyError, ConfigError, StoreError, TracerError
from tracer.flywheel import switching
from tracer.gateway.auth import UncheckedError, source_of
from tracer.gateway.codecs.bodies import read_object
from tracer.gateway.discovery import stored
from tracer.gateway.lines import TaskLine
from tracer.gateway.pages.routes import report_page
from tracer.gateway.reading import TooLargeError, read_body
from tracer.gateway.relaying import ClientGoneError
from tracer.gateway.serving import Gateway
from tracer.policies.registry import PolicyRegistry

log = logging.getLogger("tracer.gateway")

_BODY = 64 * 1024
Work = Callable[[Request], Awaitable[Any]]


class Admin:
    """The routes under ``/admin``. Without a token in the config there is no admin, and all say 404."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    def routes(self) -> list[Route]:
        """What there is."""
        one = "/admin/policies/{task}"
        return [
            Route("/admin/tasks", self._guarded(self._tasks), methods=["GET"]),
            Route("/admin/proposals", self._guarded(self._proposals), methods=["GET"]),
            Route(one, self._guarded(self._policies), methods=["GET"]),
            Route(f"{one}/promote", self._guarded(self._promote), methods=["POST"]),
            Route(f"{one}/rollback", self._guarded(self._rollback), methods=["POST"]),
            Route(f"{one}/pause", self._guarded(self._pause), methods=["POST"]),
            Route("/admin/report/{task}", self._guarded(self._report), methods=["GET"]),
            Route("/admin/off", self._guarded(self._off), methods=["POST"]),
            Route("/admin/reload", self._guarded(self._reload), methods=["POST"]),
        ]

    def _guarded(self, work: Work) -> Callable[[Request], Awaitable[Response]]:
        async def endpoint(request: Request) -> Response:
            if (refusal := await self._refusal(request)) is not None:
                return refusal
            try:
                found = await work(request)
                return found if isinstance(found, Response) else JSONResponse(found)
            except (KeyError, TooLargeError, TracerError, OSError, ClientGoneError) as error:
                return _answer_to(error)

        return endpoint

    async def _refusal(self, request: Request) -> Response | None:
        try:
            known = await self._gateway.serving.gate.token("admin", dict(request.headers), source_of(request.scope))
        except UncheckedError:
            return _problem(429, "too many unknown tokens")
        if known is None:
            return _problem(404, "no admin token is set")
        shown = request.headers.get("authorization")
        told = "the token that was shown is not the admin's" if shown else "the admin token was not shown"
        return None if known else _problem(401, told)

    async def _tasks(self, _: Request) -> Any:
        lines = self._gateway.serving.lines.values()
        return {"tasks": await asyncio.to_thread(lambda: [_state(line) for line in lines])}

    async def _proposals(self, _: Request) -> Any:
        home: Path = self._gateway.serving.config.home
        await self._gateway.write()
        return {"proposals": [found.as_dict() for found in await asyncio.to_thread(stored, home)]}

    async def _policies(self, request: Request) -> Any:
        return await asyncio.to_thread(_policies, self._line(request))

    async def _report(self, request: Request) -> Any:
        report = await self._gateway.report(self._line(request))
        assert report is not None  # noqa: S101 - waited for without end
        accepted = request.headers.get("accept", "")
        wants_page = "text/html" in accepted and "application/json" not in accepted.partition("text/html")[0]
        return report_page(report) if wants_page else report.facts

    async def _promote(self, request: Request) -> Any:
        asked, line = await _asked(request), self._line(request)
        version = asked.get("version")
        if not isinstance(version, str):
            raise ConfigError("version must be the name of a policy, such as v0001")
        await asyncio.to_thread(switching.promote, line.home, version, note=_note(asked))
        return self._switched(line, "promote", version)

    async def _rollback(self, request: Request) -> Any:
        asked, line = await _asked(request), self._line(request)
        version = await asyncio.to_thread(switching.roll_back, line.home, note=_note(asked))
        return self._switched(line, "rollback", version)

    async def _pause(self, request: Request) -> Any:
        asked, line = await _asked(request), self._line(request)
        await asyncio.to_thread(switching.promote, line.home, None, note=_note(asked))
        return self._switched(line, "pause", None)

    async def _off(self, request: Request) -> Any:
        off = (await _asked(request)).get("off")
        if not isinstance(off, bool):
            raise ConfigError('off must be true or false: {"off": true} sends everything to the teachers')
        failed = await asyncio.to_thread(self._gateway.switch_off, off)
        log.warning("switched %s by an admin", "off: everything goes to the teachers" if off else "on")
        return {"off": off} | ({"failed": failed} if failed else {})

    async def _reload(self, _: Request) -> Any:
        await self._gateway.reload()
        log.info("the configuration was read again")
        return {"tasks": sorted(self._gateway.serving.lines)}

    def _switched(self, line: TaskLine, what: str, version: str | None) -> Any:
        log.warning("%s by an admin: task %s, policy %s", what, line.task.name, version or "none")
        return {"task": line.task.name, "policy": version}

    def _line(self, request: Request) -> TaskLine:
        return self._gateway.serving.lines[request.path_params["task"]]


async def _asked(request: Request) -> dict[str, Any]:
    body = await read_body(request.receive, dict(request.headers), _BODY)
    return read_object(body) if body.strip() else {}


def _note(asked: dict[str, Any]) -> str:
    note = asked.get("note", "")
    if not isinstance(note, str):
        raise ConfigError("note must be a text")
    return note


def _state(line: TaskLine) -> dict[str, Any]:
    task, settings, counts = line.task, line.router.settings, line.recorder.counts
    return {
        "name": task.name,
        "mode": "observe" if task.mode == "observe" else settings.mode,
        "share": settings.share,
        "audit_rate": settings.audit_rate,
        "policy": _active(line),
        "off": line.switch.exists(),
        "broken": line.broken,
        "decisions": line.router.counts,
        "traces": {**counts, "pending": line.recorder.pending, "stored": _stored(line)},
    }


def _active(line: TaskLine) -> str | None:
    """The version that the home names, else the one that is served: a damaged home must not hide the other tasks."""
    try:
        return PolicyRegistry(line.home).active_version()
    except (TracerError, OSError):
        return line.policy.version if line.policy is not None else None


def _stored(line: TaskLine) -> int | None:
    """Traces of the task, None while the store cannot be read."""
    try:
        return line.store.count()
    except StoreError:
        return None


def _policies(line: TaskLine) -> dict[str, Any]:
    registry = PolicyRegistry(line.home)
    events = [
        {
            "time": None if event.time is None else event.time.isoformat(),
            "event": event.event,
            "before": event.before,
            "after": event.after,
            "note": event.note,
        }
        for event in registry.history()
    ]
    return {
        "task": line.task.name, "active": registry.active_version(), "versions": list(registry.versions()),
        "history": events,
    }  # fmt: skip


def _answer_to(error: Exception) -> Response:
    match error:
        case KeyError():
            return _problem(404, "there is no such task")
        case TooLargeError():
            return _problem(413, "the body is too large")
        case TracerError():
            status = 409 if isinstance(error, BusyError) else 503 if isinstance(error, StoreError) else 400
            return _problem(status, str(error))
        case OSError():
            return _problem(503, f"the home folder cannot be used: {error.strerror or type(error).__name__}")
        case _:
            return _problem(400, "the client left")


def _problem(status: int, message: str) -> Response:
    return JSONResponse({"error": {"message": message}}, status_code=status)
