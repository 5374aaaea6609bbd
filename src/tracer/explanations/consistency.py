"""How often the teacher agrees with itself, and what that leaves to any surrogate.

Let the teacher answer x with label k with probability p_k(x), anew at each call: labels are independent given the
input. Two calls agree on x with probability s(x) = sum_k p_k(x)^2, so the teacher's self-agreement is A = E s(x). A
surrogate that answers f(x) agrees with the teacher with probability p_f(x)(x), so the best at full coverage reaches
M = E max_k p_k(x), and nothing reaches more. For each x::

    s = sum_k p_k^2  <=  (max_k p_k) sum_k p_k  =  max_k p_k        and        (max_k p_k)^2  <=  s,

so s <= max_k p_k <= sqrt(s). Taking means, and by Jensen's inequality for the concave square root, A <= M <= sqrt(A).
Both ends are reached: A where p is uniform on as many labels as it has, sqrt(A) nearly where one label leads and the
rest is spread over many. On handled traffic alone an agreement above sqrt(A) can be had: the acceptor leaves the inputs
on which the teacher wavers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from tracer.explanations.asking import PLAIN, AskedTwice
from tracer.stats import binomial
from tracer.traces.rooms import normalised
from tracer.types import Dataset

LEVEL = 0.05
"""Error of each two-sided interval."""


@dataclass(frozen=True, slots=True)
class SelfAgreement:
    """``n_agreed`` of ``n_pairs`` pairs of answers to one input are equal; ``source`` says where they come from.

    ``random``: the inputs are a draw of the traffic, so that the rate speaks of all of it.
    """

    n_pairs: int
    n_agreed: int
    source: str
    random: bool = True

    @property
    def rate(self) -> float | None:
        """Share of pairs that agree; None without pairs."""
        return self.n_agreed / self.n_pairs if self.n_pairs else None

    @property
    def interval(self) -> tuple[float, float]:
        """Exact two-sided interval (Clopper and Pearson) of A at level 0.05."""
        return binomial.agreement_interval(self.n_agreed, self.n_pairs, LEVEL)

    @property
    def ceiling(self) -> tuple[float, float]:
        """Between these lies the best surrogate at full coverage: the lower end of A, the root of its upper end."""
        low, high = self.interval
        return low, math.sqrt(high)

    def statement(self, target: float) -> str:
        """What is known of A, and what it means for a target at full coverage, in plain sentences."""
        if self.rate is None:
            return f"Nothing is known of how often your teacher agrees with itself: {self.source}."
        low, high = self.interval
        # Rounded outward: nothing is claimed that the counts do not bear.
        bottom, top = _down(low), _up(math.sqrt(high))
        known = (
            f"Your teacher agrees with itself {self.rate:.1%} of the time ({self.n_agreed:,} of {self.n_pairs:,} "
            f"pairs, {self.source}; exact 95% interval {_down(low):.1%} to {_up(high):.1%})"
        )
        if not self.random:
            return (
                f"{known}. That speaks of texts that repeat, and not of the others: what any surrogate can reach on "
                "all traffic, asking again about traces drawn at random tells (tracer ask-twice)."
            )
        if target > self.ceiling[1]:
            fate = f"no surrogate can be expected to reach {target:g}, nor anything above {top:.3f}"
            return f"{known}: at full coverage {fate}; on the inputs that it handles a surrogate may."
        if target > math.sqrt(self.rate):
            fate = f"{target:g} is above {math.sqrt(self.rate):.3f}, the most that this rate allows, but its interval"
            return f"{known}: at full coverage {fate} does not rule it out (up to {top:.3f})."
        if target <= low:
            return f"{known}: at full coverage the teacher's wavering does not stand in the way of {target:g}."
        fate = (
            f"the best surrogate reaches between {bottom:.3f} and {top:.3f}; whether {target:g} can be reached is open"
        )
        return f"{known}: at full coverage {fate}."


def asked_twice_in(dataset: Dataset) -> SelfAgreement:
    """Self-agreement from inputs that the log itself holds more than once.

    Rows of one normalised text and one teacher are paired in their order, first with second, third with fourth: no row
    is in two pairs, so that pairs are independent given their texts. Only plain samples of traffic count (origins
    bootstrap and audit). What repeats in a log is its frequent, often easy inputs; a teacher behind a cache only
    repeats itself.
    """
    waiting: dict[tuple[str, str | None], str] = {}
    n_pairs = n_agreed = 0
    for i, text in enumerate(dataset.texts or ()):
        if dataset.origins[i] not in PLAIN:
            continue
        key = (normalised(text), dataset.teachers[i])
        if key in waiting:
            n_pairs += 1
            n_agreed += waiting.pop(key) == dataset.labels[i]
        else:
            waiting[key] = dataset.labels[i]
    return SelfAgreement(
        n_pairs, n_agreed, "texts that the log holds twice" if n_pairs else "no text is there twice", random=False
    )


def asked_again(answers: Sequence[AskedTwice]) -> SelfAgreement:
    """Self-agreement from traces chosen at random whose teacher was asked again; one pair a trace."""
    first: dict[str, AskedTwice] = {}
    for answer in answers:
        first.setdefault(answer.id, answer)
    agreed = sum(answer.label == answer.again for answer in first.values())
    source = "traces drawn at random and asked again" if first else "no trace was asked again"
    return SelfAgreement(len(first), agreed, source)


def _down(value: float) -> float:
    return math.floor(value * 1000.0) / 1000.0


def _up(value: float) -> float:
    return min(math.ceil(value * 1000.0) / 1000.0, 1.0)
