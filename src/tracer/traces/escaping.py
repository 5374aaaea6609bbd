"""Texts that no database holds: lone surrogates, which JSON can bring, and NUL, which PostgreSQL refuses.

Each is written as U+FDD0 and four hexadecimal digits; U+FDD0 is a noncharacter, which no text has business to hold, and
is written so itself where one does. All other texts stay as they are, and no two texts become one.
"""

from __future__ import annotations

import re

_MARK = "\ufdd0"
_UNSAFE = re.compile("[\x00\ud800-\udfff\ufdd0]")
_WRITTEN = re.compile(_MARK + "([0-9a-f]{4})")


def escaped(text: str) -> str:
    """The text as UTF-8 without NUL can hold it."""
    if text.isascii() and "\0" not in text:
        return text
    return _UNSAFE.sub(lambda found: f"{_MARK}{ord(found[0]):04x}", text)


def unescaped(text: str) -> str:
    """The text that ``escaped`` was given."""
    return _WRITTEN.sub(lambda found: chr(int(found[1], 16)), text) if _MARK in text else text
