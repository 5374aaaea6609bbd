"""Teachers: what answers a deferred input. Any callable, sync or async, from text to label."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from types import CoroutineType

from tracer.errors import RouteError
from tracer.types import FAILED

Teacher = Callable[[str], str]
AsyncTeacher = Callable[[str], Awaitable[str]]


class ReplayTeacher:
    """Answers from recorded labels, for demos, back-tests and tests; counts its calls."""

    def __init__(self, labels: Mapping[str, str]) -> None:
        self._labels = dict(labels)
        self.n_calls = 0

    def __call__(self, text: str) -> str:
        """The recorded label. Raises RouteError for a text that was never recorded."""
        self.n_calls += 1
        try:
            return self._labels[text]
        except KeyError:
            raise RouteError(f"no recorded label for {text[:60]!r}") from None


def label_of(reply: object) -> str:
    """A teacher's reply, checked. Raises RouteError where it is no label."""
    if isinstance(reply, CoroutineType):
        reply.close()
        raise RouteError("the teacher is async: give it as async_teacher, and use aroute")
    if not isinstance(reply, str) or not reply or reply == FAILED:
        raise RouteError(f"the teacher answered {reply!r}, which is no label")
    return reply


def teacher_failed(error: Exception) -> RouteError:
    """The error of a request whose teacher failed, with the cause."""
    if isinstance(error, RouteError):
        return error
    failure = RouteError(f"the teacher failed: {type(error).__name__}: {error}")
    failure.__cause__ = error
    return failure
