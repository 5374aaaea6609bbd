"""The five artefacts of a policy, with what they stand on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tracer.explanations import cards, deltas, disagreements, pairs, slices
from tracer.explanations.plain import from_plain, to_plain
from tracer.explanations.table import RoutingTable


@dataclass(frozen=True, slots=True)
class Artefacts:
    """Artefacts A to E of ``n_rows`` rows that the policy never trained on; ``stands_on`` says which.

    ``certified`` False: the best candidate of a refusal, cut at ``threshold``, where it first failed. ``deltas`` is
    None where there is no earlier policy. Texts are cut, and at most ``examples.MAX_LABELS`` labels shown; the fields
    ``n_..._left_out`` count the others.
    """

    stands_on: str
    policy: str
    threshold: float
    certified: bool
    n_rows: int
    n_labels: int
    n_handled: int
    n_agreed: int
    slices: slices.Slices
    cards: cards.Cards
    pairs: pairs.Pairs
    disagreements: disagreements.Disagreements
    deltas: deltas.Deltas | None

    def __post_init__(self) -> None:
        if not self.n_agreed <= self.n_handled <= self.n_rows:
            raise ValueError("the artefacts have impossible counts")

    @property
    def coverage(self) -> float:
        """Share of the rows that is handled."""
        return self.n_handled / self.n_rows if self.n_rows else 0.0

    @property
    def agreement(self) -> float | None:
        """Share of the handled in agreement; None where none is handled."""
        return self.n_agreed / self.n_handled if self.n_handled else None

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready: counts with the rates that derive from them."""
        plain: dict[str, Any] = to_plain(self)
        return plain

    @classmethod
    def from_dict(cls, stored: object) -> Artefacts:
        """The artefacts of an ``as_dict``. Raises ArchiveError where it is none."""
        artefacts: Artefacts = from_plain(cls, stored, "artefacts")
        return artefacts


def build(table: RoutingTable, previous: RoutingTable | None = None) -> Artefacts:
    """All artefacts of a table; ``previous`` holds what the policy before decides on the same rows.

    Raises TraceError where the rows of the two tables differ.
    """
    return Artefacts(
        stands_on=table.stands_on,
        policy=table.policy,
        threshold=table.threshold,
        certified=table.certified,
        n_rows=len(table),
        n_labels=len(set(table.labels)),
        n_handled=int(table.handled.sum()),
        n_agreed=int((table.handled & table.agree).sum()),
        slices=slices.summarise(table),
        cards=cards.deal(table),
        pairs=pairs.contrast(table),
        disagreements=disagreements.gather(table),
        deltas=None if previous is None else deltas.compare(previous, table),
    )
