"""Slices that nobody thought of, where agreement or the handled rate is worst.

Rules are proposed on one half of the rows and tested on the other, which no choice has seen. Automated slicing: Chung
et al. (2019), "Slice finder", arXiv 1807.06068. The test is Fisher's exact one, inside the slice against outside,
one-sided: given the margins the count of bad rows inside is hypergeometric. Discoveries are those of Benjamini and
Hochberg (1995), J. R. Stat. Soc. B 57, 289.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from tracer.explanations.examples import Example, examples
from tracer.explanations.rules import Kind, Rules, candidate_rules
from tracer.explanations.table import RoutingTable
from tracer.types import Bool, Float64

Outcome = Literal["handled", "agreement"]

LEVEL = 0.1
"""Expected share of false discoveries among the slices reported."""
_SUPPORT = 10
"""Fewest rows inside a slice, and outside it, on each half."""
_PROPOSED = 12
"""Rules proposed for each outcome: the fewer, the more each test can see."""
_PROMISING = 0.1
"""Largest p-value on the proposing half of a rule that is proposed."""
_ALIKE = 0.5
"""Rules that share more of their rows than this (intersection over union) are one slice; the first stays."""
_EXAMPLES = 3


@dataclass(frozen=True, slots=True)
class FoundSlice:
    """A slice that is worse than the rest, counted on the testing half only.

    ``outcome`` "handled": of ``n_inside`` rows ``n_bad_inside`` are deferred; "agreement": of ``n_inside`` handled rows
    ``n_bad_inside`` disagree with the teacher. Outside likewise. ``q_value`` is the p-value adjusted for all tests.
    """

    rule: str
    kind: Kind
    outcome: Outcome
    n_inside: int
    n_bad_inside: int
    n_outside: int
    n_bad_outside: int
    p_value: float
    q_value: float
    examples: tuple[Example, ...]

    def __post_init__(self) -> None:
        if not (0 <= self.n_bad_inside <= self.n_inside and 0 <= self.n_bad_outside <= self.n_outside):
            raise ValueError(f"found slice {self.rule!r} has impossible counts")

    @property
    def rate_inside(self) -> float:
        """Handled rate, or agreement on handled, inside the slice."""
        return 1.0 - self.n_bad_inside / self.n_inside if self.n_inside else 0.0

    @property
    def rate_outside(self) -> float:
        """The same outside of it."""
        return 1.0 - self.n_bad_outside / self.n_outside if self.n_outside else 0.0


@dataclass(frozen=True, slots=True)
class Discovery:
    """What was found, at which rate of false discoveries, on how many rows; the worst first."""

    level: float
    n_proposing: int
    n_testing: int
    n_tested: int
    found: tuple[FoundSlice, ...]


def discover(table: RoutingTable, level: float = LEVEL, seed: int = 0) -> Discovery:
    """Propose on one half, test on the other, and report what holds at the rate ``level`` of false discoveries."""
    from scipy import stats

    testing = _testing_half(table.ids)
    rules = candidate_rules(table, ~testing, 2 * _SUPPORT, seed)
    everything = np.ones(len(table), dtype=bool)
    tested = [
        *_tested(table, rules, "handled", testing, everything, ~table.handled),
        *_tested(table, rules, "agreement", testing, table.handled, ~table.agree),
    ]
    p_values = [slice_.p_value for slice_ in tested]
    q_values: list[float] = stats.false_discovery_control(p_values).tolist() if tested else []
    found = [replace(s, q_value=q) for s, q in zip(tested, q_values, strict=True) if q <= level]
    found.sort(key=lambda slice_: (slice_.q_value, slice_.p_value, slice_.rule))
    return Discovery(level, int((~testing).sum()), int(testing.sum()), len(tested), tuple(found))


def _tested(
    table: RoutingTable, rules: Rules, outcome: Outcome, testing: Bool, counted: Bool, bad: Bool
) -> Iterator[FoundSlice]:
    """What the testing half says of each rule that the other half proposes, as if it were tested alone."""
    proposed = _propose(rules, ~testing & counted, bad)
    counts, p_values = _test(rules, testing & counted, bad)
    for rule in proposed:
        n_inside, bad_inside, n_outside, bad_outside = counts[:, rule].tolist()
        inside = rules.rows(rule)
        shown = inside[(testing & counted & bad)[inside]]
        yield FoundSlice(
            rule=rules.names[rule],
            kind=rules.kind(rule),
            outcome=outcome,
            n_inside=n_inside,
            n_bad_inside=bad_inside,
            n_outside=n_outside,
            n_bad_outside=bad_outside,
            p_value=float(p_values[rule]),
            q_value=float(p_values[rule]),
            examples=examples(table, shown[np.argsort(-table.scores[shown], kind="stable")][:_EXAMPLES]),
        )


def _testing_half(ids: Sequence[str]) -> Bool:
    """Which rows test: by a hash of the id alone, so that a row keeps its half from report to report."""
    hashes = (blake2b(i.encode("utf-8", "surrogatepass"), digest_size=1, person=b"tracer-slices").digest() for i in ids)
    return np.fromiter((digest[0] & 1 for digest in hashes), dtype=bool, count=len(ids))


def _propose(rules: Rules, rows: Bool, bad: Bool) -> list[int]:
    """The most promising rules on these rows, no two of them nearly the same."""
    p_values = _test(rules, rows, bad)[1]
    chosen: list[int] = []
    taken: list[NDArray[np.intp]] = []
    for rule in np.argsort(p_values, kind="stable"):
        if p_values[rule] > _PROMISING or len(chosen) == _PROPOSED:
            break
        inside = rules.rows(rule)
        inside = inside[rows[inside]]
        common = [len(np.intersect1d(inside, other, assume_unique=True)) for other in taken]
        if all(c <= _ALIKE * (len(inside) + len(o) - c) for c, o in zip(common, taken, strict=True)):
            chosen.append(int(rule))
            taken.append(inside)
    return chosen


def _test(rules: Rules, rows: Bool, bad: Bool) -> tuple[NDArray[np.int64], Float64]:
    """Counts (4, m) of each rule on these rows (inside, bad inside, outside, bad outside) and its p-value (m,).

    A rule with too few rows inside or outside has p-value 1: support is not an outcome, so leaving it out is no choice.
    """
    from scipy import stats

    n, n_bad = int(rows.sum()), int((rows & bad).sum())
    inside = np.asarray(rows.astype(np.int64) @ rules.inside, dtype=np.int64)
    bad_inside = np.asarray((rows & bad).astype(np.int64) @ rules.inside, dtype=np.int64)
    tested = (inside >= _SUPPORT) & (n - inside >= _SUPPORT)
    p_values = np.ones(len(inside))
    p_values[tested] = stats.hypergeom.sf(bad_inside[tested] - 1, n, n_bad, inside[tested])
    return np.stack([inside, bad_inside, n - inside, n_bad - bad_inside]), p_values
