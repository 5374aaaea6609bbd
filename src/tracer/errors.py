"""Every error that Tracer raises on purpose.

::

    TracerError
    ├── ConfigError          a setting that cannot be (also a ValueError)
    ├── TraceError           a bad log of traces (also a ValueError)
    │   ├── BadTraceError    one bad record: file, line, key, value
    │   ├── StoreError       a trace store that cannot be opened, read or written
    │   └── NothingNewError  an update without a trace that it has not learned from
    ├── FeatureError         texts or embeddings that do not fit
    │   └── EmbedderError    an embedder that failed, or is not the one the policy knows
    ├── TrainingError        no candidate could be trained
    ├── PolicyError          a policy that cannot be used
    │   └── ArchiveError     a truncated, tampered or foreign archive
    ├── RouteError           a request that no side can answer
    │   ├── CodecError       a body on the wire that is not understood, or a label that no answer can carry
    │   └── UpstreamError    an upstream that cannot be asked, or did not answer to the end
    ├── BusyError            another process is at it: try again when it is done
    └── MissingExtraError    an optional dependency is not installed (also an ImportError)
"""

from __future__ import annotations

from typing import Literal

UpstreamFault = Literal["timeout", "connect", "breaker_open", "busy", "status", "cut"]


class TracerError(Exception):
    """The root of the tree: catch it to catch all that Tracer raises on purpose."""


class BusyError(TracerError):
    """Another process holds the lock of a home folder or of its store."""


class ConfigError(TracerError, ValueError):
    """A setting with an impossible value."""


class TraceError(TracerError, ValueError):
    """A log of traces that cannot be read or used."""


class BadTraceError(TraceError):
    """One record of a log that is no trace. The message is ``file:line: key: value: problem``."""

    def __init__(self, source: str, line: int, key: str, value: object, problem: str) -> None:
        self.source, self.line, self.key, self.problem = source, line, key, problem
        shown = repr(value)
        self.value = shown if len(shown) <= 80 else shown[:77] + "..."
        super().__init__(f"{source}:{line}: {key} = {self.value}: {problem}")


class StoreError(TraceError):
    """A trace store that cannot be opened, read or written: a lock, a full disk, another store than expected."""


class NothingNewError(TraceError):
    """An update was asked for, and there is no trace that the last one did not see."""


class FeatureError(TracerError, ValueError):
    """Texts or embeddings whose number, dimension or values do not fit."""


class EmbedderError(FeatureError):
    """An embedder failed, or is not the one that the policy was certified with."""


class TrainingError(TracerError):
    """No candidate of the pool could be trained."""


class PolicyError(TracerError):
    """A policy that cannot be used: none active, unknown version, wrong input."""


class ArchiveError(PolicyError):
    """A policy archive that is truncated, tampered with, or not ours."""


class RouteError(TracerError):
    """A request that neither the surrogate nor the teacher can answer."""


class CodecError(RouteError):
    """A body on the wire that is not understood, or a label that no answer to it can carry."""


class UpstreamError(RouteError):
    """An upstream that cannot be asked, or did not answer to the end. The message holds no content and no key.

    ``kind``: ``connect``, no request was sent; ``breaker_open``, likewise, for the upstream failed of late;
    ``busy``, likewise, for as many as may ask it do;
    ``timeout``, it took too long; ``cut``, the connection ended within the answer or before it; ``status``, it
    answered with the error ``status``. ``retry_after``: seconds after which to ask again, where that is known.
    """

    def __init__(
        self,
        upstream: str,
        kind: UpstreamFault,
        problem: str,
        *,
        status: int | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(f"upstream {upstream!r}: {problem}")
        self.upstream, self.kind, self.status, self.retry_after = upstream, kind, status, retry_after


class MissingExtraError(TracerError, ImportError):
    """An optional dependency is missing; the message says what to install."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(f"{purpose} needs {package}: pip install 'tracer-router[{extra}]'")
        self.package, self.extra = package, extra
