"""After a verdict: write what there is, in the order in which a crash does no harm."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from tracer import storage
from tracer.certification.certificate import Certificate
from tracer.config import FitConfig
from tracer.errors import ArchiveError, PolicyError, TraceError, TracerError
from tracer.explanations import artefacts
from tracer.explanations.rows import Stored
from tracer.flywheel.homes import ARTEFACTS, WARM
from tracer.learning import warmstart
from tracer.pipeline import Certified, Refused, Verdict, WarmStart
from tracer.policies.fingerprints import Fingerprint
from tracer.policies.policy import Policy
from tracer.policies.registry import PolicyRegistry
from tracer.types import Dataset

log = logging.getLogger("tracer.flywheel")


def saved(
    registry: PolicyRegistry, verdict: Verdict, embedder: str | None, fingerprints: Sequence[Fingerprint]
) -> Verdict:
    """The verdict with its policies written as versions, further targets first."""

    def with_version(one: Verdict) -> Verdict:
        if isinstance(one, Refused):
            return one
        return replace(one, policy=save(registry, one.policy, embedder, fingerprints))

    frontier = tuple(map(with_version, verdict.frontier))
    return replace(with_version(verdict), frontier=frontier)


def save(registry: PolicyRegistry, policy: Policy, embedder: str | None, fingerprints: Sequence[Fingerprint]) -> Policy:
    """A policy as a new version that knows its embedder's name, and whose labels it imitates."""
    task = {
        **policy.task,
        "embedder": embedder if policy.embedder is not None else None,
        "fingerprints": [list(f) for f in fingerprints],
    }
    return registry.save(replace(policy, task=task))


def recertified(
    registry: PolicyRegistry, policy: Policy, certificate: Certificate, now: datetime | None = None
) -> Policy:
    """The same policy under another certificate, as a version of its own."""
    stamp = (now or datetime.now(UTC)).isoformat(timespec="seconds")
    return registry.save(replace(policy, certificate=certificate, parent=policy.version, created=stamp))


def warm_start(home: Path) -> WarmStart | None:
    """What the fit before left; without it, or where it is damaged, all is trained anew."""
    path = home / WARM
    if not path.exists():
        return None
    try:
        return warmstart.load(str(path))
    except ArchiveError as error:
        log.warning("training anew: %s", error)
        return None


def leave(home: Path, warm: WarmStart | None) -> None:
    """Last of all, and never at the price of the fit: without the file the next one takes longer."""
    if warm is None:
        return
    try:
        storage.write_atomic(home / WARM, warmstart.dump(warm))
    except OSError as error:
        log.warning("%s cannot be written (%s): the next update trains anew", home / WARM, error.strerror)


def explain(home: Path, verdict: Verdict, dataset: Dataset, config: FitConfig, before: str | None) -> None:
    """The five artefacts of the policy, or of the best candidate of a refusal, beside the policies.

    Last of all, and never at the price of the fit: what cannot be explained is logged. ``before`` is the version that
    was in force; its decisions on the same rows, which it never trained on either, give the deltas.
    """
    policy = verdict.best if isinstance(verdict, Refused) else verdict.policy
    name = "refused" if isinstance(verdict, Refused) or policy is None else policy.version
    try:
        (home / ARTEFACTS / "refused.json").unlink(missing_ok=True)  # it speaks of the newest gate alone
        if policy is None or config.guarantee == "estimated":  # which trains on everything: nothing is left to judge by
            return
        earlier = PolicyRegistry(home).load(before) if before is not None and before != policy.version else None
        stored = Stored(dataset, config)
        found = artefacts.build(stored.table_of(policy))
        if earlier is not None and isinstance(verdict, Certified):
            with suppress(PolicyError, TraceError):  # other traces than those that it was fitted on
                found = replace(found, deltas=stored.changes(policy, earlier))
        content = json.dumps(found.as_dict(), allow_nan=False, indent=1)
        storage.write_atomic(home / ARTEFACTS / f"{name}.json", content.encode())
    except (TracerError, OSError) as error:
        log.warning("no artefacts of %s: %s", name, error)
    except Exception as error:
        log.warning("no artefacts of %s: %s", name, type(error).__name__)
        log.debug("the failure", exc_info=error)
