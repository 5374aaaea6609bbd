"""The one named place that fails to the teacher: an embedder that is down, an input that does not fit, a fault in the
policy. Each failure is logged without the text and counted."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from tracer.errors import EmbedderError
from tracer.features.dense import Embedder, checked
from tracer.policies.policy import Policy
from tracer.serving.batching import Encoding
from tracer.serving.states import State, Switch, switched_off
from tracer.types import Decided, Float32, Reason

log = logging.getLogger("tracer.router")

Fault = Callable[[str], None]


def decide(
    state: State,
    texts: Sequence[str] | None,
    embeddings: NDArray[np.floating] | None,
    n: int,
    switch: Switch | None,
    fault: Fault,
) -> list[Decided]:
    """What is decided of n inputs; what fails on the surrogate side defers, and ``fault`` is told its name."""
    policy = asked_policy(state, switch)
    if not isinstance(policy, Policy):
        return [not_asked(policy)] * n
    embed = _embedding(state.embedder) if state.embedder is not None else None
    if n != 1:
        try:
            return policy.decide(texts, embeddings, embed).rows()
        except EmbedderError as error:
            return [failed(error, n, fault)] * n
        except Exception as error:
            log.debug("%d inputs fail together and are decided one by one", n, exc_info=error)
    out = []
    for i in range(n):
        try:
            vector = None if embeddings is None else np.asarray(embeddings[i], dtype=np.float32)
            out.append(policy.decide_one(None if texts is None else texts[i], vector, embed))
        except Exception as error:  # noqa: BLE001 - as above
            out.append(failed(error, 1, fault))
    return out


async def adecide(state: State, text: str, switch: Switch | None, fault: Fault, encoding: Encoding) -> Decided:
    """What is decided of one text, which is embedded with those of others where it has to be."""
    import asyncio  # whoever awaits this has it already

    policy = asked_policy(state, switch)
    if not isinstance(policy, Policy):
        return not_asked(policy)
    try:
        decided = policy.decide_early(text)
        if decided is not None:
            return decided
        vector = None
        if state.embedder is not None:
            vector = await asyncio.wrap_future(encoding.submit(state.embedder, text))
        return policy.decide_one(text, vector)
    except Exception as error:  # noqa: BLE001 - as below
        return failed(error, 1, fault)


def asked_policy(state: State, switch: Switch | None) -> Policy | Reason:
    """The policy that decides now, or why none is asked."""
    if switched_off() or (switch is not None and switch.exists()):
        return "kill_switch"
    if state.policy is None:
        return "no_policy"
    return "other_task" if state.foreign else state.policy


def not_asked(reason: Reason) -> Decided:
    """An input that goes to the teacher, no policy having said anything."""
    return Decided("", float("-inf"), False, reason, 2)


def failed(error: Exception, n: int, fault: Fault) -> Decided:
    """Counts and logs a failure on n inputs; each of them goes to the teacher."""
    # The message of a foreign exception may quote the input: only its kind is logged.
    log.warning("surrogate failed on %d inputs, deferring: %s", n, type(error).__name__)
    log.debug("the failure", exc_info=error)
    fault("fault:embedder" if isinstance(error, EmbedderError) else "fault:policy")
    return not_asked("error")


def _embedding(embedder: Embedder) -> Callable[[Sequence[str]], Float32]:
    return lambda texts: checked(embedder, texts)
