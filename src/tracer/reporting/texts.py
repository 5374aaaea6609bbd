"""Texts of strangers made fit to show: no control characters, no half characters, no novels."""

from __future__ import annotations

import re
from typing import Any

LONGEST = 2_000
"""Characters of a text that a report carries."""

_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
_HALF = re.compile(r"[\ud800-\udfff]")
_UNKNOWN = "\N{REPLACEMENT CHARACTER}"


def clean(text: str) -> str:
    """The text without what no page can show: controls become their pictures, lone surrogates a question mark.

    Marks that turn the writing direction stay; the page isolates each text, so they reach no further.
    """
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    return _HALF.sub(_UNKNOWN, _CONTROL.sub(_picture, text))


def cut(text: str, longest: int = LONGEST) -> str:
    """The beginning of a long text, with its full length said."""
    if len(text) <= longest:
        return text
    return f"{text[:longest].rstrip()}\N{HORIZONTAL ELLIPSIS} [{len(text):,} characters]"


def shown(text: str, longest: int = LONGEST) -> str:
    """Cut, then clean, so that a text of megabytes costs nothing."""
    return clean(cut(text, longest))


def presentable(value: Any) -> Any:
    """The same JSON-ready value with every string fit to show, keys too."""
    if isinstance(value, str):
        return shown(value)
    if isinstance(value, dict):
        return {clean(str(key)): presentable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [presentable(item) for item in value]
    return value


def _picture(match: re.Match[str]) -> str:
    code = ord(match[0])
    if code < 0x20:
        return chr(0x2400 + code)
    return "\N{SYMBOL FOR DELETE}" if code == 0x7F else _UNKNOWN
