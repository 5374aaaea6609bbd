"""Regular expressions that take time linear in the text, whatever the text: RE2 rather than Python's `re`.

The texts come from whoever may call the gateway, and one that backtracks would hold up everybody else. RE2 has no
back-references and no look-around; its syntax is at https://github.com/google/re2/wiki/Syntax.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple, Protocol

from tracer.errors import ConfigError, MissingExtraError

_MAX_MEMORY = 8 << 20
MASK = "[redacted]"


class _Found(Protocol):
    def span(self, group: int, /) -> tuple[int, int]: ...


class Pattern(Protocol):
    """What is used of a compiled RE2 pattern."""

    groups: int
    groupindex: dict[str, int]

    def search(self, text: str, /) -> _Found | None: ...

    def sub(self, replacement: str, text: str, /) -> str: ...


class Spans(NamedTuple):
    """Where a pattern matched: the wanted group, and every group that took part, as (start, end) in the text."""

    wanted: tuple[int, int]
    groups: tuple[tuple[int, int], ...]


@lru_cache(maxsize=256)
def compiled(pattern: str) -> Pattern:
    """A compiled pattern. Raises ConfigError with RE2's reason, MissingExtraError where RE2 is not installed."""
    try:
        import re2
    except ImportError as error:
        raise MissingExtraError("google-re2", "gateway", "a pattern on requests") from error
    options = re2.Options()
    options.max_mem, options.log_errors = _MAX_MEMORY, False
    try:
        found: Pattern = re2.compile(pattern, options)
    except UnicodeEncodeError as error:
        raise ConfigError("is no RE2 pattern: it is no Unicode") from error
    except re2.error as error:
        reason = error.args[0].decode() if isinstance(error.args[0], bytes) else str(error.args[0])
        raise ConfigError(f"is no RE2 pattern: {reason}") from error
    return found


def escaped(text: str) -> str:
    """A pattern that matches this text alone."""
    compiled("")  # says what to install
    import re2

    quoted: str = re2.escape(text)
    return quoted


def group_number(pattern: str, group: str | int) -> int:
    """The number of a group by name or number. Raises ConfigError where the pattern has none such."""
    found = compiled(pattern)
    number = found.groupindex.get(group, -1) if isinstance(group, str) else group
    if not 0 <= number <= found.groups:
        names = ", ".join([*map(repr, found.groupindex), f"1 to {found.groups}" if found.groups else "no group"])
        raise ConfigError(f"the pattern has {names}")
    return number


def spans(pattern: str, group: str | int, text: str) -> Spans | None:
    """Where the pattern first matches, or None: no match, the group took no part, or the text is no Unicode."""
    expression, number = compiled(pattern), group_number(pattern, group)
    try:
        found = expression.search(text)
    except UnicodeEncodeError:
        return None
    if found is None or found.span(number)[0] < 0:
        return None
    taken = (found.span(i) for i in range(1, expression.groups + 1))
    return Spans(found.span(number), tuple(span for span in taken if span[0] >= 0))


def masked(text: str, expressions: tuple[str, ...]) -> str:
    """The text with each match of each pattern replaced by ``[redacted]``; a text that is no Unicode goes wholly."""
    try:
        for expression in expressions:
            text = compiled(expression).sub(MASK, text)
    except UnicodeEncodeError:
        return MASK
    return text
