"""The target of a request, path and query, as it goes to an upstream: unchanged, and below its base URL."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

import httpx2

__all__ = ["LONGEST", "Base", "TargetError", "check", "stands_for_v1"]

LONGEST = 64 * 1024
_TARGET = re.compile(r"/(?!/)[!\"$-~]*")
"""What HTTP/1.1 can carry, but for the mark of a fragment, which no client sends."""
_CLIMBS = re.compile(r"(?:^|/)(?:\.|%2e){1,2}(?:/|$)", re.IGNORECASE)
_HIDDEN = re.compile(r"%2f|%5c|\\", re.IGNORECASE)
_VERSION = re.compile(r"v\d+[a-z0-9]*", re.IGNORECASE)


class TargetError(ValueError):
    """A target that is not sent on; with the status to tell."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def check(target: str) -> None:
    """Raise TargetError for a target that is not sent on.

    Steps upwards would leave the base URL's path, and reach what is not this gateway's with its key; slashes that are
    encoded hide some from whoever reads the path here.
    """
    if len(target) > LONGEST:
        raise TargetError(414, "the target is longer than this gateway takes")
    if _TARGET.fullmatch(target) is None:
        raise TargetError(400, "the target is malformed")
    path = target.partition("?")[0]
    if _CLIMBS.search(path) is not None or _HIDDEN.search(path) is not None:
        raise TargetError(400, "the target's path has dot segments or encoded slashes")


class Base:
    """Where an upstream is: ``url``, and the path before that of each request.

    ``instead``: the base's path stands in the place of the client's ``/v1``, as the SDKs have it; by default where it
    ends in ``/v1``.
    """

    __slots__ = ("_instead", "_path", "url")

    def __init__(self, base_url: str, *, instead: bool | None = None) -> None:
        self.url = httpx2.URL(base_url)
        self._path = self.url.raw_path.rstrip(b"/")
        self._instead = self._path.endswith(b"/v1") if instead is None else instead

    def target(self, asked: str) -> bytes:
        """What the upstream is asked for where a client sent this path and query."""
        target = asked.encode("ascii")
        if self._instead and (target == b"/v1" or target.startswith((b"/v1/", b"/v1?"))):
            target = target[3:]
        return self._path + target


def stands_for_v1(base_url: str, kind: str) -> bool:
    """Whether a base URL stands for a client's ``/v1``: it ends so, or has a version of its own, as in
    ``/v1beta/openai``. Anthropic's SDK adds ``/v1`` to what it is given."""
    path = [part for part in urlsplit(base_url).path.split("/") if part]
    if kind == "anthropic" or not path or path[-1] == "v1":
        return bool(path) and path[-1] == "v1"
    return any(_VERSION.fullmatch(part) for part in path)
