"""Taking up a changed ``tracer.yaml``: on SIGHUP, and by itself where ``reload: true`` says so."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path

from tracer.errors import TracerError

log = logging.getLogger("tracer.gateway")

POLL_S = 1.0
Reload = Callable[[], Awaitable[None]]
Mark = tuple[int, int, int]


async def reload_logged(reload: Reload, why: str) -> None:
    """Reload; what cannot be used is logged, and the old state goes on."""
    try:
        await reload()
    except (TracerError, OSError) as error:
        problem = str(error) if isinstance(error, TracerError) else type(error).__name__
        log.error("%s: the configuration cannot be used, the old one goes on: %s", why, problem)
    else:
        log.warning("%s: the configuration was read again", why)


def on_hangup(start: Callable[[Awaitable[None]], None], reload: Reload) -> Callable[[], None]:
    """Reload on SIGHUP from now on; ``start`` runs work beside. What is returned ends it. Only in a main thread."""
    loop = asyncio.get_running_loop()
    try:
        loop.add_signal_handler(signal.SIGHUP, lambda: start(reload_logged(reload, "SIGHUP")))
    except (ValueError, RuntimeError, NotImplementedError):
        return lambda: None  # another thread, as in tests: signals are not for it

    def end() -> None:
        loop.remove_signal_handler(signal.SIGHUP)

    return end


async def watched(path: Path, reload: Reload, poll_s: float = POLL_S, *, anew: bool = False) -> None:
    """Reload whenever the file has changed and then stayed as it is for ``poll_s`` seconds. Runs until cancelled.

    A link that leads to another file, as where Kubernetes mounts a ConfigMap, has changed too. ``anew``: what it is
    now has not been taken up either.
    """
    seen = _mark(path)
    taken = None if anew else seen
    while True:
        await asyncio.sleep(poll_s)
        before, seen = seen, _mark(path)
        if seen is not None and seen == before and seen != taken:
            taken = seen
            await reload_logged(reload, f"{path.name} changed")


def _mark(path: Path) -> Mark | None:
    try:
        at = path.stat()
    except OSError:
        return None  # being replaced, perhaps
    return at.st_mtime_ns, at.st_size, at.st_ino
