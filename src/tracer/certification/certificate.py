"""What the gate says: a certificate with the counts to recheck it, or a refusal with its evidence."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal, Self

from tracer.config import Contract, Guarantee, Ledger
from tracer.errors import ArchiveError

Evidence = Literal["exact", "e-process"]


@dataclass(frozen=True, slots=True)
class Rung:
    """A safer threshold of the same chain, and its counts on the shadow traces."""

    threshold: float
    n_handled: int
    n_agreed: int


@dataclass(frozen=True, slots=True)
class Certificate:
    """Counts and levels behind a promoted policy. Rates derive from the integer counts.

    ``level``: the share of delta spent on this candidate's chain. ``n_shadow`` shadow traces, ``n_handled``
    of them handled at ``threshold``, ``n_agreed`` of those in agreement. ``rank``: the candidate's place on
    the shortlist of ``n_candidates``. ``chain_start`` and ``n_tested``: where the chain began and how many
    of its ``grid_size`` steps were tested. ``assumption`` is empty for the assumption-free test.
    ``one_a_group``: rows came in groups and one row of each certified, so the claim counts groups, not requests.
    ``ladder``: safer thresholds to fall back on, nearest first. The chain certified each of them on its way at the same
    level, so they cost nothing. ``n_reused`` of the shadow traces had decided in earlier attempts. ``ledger``: whether
    delta holds for this promotion or over all attempts of the policy line. ``evidence``: the exact test, or an
    e-process that reached 1 / ``level`` on fresh audits, whose final counts these are.
    """

    target: float
    delta: float
    level: float
    contract: Contract
    guarantee: Guarantee
    threshold: float
    n_shadow: int
    n_handled: int
    n_agreed: int
    rank: int
    n_candidates: int
    attempt: int
    chain_start: int
    n_tested: int
    grid_size: int
    grid_digest: str
    split_digest: str
    split: str
    assumption: str = ""
    handled_floor: float | None = None
    one_a_group: bool = False
    ladder: tuple[Rung, ...] = ()
    n_reused: int = 0
    ledger: Ledger = "promotion"
    evidence: Evidence = "exact"

    @property
    def n_disagreed(self) -> int:
        """Handled shadow traces on which surrogate and teacher differ."""
        return self.n_handled - self.n_agreed

    @property
    def coverage(self) -> float:
        """Share of the shadow traces that is handled."""
        return self.n_handled / self.n_shadow

    @property
    def agreement(self) -> float:
        """Share of the handled shadow traces in agreement."""
        return self.n_agreed / self.n_handled

    @property
    def agreement_lower(self) -> float:
        """Lower bound on handled agreement at ``level``: Clopper and Pearson's, or the e-process turned around."""
        from tracer.stats import binomial, sequences  # need scipy, which serving does not load

        if self.evidence == "e-process":
            return 1.0 - sequences.largest_unproven(self.n_disagreed, self.n_handled, self.level)
        return binomial.agreement_lower(self.n_agreed, self.n_handled, self.level)

    @property
    def p_value(self) -> float:
        """The exact p-value that was compared with ``level``; of an e-process, the level that it reached."""
        from tracer.stats import binomial

        if self.evidence == "e-process":
            return self.level
        if self.contract == "overall":
            joint = binomial.p_value(self.n_disagreed, self.n_shadow, self.target)
            floor = binomial.p_value(self.n_disagreed, self.n_handled, self.handled_floor or 0.0)
            return float(max(joint, floor))
        return float(binomial.p_value(self.n_disagreed, self.n_handled, self.target))

    def statement(self) -> str:
        """The claim in one plain sentence."""
        traces = "traces" if self.guarantee == "estimated" else "shadow traces"
        counts = (
            f"Of {self.n_shadow:,} {traces} {self.n_handled:,} are handled ({self.coverage:.1%}) "
            f"and {self.n_agreed:,} of those agree with the teacher ({self.agreement:.1%})."
        )
        if self.guarantee == "estimated":
            return f"{counts} Estimated for a target of {self.target:g} ({self.split}): evidence, not a guarantee."
        if self.contract == "overall":
            claim = (
                f"the teacher would contradict at most {1 - self.target:.3g} of all answers, and at least "
                f"{self.handled_floor:.4g} of what the surrogate answers agrees with the teacher"
            )
        else:
            claim = f"at least {self.target:.4g} of what the surrogate answers agrees with the teacher"
        condition = "If traffic stays as it was"
        if self.assumption:
            condition += f" and {self.assumption}"
        if self.one_a_group:
            condition += ", and counting one request of each group"
        confidence = f"with confidence {1 - self.delta:.4g}"
        if self.ledger == "lifetime":
            confidence += ", over all attempts of this policy line together,"
        return f"{counts} {condition}, then {confidence} {claim}."

    @property
    def as_rung(self) -> Rung:
        """This threshold with its counts."""
        return Rung(self.threshold, self.n_handled, self.n_agreed)

    def safer(self) -> Self | None:
        """The same promise at the next safer threshold of the ladder; None where there is none."""
        if not self.ladder:
            return None
        rung, *rest = self.ladder
        return replace(
            self, threshold=rung.threshold, n_handled=rung.n_handled, n_agreed=rung.n_agreed, ladder=tuple(rest)
        )

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready fields."""
        return {f.name: getattr(self, f.name) for f in fields(self)} | {"ladder": [asdict(r) for r in self.ladder]}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Read a mapping written by ``as_dict``. Raises ArchiveError where fields are missing or impossible."""
        try:
            certificate = cls(**values | {"ladder": tuple(Rung(**rung) for rung in values.get("ladder", ()))})
        except TypeError as error:
            raise ArchiveError(f"the certificate does not have the fields it should: {error}") from error
        numbers = (certificate.target, certificate.delta, certificate.level, certificate.threshold)
        if not all(isinstance(x, int | float) and math.isfinite(x) for x in numbers):
            raise ArchiveError(f"the certificate's target, delta, level or threshold is no number: {numbers}")
        if not all(0.0 < x < 1.0 for x in numbers[:3]):
            raise ArchiveError(f"the certificate's target, delta and level must lie between 0 and 1: {numbers[:3]}")
        steps = [
            (certificate.n_agreed, certificate.n_handled),
            *((r.n_agreed, r.n_handled) for r in certificate.ladder),
        ]
        for step in steps:
            counts = (*step, certificate.n_shadow)
            if not all(isinstance(c, int) for c in counts) or not 0 <= counts[0] <= counts[1] <= counts[2]:
                raise ArchiveError(f"the certificate's counts are impossible: {counts}")
        if not all(isinstance(r.threshold, int | float) and math.isfinite(r.threshold) for r in certificate.ladder):
            raise ArchiveError("the certificate's ladder has a threshold that is no number")
        return certificate


@dataclass(frozen=True, slots=True)
class Attempt:
    """One chain that the gate tried: how far it came and the counts at the step that failed or passed last."""

    candidate: str
    family: str
    target: float
    level: float
    certified: bool
    threshold: float
    n_shadow: int
    n_handled: int
    n_agreed: int
    p_value: float

    @property
    def coverage(self) -> float:
        """Share of the shadow traces that would be handled."""
        return self.n_handled / self.n_shadow if self.n_shadow else 0.0

    @property
    def agreement(self) -> float:
        """Share of the handled in agreement; 0 where none is handled."""
        return self.n_agreed / self.n_handled if self.n_handled else 0.0


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why nothing was promoted: what was tried, the best counts, and what would clear the gate."""

    target: float
    reason: str
    attempts: tuple[Attempt, ...]
    advice: tuple[str, ...]

    def statement(self) -> str:
        """The refusal in plain sentences."""
        return " ".join([self.reason, *self.advice])
