"""Threads: our own over chunks and recipes, or those of the linear algebra, never both.

Two threads that both start the linear algebra's threads wait for each other; results do not depend on either.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

LARGE = 200_000
"""Up to as many training rows recipes are trained beside each other; above, one after another and their rows beside
each other, since every training works on a copy of its rows."""


def n_workers(n_tasks: int) -> int:
    """Threads for ``n_tasks`` tasks that keep a processor busy each."""
    return max(min(os.cpu_count() or 1, n_tasks), 1)


class _Blas:
    """One thread for the linear algebra of whoever is inside.

    Some libraries keep the number for the process, some for each thread. So each thread sets its own, and sets back
    what the process had: the last one to leave leaves everything as it was.
    """

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Start anew: in a child of a fork no other thread lives, whatever the parent's held."""
        self._lock = threading.Lock()
        self._inside = threading.local()
        self._holders = 0
        self._libraries: list[Any] = []
        self._before: list[int] = []
        self._with_scipy = False

    def enter(self) -> None:
        depth = getattr(self._inside, "depth", 0)
        self._inside.depth = depth + 1
        if depth:
            return
        with self._lock:
            if not self._holders:
                self._look()
                self._before = [library.num_threads for library in self._libraries]
            self._holders += 1
            for library in self._libraries:
                library.set_num_threads(1)

    def _look(self) -> None:
        """Find the libraries. It takes milliseconds, so only again once scipy has brought one of its own."""
        scipy = "scipy.linalg" in sys.modules
        if self._libraries and scipy == self._with_scipy:
            return
        from threadpoolctl import ThreadpoolController

        self._libraries = [c for c in ThreadpoolController().lib_controllers if c.user_api == "blas"]
        self._with_scipy = scipy

    def leave(self) -> None:
        self._inside.depth -= 1
        if self._inside.depth:
            return
        with self._lock:
            self._holders -= 1
            for library, n in zip(self._libraries, self._before, strict=True):
                library.set_num_threads(n)


_BLAS = _Blas()
os.register_at_fork(after_in_child=_BLAS.forget)


@contextmanager
def one_thread_each() -> Iterator[None]:
    """One thread for each call of the linear algebra, for this thread and those that it starts inside."""
    _BLAS.enter()
    try:
        yield
    finally:
        _BLAS.leave()
