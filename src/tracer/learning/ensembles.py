"""Which members are combined: each alone, and each dense member that may win with the lexical one."""

from __future__ import annotations

from collections.abc import Sequence

from tracer.learning.crossfit import Member


def ensembles(members: Sequence[Member]) -> tuple[tuple[Member, ...], ...]:
    """Every member alone; every dense member with the lexical one; the linear and each non-linear dense
    member with the lexical one."""
    lexical = [m for m in members if m.learner.block == "lexical"]
    dense = [m for m in members if m.learner.block == "dense"]
    out: list[tuple[Member, ...]] = [(m,) for m in members]
    for text in lexical:
        out += [(m, text) for m in dense]
        linear = next((m for m in dense if m.learner.contest[0] == "logistic"), None)
        if linear is not None:
            out += [(linear, m, text) for m in dense if m.learner.family in ("kernel", "mlp")]
    return tuple(out)
