"""What the workers of one gateway tell each other while they run: their numbers, and the settings in force.

They share a folder that the supervisor makes and removes. Each writes its metrics there once a second; whoever is asked
for them adds all up. What a worker that died had counted goes on to count.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from prometheus_client import Metric, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

from tracer import storage

GONE = "gone.prom"
_RELOAD = "reload"
_SETTINGS = "settings.yaml"
_LIVING = "living"
_WAIT_S = 5.0
_ADDED = frozenset({"tracer_queue_depth", "tracer_upstream_in_flight", "tracer_upstream_waiting"})
"""Gauges of what is under way, which the workers have together."""
_KEPT = frozenset({"tracer_traces_dropped", "tracer_traces_written"})
"""Gauges that count: those of workers that died too."""
_WORST = frozenset({"tracer_upstream_breaker"})
"""Gauges that say 1 where any worker does. All others are about what the workers share: one of them speaks for all."""


class Pool:
    """The folder, as worker ``index`` sees it."""

    def __init__(self, folder: Path, index: int) -> None:
        self._folder, self._own = folder, folder / _name(index)
        self.read = ""
        """Text of the settings that were read last; `keep` is called once they are in force."""
        # A reload that was asked for after the kept settings came in force may not be in them.
        self._seen = b"" if _age(folder / _RELOAD) > _age(folder / _SETTINGS) > 0 else self._reload()

    def kept(self) -> str | None:
        """Text of the settings in force, which the other workers serve by; None where it is not known."""
        return kept(self._folder)

    def differs(self, path: Path) -> bool:
        """Whether the settings in a file are others than those that were kept."""
        try:
            return self.kept() not in (None, path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError):
            return False

    def keep(self) -> None:
        """What was read last is in force: a worker that starts now is to take it, whatever the file says then."""
        if self.read:
            with contextlib.suppress(OSError):  # the supervisor, which makes the folder anew, has the text before
                keep(self._folder, self.read)

    def living(self) -> tuple[int, int] | None:
        """How many workers answer, and how many are to; None where the supervisor has not said so yet."""
        told = _read(self._folder / _LIVING).split()
        return (int(told[0]), int(told[1])) if len(told) == 2 else None

    def merged(self, own: bytes) -> bytes:
        """The metrics of all workers, from one's own; the others' are a second old at most. Reads files."""
        with storage.locked(self._folder, what="adding metrics up", wait_s=_WAIT_S):
            self.publish(own)  # what was told must not be lost where this worker dies
            others = [_read(path) for path in sorted(self._folder.glob("worker-*.prom")) if path != self._own]
            return add_up(own, others, _read(self._folder / GONE))

    def publish(self, own: bytes) -> None:
        """Let the others see one's metrics."""
        _replace(self._own, own)

    def announce(self) -> None:
        """Tell the others to read the settings again."""
        announce(self._folder)
        self._seen = self._reload()

    def asked(self) -> bool:
        """Whether another worker announced a reload since the last look."""
        before, self._seen = self._seen, self._reload()
        return before != self._seen

    def _reload(self) -> bytes:
        return _read(self._folder / _RELOAD)


def made(folder: Path) -> None:
    """Make the folder, where something has cleaned it away. Raises OSError where another's is in its place."""
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    if folder.stat().st_uid != os.geteuid():
        raise PermissionError(f"{folder}: belongs to somebody else")
    folder.chmod(0o700)  # a worker that came first made it for all to read


def announce(folder: Path) -> None:
    """Tell all workers to read the settings again."""
    _replace(folder / _RELOAD, secrets.token_hex(8).encode())


def keep(folder: Path, settings: str) -> None:
    """Keep the text of the settings in force."""
    _replace(folder / _SETTINGS, settings.encode())


def kept(folder: Path) -> str | None:
    """The text that was kept last; None where there is none, or where somebody else has put it there."""
    path = folder / _SETTINGS
    try:
        return path.read_text(encoding="utf-8") if path.stat().st_uid == os.geteuid() else None
    except OSError:
        return None


def bury(folder: Path, index: int) -> None:
    """Keep what a worker that died had counted."""
    with storage.locked(folder, what="adding metrics up", wait_s=_WAIT_S):
        last = _read(folder / _name(index))
        _replace(folder / GONE, add_up(b"", (), _read(folder / GONE), last))
        (folder / _name(index)).unlink(missing_ok=True)


def count(folder: Path, running: Sequence[bool]) -> None:
    """Tell how many workers answer: those that run and have come as far as to publish."""
    n = sum(runs and (folder / _name(index)).exists() for index, runs in enumerate(running))
    _replace(folder / _LIVING, f"{n} {len(running)}".encode())


def served(folder: Path) -> bool:
    """Whether a worker ever came as far as to answer."""
    return any(folder.glob("*.prom"))


def add_up(own: bytes, others: Iterable[bytes], *gone: bytes) -> bytes:
    """Expositions as one: counters and histograms of all, ``gone`` too; gauges as their names say."""
    found: dict[str, _Family] = {}
    for content, living in [(own, True), *((other, True) for other in others), *((past, False) for past in gone)]:
        for metric in text_string_to_metric_families(content.decode()):
            name, kind = metric.name, metric.type
            if name.endswith("_created"):
                continue
            if kind == "gauge" and not living and name not in _KEPT:
                continue
            family = found.setdefault(name, _Family(metric, content is own))
            family.take(metric, first=content is own)
    if own:
        _cover(found)
    return generate_latest(_Collected([family.metric() for family in found.values()]))


class _Family:
    """The samples of one name, by name and labels."""

    def __init__(self, like: Metric, own: bool) -> None:
        self._like, self._own = like, own
        self.values: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}
        name = like.name
        self._sums = like.type != "gauge" or name in _ADDED or name in _KEPT
        self._worst = name in _WORST

    def take(self, metric: Metric, *, first: bool) -> None:
        if not (self._sums or self._worst or first or not self._own):
            return
        for sample in metric.samples:
            key = sample.name, tuple(sample.labels.items())
            before = self.values.get(key)
            if before is None:
                self.values[key] = sample.value
            elif self._sums:
                self.values[key] = before + sample.value
            elif self._worst:
                self.values[key] = max(before, sample.value)

    def metric(self) -> Metric:
        out = Metric(self._like.name, self._like.documentation, self._like.type)
        out.samples = [Sample(name, dict(labels), value) for (name, labels), value in self.values.items()]
        return out


class _Collected(Collector):
    def __init__(self, metrics: Iterable[Metric]) -> None:
        self._metrics = metrics

    def collect(self) -> Iterator[Metric]:
        """The metrics given."""
        return iter(self._metrics)


def _cover(found: dict[str, _Family]) -> None:
    """Shares cannot be added: the coverage is made anew of the requests."""
    coverage, requests = found.get("tracer_coverage"), found.get("tracer_requests")
    if coverage is None or requests is None:
        return
    totals: dict[str, list[float]] = {}
    for (_, labels), value in requests.values.items():
        told = dict(labels)
        total = totals.setdefault(told.get("task", ""), [0.0, 0.0])
        total[0] += value
        total[1] += value if told.get("decision") == "handled" else 0.0
    for key in coverage.values:
        n, handled = totals.get(dict(key[1]).get("task", ""), (0.0, 0.0))
        coverage.values[key] = handled / n if n else 0.0


def _name(index: int) -> str:
    return f"worker-{index}.prom"


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""


def _age(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0


def _replace(path: Path, content: bytes) -> None:
    """Replace a file at once. Nothing here is to outlive a crash of the machine, so nothing is synced."""
    beside = path.with_name(f".{path.name}-{os.getpid()}")
    try:
        beside.write_bytes(content)
        beside.replace(path)
    finally:
        with contextlib.suppress(OSError):
            beside.unlink(missing_ok=True)
