"""Hundreds of lives of the flywheel in worlds whose truth is known in closed form (see ``worlds``).

Every attempt trains another surrogate, which has a curve of its own. The rooms, the rule for fresh traces, the ledger,
the gate, the standing of the policy in force and the decision are the package's own; surrogates, store and clock are not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from scipy import special

from benchmarks.common import Cells, interval, table
from benchmarks.worlds import World, agreement, flat, power
from tracer.certification.certificate import Certificate
from tracer.certification.gate import Entrant, GateRules, run_gate
from tracer.certification.proposals import propose
from tracer.config import FitConfig, Ledger
from tracer.flywheel import running
from tracer.flywheel.deciding import decide
from tracer.flywheel.fitting import level_of
from tracer.pipeline import Certified, Refused
from tracer.pipeline.standing import stand
from tracer.pipeline.training import Workshop
from tracer.policies.policy import Policy
from tracer.stats import binomial
from tracer.types import Bool, Dataset, Float64

_SEED = 20261124
TARGET = 0.95
DAYS, A_DAY, LOG, SHADOW = 30, 500, 2000, 0.3
_EVIDENCE = 3000
"""Out-of-fold rows that an attempt reads at most: the newest."""
_LIKENESS = 0.7
_EVIDENCE_ERROR = 0.15
Curve = Callable[[np.random.Generator, int], World]


def _learning(rng: np.random.Generator, n_train: int) -> World:
    """Better with more traces, with luck of its own."""
    gain = 0.30 * (LOG / n_train) ** 0.35 * math.exp(_EVIDENCE_ERROR * rng.standard_normal())
    return power(0.004, gain, 4.0)


def _boundary(_rng: np.random.Generator, _n_train: int) -> World:
    """A hair below the target whatever the threshold: no promotion is right."""
    return flat(1.0 - TARGET + 2e-4)


def _about(rng: np.random.Generator, _n_train: int) -> World:
    """Any threshold agrees as often; half of the surrogates are below the target, by a point as a rule."""
    return flat(float(np.clip(1.0 - TARGET + 0.01 * rng.standard_normal(), 0.005, 0.2)))


_LIVES = {"learning": 200, "about the target": 100, "a hair below the target": 100}
WORLDS: dict[str, Curve] = {"learning": _learning, "about the target": _about, "a hair below the target": _boundary}


@dataclass(frozen=True, slots=True)
class Way:
    """How lives are led: the ledger, the fresh traces that certify alone (a multiple of the fewest), the audit rate."""

    ledger: Ledger = "lifetime"
    fresh: float = 5.0
    audit_rate: float = 0.10


WAYS = (Way(), Way("promotion"), Way(audit_rate=0.02), Way(fresh=3.0), Way(fresh=10.0), Way(fresh=math.inf))


@dataclass(slots=True, eq=False)
class _Surrogate:
    """What an attempt trained, as far as a threshold is concerned; it stands in for a policy."""

    number: int
    world: World
    scores: Float64
    agree: Bool
    certificate: Certificate | None = None

    def policy(self) -> Policy:
        assert self.certificate is not None

        def score(inputs: Any) -> Any:
            rows = inputs.dense[:, 0].astype(np.intp)
            predicted = np.where(self.agree[rows], 0, 1)
            return SimpleNamespace(scored=SimpleNamespace(scores=self.scores[rows], predicted=predicted))

        return cast(Policy, SimpleNamespace(
            version=f"v{self.number:04d}", certificate=self.certificate, threshold=self.certificate.threshold,
            score=score, space=SimpleNamespace(names=("a", "b")),
        ))  # fmt: skip


@dataclass(slots=True, eq=False)
class _Life:
    """Rows come in order; row r is number r + 1 once recorded."""

    curve: Curve
    way: Way
    rng: np.random.Generator
    shared: Float64
    luck: Float64
    hashed: Bool
    rows: NDArray[np.intp] = field(default_factory=lambda: np.empty(0, dtype=np.intp))
    audits: Bool = field(default_factory=lambda: np.empty(0, dtype=np.bool_))
    plain: Bool = field(default_factory=lambda: np.empty(0, dtype=np.bool_))
    attempts: int = 0
    decided: int = 0
    released: int = 0
    n_released: int = 0
    active: _Surrogate | None = None
    broken: int = 0
    in_force: int = 0

    @property
    def config(self) -> FitConfig:
        return FitConfig(targets=(TARGET,), ledger=self.way.ledger)

    def record(self, rows: NDArray[np.intp], audits: Bool, *, plain: bool) -> None:
        """Returned labels of these rows; ``plain``: all were asked, whatever a policy thinks."""
        self.rows = np.concatenate([self.rows, rows])
        self.audits = np.concatenate([self.audits, audits])
        self.plain = np.concatenate([self.plain, ~audits & plain])

    def shadow(self, after: int) -> NDArray[np.intp]:
        """Places (from 0) of recorded rows that certify, after a number."""
        chosen = self.audits[after:] | (self.plain[after:] & self.hashed[self.rows[after:]])
        return np.flatnonzero(chosen) + after

    def enough(self) -> float:
        level = level_of(self.config, self.attempts + 1)
        return float(int(self.way.fresh * binomial.n_min(TARGET, level))) if math.isfinite(self.way.fresh) else math.inf

    def due(self) -> bool:
        n, new = len(self.rows), len(self.rows) - self.decided
        return new > 0 and (
            len(self.shadow(self.decided)) >= self.enough() or n >= running.GROWN * max(self.decided, 1)
        )

    def train(self, n_train: int) -> _Surrogate:
        world = self.curve(self.rng, n_train)
        own = self.rng.standard_normal(len(self.shared))
        c = special.ndtr(_LIKENESS * self.shared + math.sqrt(1.0 - _LIKENESS**2) * own)
        return _Surrogate(self.attempts, world, world.scores(c), self.luck >= world.disagreement(c))

    def attempt(self) -> None:
        config, promise = self.config, agreement(TARGET)
        if self.attempts and len(self.shadow(self.decided)) >= self.enough():
            self.released, self.n_released = self.decided, self.n_released + 1
        self.attempts += 1
        level = level_of(config, self.attempts)
        rows = self.rows
        shadow = self.shadow(self.released)
        train = np.delete(np.arange(len(rows)), shadow)
        made = self.train(len(train))
        standing = None
        if self.active is not None:
            room = Dataset.from_columns(
                ["a"] * len(shadow), dense=rows[shadow, None].astype(np.float32), numbers=shadow + 1,
                ids=list(map(str, rows[shadow].tolist())),
            )  # fmt: skip
            shop = SimpleNamespace(dataset=room, rooms=SimpleNamespace(shadow=np.arange(len(shadow))))
            standing = stand(self.active.policy(), cast(Workshop, shop), config, level, self.attempts, self.decided)
            level -= standing.level
        evidence = rows[train[(self.plain | self.audits)[train]]][-_EVIDENCE:]
        plan = propose(made.scores[evidence], made.agree[evidence], len(shadow), promise, level)
        entrant = Entrant("surrogate", "l2d", plan, made.scores[rows[shadow]], made.agree[rows[shadow]])
        n_reused = int((shadow < self.decided).sum())
        rules = GateRules(
            promise, config.delta, level, config.coverage_floor, self.attempts, "simulated", "", n_reused=n_reused,
            ledger=config.ledger,
        )  # fmt: skip
        made.certificate = run_gate([entrant], rules)[0].certificate
        verdict: Any = (
            Certified(made.policy(), cast(Any, None)) if made.certificate else Refused(cast(Any, None), cast(Any, None))
        )
        action = decide(verdict, standing, "keep").action
        if action == "promote":
            self._put(made)
        elif action == "renew" and standing is not None and self.active is not None and standing.certificate:
            self.active.certificate = standing.certificate
        elif action == "demote" and standing is not None and self.active is not None:
            if standing.fallback is None:
                self.active = None
            else:
                self.active.certificate = standing.fallback
        self.decided = len(self.rows)

    def _put(self, made: _Surrogate) -> None:
        assert made.certificate is not None
        self.active, self.in_force = made, self.in_force + 1
        self.broken += not made.world.keeps(agreement(TARGET), made.certificate.threshold)

    def coverage(self) -> float:
        if self.active is None or self.active.certificate is None:
            return 0.0
        return self.active.world.coverage(self.active.certificate.threshold)

    def day(self, requests: NDArray[np.intp]) -> None:
        """Route a day's requests."""
        coins = self.rng.random(len(requests)) < self.way.audit_rate
        if self.active is None or self.active.certificate is None:
            self.record(requests, coins, plain=True)
            return
        asked = coins | (self.active.scores[requests] < self.active.certificate.threshold)
        self.record(requests[asked], coins[asked], plain=False)


def lead(curve: Curve, way: Way, seed: int) -> list[float]:
    """One life: promotions below target, promotions, attempts, those on fresh traces alone, mean and last coverage."""
    rng = np.random.default_rng([_SEED, seed])
    n = LOG + DAYS * A_DAY
    life = _Life(curve, way, rng, rng.standard_normal(n), rng.uniform(size=n), rng.random(n) < SHADOW)
    life.record(np.arange(LOG), np.zeros(LOG, dtype=np.bool_), plain=True)
    life.attempt()
    coverages = []
    for day in range(DAYS):
        life.day(np.arange(LOG + day * A_DAY, LOG + (day + 1) * A_DAY))
        if life.due():
            life.attempt()
        coverages.append(life.coverage())
    return [
        life.broken, life.in_force, life.attempts, life.n_released, round(float(np.mean(coverages)), 5),
        round(coverages[-1], 5),
    ]  # fmt: skip


def measure(cells: Cells, *, quick: bool) -> dict[str, Any]:
    """All worlds and ways."""
    out: dict[str, Any] = {"target": TARGET, "cells": []}
    for world, curve in WORLDS.items():
        n = 10 if quick else _LIVES[world]
        for way in WAYS if world == "learning" else WAYS[:3]:
            key = f"lives {world} {way} {n} {DAYS}"
            found = cells.get(key, lambda: [lead(curve, way, seed) for seed in range(n)])  # noqa: B023
            lives = [list(column) for column in zip(*found, strict=True)]
            fresh = None if math.isinf(way.fresh) else way.fresh
            out["cells"].append({
                "world": world, "ledger": way.ledger, "fresh": fresh, "audit_rate": way.audit_rate, "n": n,
                "n_broken": sum(b > 0 for b in lives[0]), "n_promotions": sum(lives[1]), "n_attempts": sum(lives[2]),
                "n_released": sum(lives[3]), "coverage": float(np.mean(lives[4])), "last": float(np.mean(lives[5])),
            })  # fmt: skip
            print(f"lives: {world}, {way}: {out['cells'][-1]}", flush=True)
    return out


_HEAD = """### Many lives in worlds whose truth is known

100 or 200 lives of {days} days, {a_day} requests a day after a log of {log:,}, target {target:g}, delta 0.05. Each attempt trains a
surrogate with a curve of its own: *learning* ones get better with more traces, *about the target* ones agree at any
threshold equally, half of them less often than promised, and *a hair below the target* no promotion is ever right. A life
is broken where any policy that was promoted in it is truly below the target; under the ledger `lifetime` at most 5% may
be, under `promotion` nobody promises that."""


def render(result: Mapping[str, Any]) -> str:
    """A subsection of the loop's."""
    rows = []
    for cell in result["cells"]:
        n = cell["n"]
        rows.append([
            cell["world"], cell["ledger"], "never" if cell["fresh"] is None else f"{cell['fresh']:g}",
            f"{cell['audit_rate']:.0%}", f"{cell['n_broken']} of {n}, {interval(cell['n_broken'], n)}",
            f"{cell['n_promotions'] / n:.1f}", f"{cell['n_attempts'] / n:.1f}", f"{cell['n_released'] / n:.1f}",
            f"{cell['coverage']:.3f}", f"{cell['last']:.3f}",
        ])  # fmt: skip
    head = ["surrogates", "ledger", "fresh alone from (times the fewest)", "audited", "broken lives (share)",
            "promotions a life", "attempts", "on fresh ones alone", "true coverage, mean", "at the end"]  # fmt: skip
    text = _HEAD.format(days=DAYS, a_day=A_DAY, log=LOG, target=result["target"])
    return f"{text}\n\n{table(head, rows)}"
