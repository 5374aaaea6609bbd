"""Rows that a policy never trained on, and its routing table on them.

A policy's report says with which settings and on how many traces it was fitted, and its certificate carries the digest
of its shadow rows. Stored traces only grow at their end, so the rooms of every version can be computed again, and a
digest of the very rows that it was fitted on, in their order, proves that they are the right ones (ids do not: a log
may number its rows). Where it does not, nobody can say what that version trained on, and there is no table.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import numpy as np

from tracer.config import FitConfig
from tracer.errors import PolicyError, TraceError
from tracer.explanations import deltas
from tracer.explanations.deltas import Deltas
from tracer.explanations.table import RoutingTable
from tracer.features.dense import same_embedder
from tracer.policies.policy import Policy
from tracer.traces.rooms import Rooms, assign_rooms, ids_digest, traces_digest
from tracer.types import Bool, Dataset

_PAPER_SHARE = 0.15
"""Shadow share of ``mode="paper"``, which is the paper's and no setting."""


@dataclass(frozen=True, slots=True, eq=False)
class Unseen:
    """``rows`` that none of some policies trained on; ``stands_on`` says in words which rows these are."""

    rows: Dataset
    stands_on: str


@dataclass(frozen=True, slots=True, eq=False)
class Stored:
    """All stored traces of a home and its settings. Rooms are computed once for each fit that is asked about."""

    dataset: Dataset
    config: FitConfig
    _rooms: dict[tuple[int, float, str, int], Rooms] = field(default_factory=dict)

    def unseen(self, *policies: Policy) -> Unseen:
        """The shadow rows, less any row (and any group) that one of the policies trained on.

        Raises PolicyError where the traces are not those that a policy was fitted on, TraceError where no row is left.
        """
        trained = np.zeros(len(self.dataset), dtype=np.bool_)
        for policy in policies:
            trained |= self.trained_on(policy)
        rooms = self._rooms_of(self.config, len(self.dataset))
        kept = rooms.shadow[~trained[rooms.shadow]]
        names = _names(policies) or "no policy"
        if not len(kept):
            raise TraceError(f"{names} trained on all {len(self.dataset):,} stored traces: none is left to judge by")
        rows = self.dataset.take(kept)
        rule = rooms.description.partition(":")[0]
        words = f"{len(rows):,} shadow traces ({rule}); {names} trained on none of them"
        digest = ids_digest(rows.ids)
        certified = [
            p for p in policies if p.certificate.guarantee == "certified" and p.certificate.split_digest == digest
        ]
        if certified:
            words += f"; they are the rows that certified {_names(certified)}"
        return Unseen(rows, words)

    def table_of(self, policy: Policy, *beside: Policy) -> RoutingTable:
        """The routing table of a policy on traces that neither it nor the policies ``beside`` trained on.

        The best candidate of a refusal (``Refused.best``) is shown at the threshold at which its chain first failed.
        Raises what ``unseen`` raises, and FeatureError or EmbedderError where the traces lack what the policy reads.
        """
        return self._table(policy, self.unseen(policy, *beside))

    def changes(self, policy: Policy, previous: Policy) -> Deltas:
        """What changed from one policy to another, on traces that neither of the two trained on."""
        found = self.unseen(policy, previous)
        return deltas.compare(self._table(previous, found), self._table(policy, found))

    def trained_on(self, policy: Policy) -> Bool:
        """Rows (n,) in whose training the policy had any part: its train room, and their groups.

        Raises PolicyError where that cannot be known.
        """
        name = _name(policy)
        try:
            config, n = FitConfig.from_dict(dict(policy.report["config"])), int(policy.report["n_traces"])
        except (KeyError, TypeError, ValueError) as error:
            raise PolicyError(f"{name}: its report does not say what it was fitted on") from error
        foreign = (
            f"{name} was fitted on other traces than those stored now: which of them it trained on cannot be known"
        )
        if n > len(self.dataset):
            raise PolicyError(foreign)
        if policy.report.get("traces_digest") != traces_digest(self.dataset, n):
            raise PolicyError(foreign)
        try:
            rooms = self._rooms_of(config, n, int(policy.report.get("released", 0)))
        except TraceError as error:
            raise PolicyError(foreign) from error
        if rooms.digest != policy.report.get("shadow_digest"):
            raise PolicyError(foreign)
        rows = rooms.train
        if config.guarantee == "estimated":
            rows = np.concatenate([rooms.train, rooms.shadow])
        trained = np.zeros(len(self.dataset), dtype=np.bool_)
        trained[rows] = True
        every = self.dataset.groups
        groups = {every[i] for i in rows} - {None}
        if groups:
            trained |= np.fromiter((group in groups for group in every), dtype=np.bool_, count=len(every))
        return trained

    def _table(self, policy: Policy, found: Unseen) -> RoutingTable:
        if "dense" in policy.needs and policy.embedder is not None and self.dataset.embedder is not None:
            same_embedder(policy.embedder, self.dataset.embedder)
        return RoutingTable.of(policy, found.rows, found.stands_on, failed_at(policy))

    def _rooms_of(self, config: FitConfig, n: int, released: int = 0) -> Rooms:
        """Rooms of the first ``n`` traces under these settings, those up to number ``released`` all in training."""
        dataset = self.dataset
        if n < len(dataset):
            if dataset.texts is not None:  # the rooms need no embeddings, which are most of the memory
                dataset = replace(dataset, dense=None, embedder=None)
            dataset = dataset.take(np.arange(n))
        share = _PAPER_SHARE if config.mode == "paper" else config.shadow_share_for(dataset.n_units)
        key = n, share, config.split, released
        if key not in self._rooms:
            self._rooms[key] = assign_rooms(dataset, shadow_share=share, split=config.split, released=released)
        return self._rooms[key]


def unseen(dataset: Dataset, config: FitConfig, *policies: Policy) -> Unseen:
    """`Stored.unseen` of these traces and settings."""
    return Stored(dataset, config).unseen(*policies)


def table_of(policy: Policy, dataset: Dataset, config: FitConfig, *beside: Policy) -> RoutingTable:
    """`Stored.table_of` of these traces and settings."""
    return Stored(dataset, config).table_of(policy, *beside)


def trained_on(policy: Policy, dataset: Dataset) -> Bool:
    """`Stored.trained_on` of these traces."""
    return Stored(dataset, FitConfig()).trained_on(policy)


def failed_at(policy: Policy) -> float | None:
    """The threshold at which the chain of a refused candidate first failed; None for a policy with a certificate."""
    if policy.certificate.split_digest:
        return None
    try:
        return float(policy.report["attempts"][0]["threshold"])
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise PolicyError(f"{_name(policy)}: its report does not say where its chain failed") from error


def _names(policies: Iterable[Policy]) -> str:
    return " and ".join(dict.fromkeys(_name(policy) for policy in policies))


def _name(policy: Policy) -> str:
    return f"policy {policy.version}" if policy.version else "the candidate"
