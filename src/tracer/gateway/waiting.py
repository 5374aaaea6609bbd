"""Waiting with a bound that costs nothing where there is nothing to wait for."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Generator
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class Within(Generic[T]):
    """Await it for what ``work`` returns, or TimeoutError after ``seconds``.

    As ``asyncio.wait_for``, but no timer is made for work that is done at once, as the body of a small request is: it
    lies there with its head.
    """

    __slots__ = ("_seconds", "_work")

    def __init__(self, work: Awaitable[T], seconds: float) -> None:
        self._work, self._seconds = work, seconds

    def __await__(self) -> Generator[Any, Any, T]:
        steps = self._work.__await__()
        try:
            first = next(steps)
        except StopIteration as done:
            result: T = done.value
            return result
        return (yield from _bounded(first, steps, self._seconds))


def _bounded(first: Any, steps: Generator[Any, Any, T], seconds: float) -> Generator[Any, Any, T]:
    task, expired = asyncio.current_task(), False
    assert task is not None  # noqa: S101 - whoever awaits is one
    before = task.cancelling()

    def expire() -> None:
        nonlocal expired
        expired = True
        task.cancel()

    timer = asyncio.get_running_loop().call_later(seconds, expire)
    try:
        try:
            yield first
        except BaseException as error:
            steps.throw(error)
            raise
        return (yield from steps)
    except asyncio.CancelledError:
        if expired and task.uncancel() <= before:
            raise TimeoutError from None
        raise
    finally:
        timer.cancel()
