"""Backtest: replay a log in order, as if Tracer had been there from the first day.

Each batch is routed by the policy that was in force before it arrived, then joins the traces, fully
labelled as the log has it, and the policy is fitted anew.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime

import numpy as np
from numpy.typing import NDArray

from tracer import pipeline
from tracer.config import FitConfig
from tracer.errors import ConfigError
from tracer.pipeline import Certified, Encodings
from tracer.policies.policy import Policy
from tracer.stats import binomial
from tracer.types import Dataset

_MIN_FIRST = 200


@dataclass(frozen=True, slots=True)
class Day:
    """One replayed batch: counts, and whether the refit after it promoted a policy."""

    name: str
    n: int
    n_handled: int
    n_agreed: int
    promoted: bool
    certified_coverage: float | None

    @property
    def coverage(self) -> float:
        """Share of the batch handled."""
        return self.n_handled / self.n if self.n else 0.0

    @property
    def agreement(self) -> float | None:
        """Share of the handled in agreement; None where nothing was handled."""
        return self.n_agreed / self.n_handled if self.n_handled else None

    def interval(self, level: float = 0.05) -> tuple[float, float]:
        """Clopper-Pearson interval of the agreement."""
        return binomial.agreement_interval(self.n_agreed, self.n_handled, level)


def backtest(
    dataset: Dataset,
    config: FitConfig | None = None,
    *,
    batches: int = 5,
    on_day: Callable[[Day], None] | None = None,
    encodings: Encodings | None = None,
) -> tuple[Day, ...]:
    """Replay the log: by calendar day (UTC) where all traces carry times, else in ``batches`` equal parts.

    The first batch goes to the teacher whole. Raises ConfigError where there are fewer than two batches.
    """
    config = config or FitConfig()
    # One share for the whole replay: a trace never changes room.
    config = replace(config, targets=config.targets[:1], shadow_share=config.shadow_share_for(dataset.n_units))
    order, cuts, names = _schedule(dataset, batches)
    if len(names) < 2:
        raise ConfigError("a backtest needs at least two batches: the log covers one")
    days: list[Day] = []
    policy: Policy | None = None
    for i, name in enumerate(names):
        batch = dataset.take(order[cuts[i] : cuts[i + 1]])
        handled = agreed = 0
        if policy is not None:
            decisions = policy.decide(batch.texts, batch.dense)
            agree = np.array([a == b for a, b in zip(decisions.labels, batch.labels, strict=True)])
            handled, agreed = int(decisions.handled.sum()), int((decisions.handled & agree).sum())
        promoted = False
        last = i == len(names) - 1
        seen = dataset.take(order[: cuts[i + 1]])
        if not last and len(seen) >= _MIN_FIRST and len(set(seen.labels)) > 1:
            if not seen.space.declared:
                seen = seen.with_space(type(seen.space).observed(seen.labels))
            verdict = pipeline.fit(seen, config, encodings=encodings)
            if isinstance(verdict, Certified):
                policy, promoted = verdict.policy, True
        coverage = policy.certificate.coverage if policy is not None else None
        day = Day(name, len(batch), handled, agreed, promoted, coverage)
        days.append(day)
        if on_day is not None:
            on_day(day)
    return tuple(days)


def _schedule(dataset: Dataset, batches: int) -> tuple[NDArray[np.intp], list[int], list[str]]:
    n = len(dataset)
    if not np.isnan(dataset.times).any():
        order = np.argsort(dataset.times, kind="stable")
        dates = [datetime.fromtimestamp(t, UTC).date().isoformat() for t in dataset.times[order]]
        names = list(dict.fromkeys(dates))
        cuts = [dates.index(name) for name in names] + [n]
        if len(names) > 1:
            return order, cuts, names
        batch_order = order
    else:
        batch_order = np.arange(n, dtype=np.intp)
    if not 2 <= batches <= n:
        raise ConfigError(f"batches = {batches}: must lie between 2 and the {n} traces")
    cuts = [round(i * n / batches) for i in range(batches + 1)]
    return batch_order, cuts, [f"batch {i + 1}" for i in range(batches)]
