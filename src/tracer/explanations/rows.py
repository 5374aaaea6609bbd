"""Rows that a policy never trained on, and its routing table on them.

A policy's report says with which settings and on how many traces it was fitted, and its certificate carries the digest
of its shadow rows. Stored traces only grow at their end, so the rooms of every version can be computed again, and the
digest proves that they are the right ones. Where it does not, nobody can say what that version trained on, and there is
no table.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from tracer.config import FitConfig
from tracer.errors import PolicyError, TraceError
from tracer.explanations import deltas
from tracer.explanations.deltas import Deltas
from tracer.explanations.table import RoutingTable
from tracer.features.dense import same_embedder
from tracer.policies.policy import Policy
from tracer.traces.rooms import Rooms, assign_rooms, ids_digest
from tracer.types import Bool, Dataset

_PAPER_SHARE = 0.15
"""Shadow share of ``mode="paper"``, which is the paper's and no setting."""


@dataclass(frozen=True, slots=True, eq=False)
class Unseen:
    """``rows`` that none of some policies trained on; ``stands_on`` says in words which rows these are."""

    rows: Dataset
    stands_on: str


def unseen(dataset: Dataset, config: FitConfig, *policies: Policy) -> Unseen:
    """The shadow rows of stored traces, less any row (and any group) that one of the policies trained on.

    ``dataset`` holds all stored traces, ``config`` the home's settings. Raises PolicyError where the traces are not
    those that a policy was fitted on, TraceError where no row is left.
    """
    trained = np.zeros(len(dataset), dtype=np.bool_)
    for policy in policies:
        trained |= trained_on(policy, dataset)
    rooms = _rooms(dataset, config)
    kept = rooms.shadow[~trained[rooms.shadow]]
    names = _names(policies) or "no policy"
    if not len(kept):
        raise TraceError(f"{names} trained on all {len(dataset):,} stored traces: none is left to judge by")
    rows = dataset.take(kept)
    rule = rooms.description.partition(":")[0]
    words = f"{len(rows):,} shadow traces ({rule}); {names} trained on none of them"
    digest = ids_digest(rows.ids)
    certified = [p for p in policies if p.certificate.guarantee == "certified" and p.certificate.split_digest == digest]
    if certified:
        words += f"; they are the rows that certified {_names(certified)}"
    return Unseen(rows, words)


def table_of(policy: Policy, dataset: Dataset, config: FitConfig, *beside: Policy) -> RoutingTable:
    """The routing table of a policy on stored traces that neither it nor the policies ``beside`` trained on.

    The best candidate of a refusal (``Refused.best``) is shown at the threshold at which its chain first failed. Raises
    what `unseen` raises, and FeatureError or EmbedderError where the traces lack what the policy reads.
    """
    found = unseen(dataset, config, policy, *beside)
    if "dense" in policy.needs and policy.embedder is not None and dataset.embedder is not None:
        same_embedder(policy.embedder, dataset.embedder)
    return RoutingTable.of(policy, found.rows, found.stands_on, failed_at(policy))


def changes(policy: Policy, previous: Policy, dataset: Dataset, config: FitConfig) -> Deltas:
    """What changed from one policy to another, on stored traces that neither of the two trained on."""
    before = table_of(previous, dataset, config, policy)
    return deltas.compare(before, table_of(policy, dataset, config, previous))


def failed_at(policy: Policy) -> float | None:
    """The threshold at which the chain of a refused candidate first failed; None for a policy with a certificate."""
    if policy.certificate.split_digest:
        return None
    try:
        return float(policy.report["attempts"][0]["threshold"])
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise PolicyError(f"{_name(policy)}: its report does not say where its chain failed") from error


def trained_on(policy: Policy, dataset: Dataset) -> Bool:
    """Rows (n,) of the stored traces in whose training the policy had any part: its train room, and their groups.

    Raises PolicyError where that cannot be known.
    """
    name = _name(policy)
    try:
        config, n = FitConfig.from_dict(dict(policy.report["config"])), int(policy.report["n_traces"])
    except (KeyError, TypeError, ValueError) as error:
        raise PolicyError(f"{name}: its report does not say what it was fitted on") from error
    foreign = f"{name} was fitted on other traces than those stored now: which of them it trained on cannot be known"
    digest = policy.certificate.split_digest
    # A refused candidate has no digest; it comes with the very traces that it was fitted on.
    if n > len(dataset) or (not digest and n != len(dataset)):
        raise PolicyError(foreign)
    try:
        rooms = _rooms(dataset.take(np.arange(n)), config)
    except TraceError as error:
        raise PolicyError(foreign) from error
    if digest and rooms.digest != digest:
        raise PolicyError(foreign)
    rows = rooms.train
    if config.guarantee == "estimated":
        rows = np.concatenate([rooms.train, rooms.shadow])
    trained = np.zeros(len(dataset), dtype=np.bool_)
    trained[rows] = True
    groups = {dataset.groups[i] for i in rows} - {None}
    if groups:
        trained |= np.fromiter((group in groups for group in dataset.groups), dtype=np.bool_, count=len(dataset))
    return trained


def _rooms(dataset: Dataset, config: FitConfig) -> Rooms:
    share = _PAPER_SHARE if config.mode == "paper" else config.shadow_share_for(dataset.n_units)
    return assign_rooms(dataset, shadow_share=share, split=config.split)


def _names(policies: Iterable[Policy]) -> str:
    return " and ".join(dict.fromkeys(_name(policy) for policy in policies))


def _name(policy: Policy) -> str:
    return f"policy {policy.version}" if policy.version else "the candidate"
