"""The page's routes. Reading is done in threads; what changes anything needs the admin's session and a form of ours."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl

from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import Route

from tracer.errors import TracerError
from tracer.flywheel import switching
from tracer.gateway.lines import TaskLine
from tracer.gateway.pages.access import SESSION, SESSION_S, Access, Visitor, secure
from tracer.gateway.pages.rendered import Rendered
from tracer.gateway.reading import TooLargeError, read_body
from tracer.gateway.relaying import ClientGoneError
from tracer.gateway.serving import Gateway

if TYPE_CHECKING:
    from tracer.gateway.pages.reports import Report

log = logging.getLogger("tracer.gateway")

STRANGER_S = 3.0
"""Seconds that a page is kept for those who are not logged in."""
_FORM = 8 * 1024
_PATIENCE_S = 1.5
_WRITING = "It reads all stored traces, beside the requests. This page opens it as soon as it is there."
_CLOSED = "A report quotes what was asked and answered: set an admin token in tracer.yaml to read it here."
_REFUSED = "This form does not come from a page of yours, or you were logged out since. Go back, reload, and try again."
Shown = Callable[[Request, Visitor], Awaitable[Response]]
Done = Callable[[Request, Visitor, Mapping[str, str]], Awaitable[Response]]


class Pages:
    """``/``, ``/tasks/NAME`` and its report, login, and the forms."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway, self.access = gateway, Access(gateway)
        self._rendered = Rendered(STRANGER_S)

    def routes(self) -> list[Route]:
        """What there is."""
        one = "/tasks/{task}"
        shown = {
            "/": self._shown(self._overview), "/login": self._shown(self._login), one: self._shown(self._task),
            f"{one}/report": self._shown(self._report), "/assets/{digest}/{name}": self._asset,
        }  # fmt: skip
        forms = {
            "/login": self._token, "/logout": self._formed(self._logout), "/off": self._formed(self._off),
            f"{one}/promote": self._formed(self._promote), f"{one}/rollback": self._formed(self._rollback),
            f"{one}/pause": self._formed(self._pause),
        }  # fmt: skip
        told: dict[str, Any] = {"include_in_schema": False}  # for browsers, not for clients of the API
        return [
            *(Route(path, endpoint, methods=["GET"], **told) for path, endpoint in shown.items()),
            *(Route(path, endpoint, methods=["POST"], **told) for path, endpoint in forms.items()),
        ]

    # What is shown.

    async def _overview(self, request: Request, visitor: Visitor) -> Response:
        gateway, done = self._gateway, request.query_params.get("done", "")

        async def make() -> str:
            looks = await gateway.looks()
            known = await looks.of(gateway.serving.lines.values())
            found = await _views().proposals_of(gateway)
            return await looks.render(lambda: _views().overview(gateway, known, found, visitor, done))

        return _page(await self._made(visitor, ("/", done in _views().DONE and done), make))

    async def _task(self, request: Request, visitor: Visitor) -> Response:
        return await self._task_page(request, visitor)

    async def _task_page(self, request: Request, visitor: Visitor, problem: str = "", status: int = 200) -> Response:
        gateway, line = self._gateway, self._line(request)
        span, done = request.query_params.get("range", "7d"), request.query_params.get("done", "")
        span = span if span in _views().RANGES else "7d"

        async def make() -> str:
            looks = await gateway.looks()
            (look,) = await looks.of([line])
            texts = await looks.texts(line) if visitor.texts else None
            shown = span if span in look.ranges else "7d"
            return await looks.render(
                lambda: _views().task_page(gateway, line, look, texts, visitor, span=shown, done=done, problem=problem)
            )

        key = line.task.name, span, done in _views().DONE and done
        return _page(await self._made(visitor, key, make), status)

    async def _made(self, visitor: Visitor, key: tuple[object, ...], make: Callable[[], Awaitable[str]]) -> str:
        """A page; a stranger's is the same for all of them, and kept for a moment."""
        if visitor.texts or visitor.admin:
            return await make()
        state = id(self._gateway.serving), (await self._gateway.looks()).n_forgotten
        return await self._rendered.of((*state, visitor, *key), make)

    async def _report(self, request: Request, visitor: Visitor) -> Response:
        line = self._line(request)
        if not visitor.texts:
            return _see("/login") if visitor.can_login else self._message(visitor, 403, "For the admin", _CLOSED)
        try:
            report = await self._gateway.report(line, _PATIENCE_S)
        except TracerError as error:
            return self._message(visitor, 409, "There is no report", str(error))
        if report is None:
            waiting = self._message(visitor, 202, "The report is being written", _WRITING)
            waiting.headers["refresh"] = "2"
            return waiting
        return report_page(report)

    async def _login(self, _: Request, visitor: Visitor) -> Response:
        if visitor.admin or not visitor.can_login:
            return _see("/")
        return _page(_views().login_page(self._gateway, visitor))

    async def _asset(self, request: Request) -> Response:
        try:
            name = request.path_params["name"]
            content, kind = _rendering().asset(name), _rendering().ASSETS[name]
        except KeyError:
            return self._message(Visitor(), 404, "There is nothing here", "The page links to no such file.")
        headers = {**_rendering().HEADERS, "cache-control": "public, max-age=31536000, immutable"}
        return Response(content, media_type=kind, headers=headers)

    # What is done.

    async def _token(self, request: Request) -> Response:
        if self.access.misdirected(request):
            return self._misdirected()
        visitor = self.access.visitor(request)
        given = await _form(request)
        if given is None or not self.access.same_site(request):
            return self._message(visitor, 403, "Not logged in", _REFUSED)
        if not visitor.can_login:
            return _see("/")
        token = given.get("token", "").strip()
        wait = self.access.wait(request)
        if wait > 0.0 and not (self.access.cheap() and await self.access.check(request, token)):
            words = f"Too many tokens were wrong. Try again in {max(1, round(wait))} seconds."
            return _page(_views().login_page(self._gateway, visitor, words), 429, {"retry-after": str(int(wait) + 1)})
        # Counted first: attempts side by side must not all find room.
        self.access.failed(request)
        if not await self.access.check(request, token):
            log.warning("a login to the page failed")
            return _page(_views().login_page(self._gateway, visitor, "This is not the admin token."), 401)
        self.access.succeeded(request)
        response = _see("/?done=login")
        response.set_cookie(
            SESSION, await asyncio.to_thread(self.access.begin), max_age=SESSION_S, path="/", httponly=True,
            samesite="strict", secure=secure(request),
        )  # fmt: skip
        log.warning("an admin logged in to the page")
        return response

    async def _logout(self, request: Request, _: Visitor, __: Mapping[str, str]) -> Response:
        await asyncio.to_thread(self.access.end, request)
        response = _see("/?done=logout")
        response.delete_cookie(SESSION, path="/", httponly=True, samesite="strict", secure=secure(request))
        return response

    async def _off(self, request: Request, _: Visitor, given: Mapping[str, str]) -> Response:
        off = given.get("off") != "0"
        await asyncio.to_thread(self._gateway.switch_off, off)
        log.warning("switched %s by an admin", "off: everything goes to the teachers" if off else "on")
        for name in self._gateway.serving.lines:
            (await self._gateway.looks()).forget(name)
        return _see("/?done=off" if off else "/?done=on")

    async def _promote(self, request: Request, visitor: Visitor, given: Mapping[str, str]) -> Response:
        line, version = self._line(request), given.get("version", "")
        return await self._switch(
            request, visitor, "promote", lambda: switching.promote(line.home, version, note=_note(given))
        )

    async def _rollback(self, request: Request, visitor: Visitor, given: Mapping[str, str]) -> Response:
        line = self._line(request)
        return await self._switch(request, visitor, "rollback", lambda: _back(line, _note(given)))

    async def _pause(self, request: Request, visitor: Visitor, given: Mapping[str, str]) -> Response:
        line = self._line(request)
        return await self._switch(
            request, visitor, "pause", lambda: switching.promote(line.home, None, note=_note(given))
        )

    async def _switch(self, request: Request, visitor: Visitor, what: str, work: Callable[[], None]) -> Response:
        line = self._line(request)
        try:
            await asyncio.to_thread(work)
        except TracerError as error:
            return await self._task_page(request, visitor, str(error), 409)
        log.warning("%s by an admin on the page: task %s", what, line.task.name)
        (await self._gateway.looks()).forget(line.task.name)
        return _see(f"/tasks/{line.task.name}?done={what}")

    # Around all of them.

    def _shown(self, work: Shown) -> Callable[[Request], Awaitable[Response]]:
        async def endpoint(request: Request) -> Response:
            if self.access.misdirected(request):
                return self._misdirected()
            visitor = self.access.visitor(request)
            await self._gateway.looks()  # loads in a thread what the pages are made with
            try:
                return await work(request, visitor)
            except KeyError:
                return self._message(
                    visitor, 404, "There is no such task", "It may have been taken out of the settings."
                )

        return endpoint

    def _formed(self, work: Done) -> Callable[[Request], Awaitable[Response]]:
        async def endpoint(request: Request) -> Response:
            if self.access.misdirected(request):
                return self._misdirected()
            visitor = self.access.visitor(request)
            given = await _form(request)
            await self._gateway.looks()
            if given is None or not self.access.allows(request, visitor, given.get("csrf", "")):
                return self._message(visitor, 403, "Nothing was changed", _REFUSED)
            try:
                return await work(request, visitor, given)
            except KeyError:
                return self._message(visitor, 404, "There is no such task", "Nothing was changed.")

        return endpoint

    def _misdirected(self) -> Response:
        words = (
            "This gateway asks for no key, so its page opens under this machine's own names alone: use "
            "http://127.0.0.1 with its port, or set keys and an admin token in tracer.yaml."
        )
        return self._message(Visitor(), 421, "Not under this name", words)

    def _message(self, visitor: Visitor, status: int, title: str, words: str) -> Response:
        return _page(_views().message_page(self._gateway, visitor, title, words), status)

    def _line(self, request: Request) -> TaskLine:
        return self._gateway.serving.lines[request.path_params["task"]]


async def _form(request: Request) -> dict[str, str] | None:
    """The fields of a form; None where it is none, or too large."""
    if not request.headers.get("content-type", "").startswith("application/x-www-form-urlencoded"):
        return None
    try:
        body = await read_body(request.receive, dict(request.headers), _FORM)
        return dict(parse_qsl(body.decode("ascii"), keep_blank_values=True, max_num_fields=20, errors="replace"))
    except (TooLargeError, ClientGoneError, ValueError):
        return None


def report_page(report: Report) -> Response:
    """A report as it is handed out: alone in a sandbox, where it may run its own script and reach nothing."""
    from tracer.reporting import html

    policy = {"content-security-policy": html.content_policy(), "referrer-policy": "no-referrer"}
    return HTMLResponse(report.html, headers={**_rendering().HEADERS, **policy})


def _note(given: Mapping[str, str]) -> str:
    return given.get("note", "").strip()[:500]


def _back(line: TaskLine, note: str) -> None:
    switching.roll_back(line.home, note=note)


def _page(content: str, status: int = 200, more: Mapping[str, str] | None = None) -> Response:
    return HTMLResponse(content, status, headers={**_rendering().HEADERS, **(more or {})})


def _see(path: str) -> Response:
    return RedirectResponse(path, 303, headers=dict(_rendering().HEADERS))


def _views() -> Any:
    from tracer.gateway.pages import views

    return views


def _rendering() -> Any:
    from tracer.gateway.pages import rendering

    return rendering
