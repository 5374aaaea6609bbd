"""Texts of requests that run side by side, embedded together: a thread, and what waits for it."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from typing import NamedTuple

from tracer.errors import EmbedderError
from tracer.features.dense import Embedder, checked
from tracer.types import Float32

MOST = 32
"""Texts of one batch. An encoder on a processor gains little beyond, and the first of them waits for the last."""
WAITING = 1_000
"""Texts that may wait. What comes then goes to the teacher at once: it would wait for seconds."""
_PROBES = 3
"""Texts of a failed batch that are refused one by one, all of them, after which the embedder counts as down."""
_IDLE_S = 60.0


class _Item(NamedTuple):
    embedder: Embedder
    text: str
    vector: Future[Float32]


class Encoding:
    """Embeds texts in a thread of its own. Whoever finds it idle is served at once; what comes while a batch is
    embedded makes up the next, of at most ``most`` texts: no text waits for company. Safe to use from several threads.

    A text whose future is cancelled before its turn is left out; one that is cancelled later harms no other, nor does
    one that the embedder refuses.
    """

    def __init__(self, *, most: int = MOST, waiting: int = WAITING) -> None:
        self._most, self._waiting = most, waiting
        self._items: deque[_Item] = deque()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    def submit(self, embedder: Embedder, text: str) -> Future[Float32]:
        """The embedding (d,) of a text, to come; the embedder's error where it refuses it, EmbedderError where too many
        wait."""
        item = _Item(embedder, text, Future())
        with self._changed:
            if len(self._items) >= self._waiting:
                item.vector.set_exception(EmbedderError(f"{self._waiting} texts wait to be embedded already"))
                return item.vector
            self._items.append(item)
            # A thread does not survive a fork: the child of a server that loaded first starts its own.
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._run, name="tracer-encoding", daemon=True)
                self._thread.start()
            self._changed.notify()
        return item.vector

    def _run(self) -> None:
        while batch := self._next():
            running = [item for item in batch if item.vector.set_running_or_notify_cancel()]
            if not running:
                continue
            _embed(running)

    def _next(self) -> Sequence[_Item]:
        """The next batch, all for one embedder; empty to end the thread."""
        with self._changed:
            if not self._items and not self._changed.wait_for(lambda: bool(self._items), _IDLE_S):
                self._thread = None
                return ()
            batch = [self._items.popleft()]
            while self._items and len(batch) < self._most and self._items[0].embedder is batch[0].embedder:
                batch.append(self._items.popleft())
            return batch


def _embed(items: Sequence[_Item]) -> None:
    """Set each one's vector. A batch that fails is embedded one by one, in case one text alone is refused."""
    try:
        vectors = checked(items[0].embedder, [item.text for item in items])
    except Exception as error:  # noqa: BLE001 - a foreign function: its failure belongs to its texts
        last, taken = error, False
        for k, item in enumerate(items):
            try:
                if len(items) == 1 or (k >= _PROBES and not taken):
                    raise last
                item.vector.set_result(checked(item.embedder, [item.text])[0])
                taken = True
            except Exception as own:  # noqa: BLE001 - as above
                last = own
                item.vector.set_exception(own)
    else:
        for item, vector in zip(items, vectors, strict=True):
            item.vector.set_result(vector)
