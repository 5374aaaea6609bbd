"""Teachers: what answers a deferred input. Any callable, sync or async, from text to label."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping

from tracer.errors import RouteError

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
