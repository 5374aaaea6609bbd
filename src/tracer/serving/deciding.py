"""The one named place that fails to the teacher: an embedder that is down, an input that does not fit, a fault in the
policy. Each failure is logged without the text and counted."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tracer.errors import EmbedderError
from tracer.features.dense import Embedder, checked
from tracer.serving.states import State, switched_off
from tracer.types import Decisions, Float32, Reason

log = logging.getLogger("tracer.router")


def decide(
    state: State,
    texts: Sequence[str] | None,
    embeddings: NDArray[np.floating] | None,
    n: int,
    switch: Path | None,
    fault: Callable[[str], None],
) -> Decisions:
    """Decisions for n inputs; what fails on the surrogate side defers, and ``fault`` is told its name."""
    if switched_off() or (switch is not None and switch.exists()):
        return _defer_all(n, "kill_switch")
    if state.policy is None:
        return _defer_all(n, "no_policy")
    if state.foreign:
        return _defer_all(n, "other_task")
    embed = _embedding(state.embedder) if state.embedder is not None else None
    try:
        return state.policy.decide(texts, embeddings, embed)
    except Exception as error:
        outage = isinstance(error, EmbedderError)
        if n == 1 or outage:
            # The message of a foreign exception may quote the input: only its kind is logged.
            log.warning("surrogate failed on %d inputs, deferring: %s", n, type(error).__name__)
            log.debug("the failure", exc_info=error)
            fault("fault:embedder" if outage else "fault:policy")
            return _defer_all(n, "error")
    # One bad input must not defer its neighbours; an embedder that is down must not be asked again.
    ones = []
    for i in range(n):
        text = None if texts is None else [texts[i]]
        ones.append(decide(state, text, None if embeddings is None else embeddings[i : i + 1], 1, switch, fault))
    return _joined(ones)


def _embedding(embedder: Embedder) -> Callable[[Sequence[str]], Float32]:
    return lambda texts: checked(embedder, texts)


def _defer_all(n: int, reason: Reason) -> Decisions:
    nothing = np.full(n, -np.inf)
    return Decisions(("",) * n, nothing, np.zeros(n, dtype=bool), (reason,) * n, np.full(n, 2, dtype=np.int8))


def _joined(ones: Sequence[Decisions]) -> Decisions:
    return Decisions(
        tuple(one.labels[0] for one in ones),
        np.concatenate([one.scores for one in ones]),
        np.concatenate([one.handled for one in ones]),
        tuple(one.reasons[0] for one in ones),
        np.concatenate([one.stage for one in ones]),
    )
