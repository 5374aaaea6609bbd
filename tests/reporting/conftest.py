"""Facts of a success, of a refusal and of hostile traces."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tracer import flywheel, pipeline
from tracer.config import FitConfig
from tracer.explanations import artefacts
from tracer.explanations.table import RoutingTable
from tracer.pipeline import Certified, Refused
from tracer.policies.policy import Policy
from tracer.policies.registry import PolicyRegistry
from tracer.reporting.context import Facts, facts
from tracer.reporting.gathering import Pricing, gather
from tracer.traces.store import TraceStore
from tracer.types import Dataset, LabelSpace

HOSTILE = (
    "<script>alert(1)</script>",
    "</script><script>alert(2)</script>",
    "</style><img src=x onerror=alert(3)>",
    "\"'><svg onload=alert(4)>",
    "{{ 7 * 7 }} {% raw %} ${7*7}",
    "https://example.invalid/pixel.png ![x](https://example.invalid/y)",
    "<!-- --> <![CDATA[ ]]> &lt;b&gt; &#x3C;",
    "\u202eright to left override, never closed",
    "\u05e9\u05dc\u05d5\u05dd \u05e2\u05d5\u05dc\u05dd, \u0645\u0631\u062d\u0628\u0627",
    "\N{FACE WITH TEARS OF JOY}\N{FAMILY} \U0001f469\u200d\U0001f680",
    "half \ud800 of a character \udfff",
    "nul \x00 bell \x07 escape \x1b[31m delete \x7f next \x85",
    "a" * 100_000,
    "| pipe | `tick` *star* _under_ [link](javascript:alert(5))",
    "line\u2028separator\u2029and\nnew\r\nlines",
    " ",
)
PRICING = Pricing(Decimal("0.0026"), "given", 10_000)


def table_of_texts(texts: Sequence[str], labels: Sequence[str], seed: int = 0) -> RoutingTable:
    """A table with random vectors and scores; a tenth of the predictions is wrong."""
    rng = np.random.default_rng(seed)
    n = len(texts)
    space = LabelSpace(tuple(sorted(set(labels))))
    y = space.encode(labels)
    predicted = np.where(rng.random(n) < 0.1, rng.integers(0, len(space), n), y).astype(np.int32)
    scores = rng.random(n)
    scores[::17] = -np.inf
    vectors = rng.normal(size=(n, 16)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return RoutingTable(
        space=space, ids=tuple(f"id-{i}" for i in range(n)), texts=tuple(texts), labels=tuple(labels),
        truth=(None,) * n, y=y, predicted=predicted, scores=scores, shown=scores.copy(), handled=scores >= 0.3,
        bars=np.where(np.isfinite(scores), 0, 2).astype(np.int8), stage=np.full(n, 2, dtype=np.int8), vectors=vectors,
        threshold=0.3, stands_on="made-up rows", policy="v0001", certified=True,
    )  # fmt: skip


@pytest.fixture(scope="session")
def success(fitted: tuple[Path, Certified], messages: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Facts:
    """The report of an updated home, with what changed."""
    folder, _ = fitted
    home = tmp_path_factory.mktemp("updated") / "home"
    dataset = replace(messages.take(np.arange(900)), dense=None, embedder=None)
    before = PolicyRegistry(folder).load()
    flywheel.fit(dataset.take(np.arange(600)), home=home, config=FitConfig(targets=(0.8,), features="lexical"))
    flywheel.update(dataset, home=home)
    policy = PolicyRegistry(home).load()
    assert policy.parent == before.version == "v0001"
    settings = flywheel.Settings.read(home)
    assert settings is not None
    stored = TraceStore.open(home).load()
    previous = PolicyRegistry(home).load("v0001")
    return gather(policy, policy.report, stored, settings.config, previous=previous, pricing=PRICING)


@pytest.fixture(scope="session")
def refusal(small_texts: Dataset) -> Facts:
    """The report of a refusal."""
    config = FitConfig(targets=(0.99,), features="lexical")
    verdict = pipeline.fit(small_texts, config)
    assert isinstance(verdict, Refused)
    report = verdict.report.as_dict()
    return gather(verdict.best, report, small_texts, config, refusal=verdict.refusal, pricing=PRICING)


@pytest.fixture(scope="session")
def hostile(tiny_policy: Policy) -> Facts:
    """Facts whose texts and labels were written by an enemy."""
    texts = HOSTILE * 8
    labels = [HOSTILE[(i // 16) % len(HOSTILE)] or "none" for i in range(len(texts))]
    table = table_of_texts(texts, labels)
    return facts(tiny_policy, report_of(table), table=table, artefacts=artefacts.build(table))


def report_of(table: RoutingTable) -> dict[str, Any]:
    """What a fit would leave, cut to what a report cannot do without."""
    frontier = [{"target": t, "coverage": c, "agreement": 0.95} for t, c in ((0.8, 0.9), (0.9, 0.6), (0.99, 0.0))]
    return {"frontier": frontier, "config": {"delta": 0.05}, "n_shadow": len(table), "n_traces": 3 * len(table)}
