"""Is the promise kept on real traces, and what does it cost? Many shadow rooms drawn from a pool of known agreement.

Of a training file, a random part is split by hash into a train room and a pool. All is trained on the train room, as
``tracer.fit`` does it. The pool is the whole population from then on: its agreement at a threshold is the truth.
Shadow rooms are drawn from it with replacement, so that their rows are independent draws, as the gate assumes. Each
goes through the gate, and through the rules of others on the scores of the gate's first candidate. The official test
sets play no part.

python -m benchmarks.resplits --data FOLDER
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binom

from benchmarks import baselines, common, rules
from benchmarks.common import QUICK_ROWS, Cells, Part, arguments, load_part, write_result
from benchmarks.core import premise
from benchmarks.worlds import holm
from tracer.certification import proposals
from tracer.certification.gate import WEIGHTS, Entrant, GateRules, run_gate
from tracer.config import FitConfig
from tracer.pipeline import certifying, training
from tracer.pipeline.training import SHORTLIST, Contender, Workshop
from tracer.policies.policy import Inputs
from tracer.traces.rooms import fold_ids
from tracer.types import OUTSIDE, Bool, Dataset, Float64

_PART = 0.8
"""Share of the file that a partition uses: the hash gives a trace the same room always, so the part varies."""
_SHADOW_SHARE = 0.5
_SEEDS, _DRAWS = range(4), 500
_QUICK_SEEDS, _QUICK_DRAWS = range(1), 100
_DELTAS, _SIZES = (0.05, 0.10), (500, 2000)
_SHOWN = (0.05, 2000)
_REVISION = 2

_RULES: dict[str, rules.Rule] = {
    "paper": rules.paper,
    "peer": rules.peer,
    "largest_empirical": rules.largest_empirical,
}
_BASELINES = ("confidence", "cache")


@dataclass(frozen=True, slots=True)
class Source:
    """A data set. ``targets`` were chosen from out-of-fold agreement; ``intents``: compared with the baselines."""

    name: str
    file: str
    targets: tuple[float, ...]
    grouped: bool = False
    intents: bool = False


_SOURCES = (
    Source("banking77", "train.jsonl", (0.90, 0.95, 0.98), intents=True),
    Source("clinc150", "train.jsonl", (0.95, 0.98, 0.99), intents=True),
    Source("northlight", "traces.jsonl", (0.80, 0.90, 0.95), intents=True),
    Source("nli", "train.jsonl", (0.50, 0.60, 0.70), grouped=True),
    Source("onet_exposure", "traces.jsonl", (0.80, 0.90, 0.95), grouped=True),
    Source("annolexical", "train.jsonl", (0.75, 0.80, 0.90)),
)
_QUICK = ("banking77", "northlight", "nli")


@dataclass(frozen=True, slots=True)
class Setting:
    """One cell: what is promised, at which delta, on how many shadow traces."""

    target: float
    delta: float
    n: int

    @property
    def config(self) -> FitConfig:
        """The fit that this cell is about."""
        return FitConfig(targets=(self.target,), delta=self.delta, shadow_share=_SHADOW_SHARE, ledger="promotion")

    @property
    def gate(self) -> GateRules:
        """The gate of that fit."""
        promise = training.promise_of(self.config, self.target)
        return GateRules(promise, self.delta, self.delta, self.config.coverage_floor, 1, "drawn from the pool", "")

    def generator(self, seed: int) -> np.random.Generator:
        """Draws of its own for each cell of each partition."""
        return np.random.default_rng([seed, self.n, round(1000 * self.target), round(1000 * self.delta)])


@dataclass(frozen=True, slots=True, eq=False)
class Population:
    """The pool as one candidate sees it: score (N,) and agreement with the teacher (N,)."""

    scores: Float64
    agree: Bool

    def tally(self, thresholds: Float64, target: float) -> dict[str, int]:
        """Of thresholds (draws,), inf where refused: how many were promoted, how many of these fall short of the
        target on the whole pool, and how many rows of the pool they handle, summed over draws."""
        handled, wrong = proposals.counts_at(self.scores, self.agree, thresholds)
        # The tolerance only absorbs the rounding of target * handled, which is a whole number at equality.
        short = handled - wrong < target * handled - 1e-9
        promoted = int((thresholds < np.inf).sum())
        return {"promoted": promoted, "violations": int(short.sum()), "handled": int(handled.sum())}

    def oracle(self, target: float) -> int:
        """Rows handled at the largest coverage that truly reaches the target; 0 where none does."""
        threshold = rules.oracle(self.scores, self.agree, target, np.random.default_rng(0))
        return int((self.scores >= threshold).sum()) if threshold is not None else 0


class Bench:
    """One partition: everything trained on the train room, and the pool."""

    def __init__(self, source: Source, part: Part, seed: int) -> None:
        """Train as the product does; of the pool only its size is used until draws begin."""
        traces = common.draw(part.dataset, round(_PART * len(part.dataset)), seed)
        self.shop = training.train(
            traces, FitConfig(shadow_share=_SHADOW_SHARE, ledger="promotion"), encodings=part.encodings
        )
        self.pool = self.shop.dataset.take(self.shop.rooms.shadow)
        self._populations: dict[tuple[str, float], Population] = {}
        self._baselines = dict(self._train_baselines()) if source.intents else {}

    def measure(self, setting: Setting, seed: int, draws: int) -> dict[str, Any]:
        """Counts of one cell."""
        rng = setting.generator(seed)
        rows = rng.integers(len(self.pool), size=(draws, setting.n))
        entrants, contenders = self._entrants(setting)
        first = Population(entrants[0].scores, entrants[0].agree)
        out: dict[str, Any] = {"oracle": first.oracle(setting.target)}
        out["ours"] = _ours(entrants, contenders, setting, rows)
        for name, rule in _RULES.items():
            out[name] = _by_rule(first, rule, setting.target, rows, rng)
        for name, (population, on_train) in self._baselines.items():
            out[f"{name}_oracle"] = population.oracle(setting.target)
            out[f"{name}_empirical"] = _by_rule(population, rules.largest_empirical, setting.target, rows, rng)
            plan = proposals.propose(
                on_train.scores,
                on_train.agree,
                setting.n,
                setting.gate.promise,
                setting.delta,
                setting.config.grid_size,
            )
            alone = Entrant(name, "l2d", plan, population.scores, population.agree)
            out[f"{name}_certified"] = _ours([alone], [], setting, rows)
        return out

    def _entrants(self, setting: Setting) -> tuple[list[Entrant], list[Contender]]:
        """The shortlist with its chains, as ``certifying.certify`` makes it for a shadow room of this size."""
        config, promise = setting.config, setting.gate.promise
        shop = _for_setting(self.shop, config, setting.n)
        contenders = [c for c, _ in certifying.rank_contenders(shop, config, promise, setting.delta)[:SHORTLIST]]
        entrants = []
        for weight, contender in zip(WEIGHTS[len(contenders)], contenders, strict=True):
            plan = proposals.propose(
                contender.scored.scores,
                contender.agree,
                setting.n,
                promise,
                weight * setting.delta,
                config.grid_size,
                one_scale=contender.first is None,
            )
            seen = self._on_pool(contender)
            entrants.append(Entrant(contender.name, contender.family, plan, seen.scores, seen.agree))
        return entrants, contenders

    def _on_pool(self, contender: Contender) -> Population:
        key = (contender.name, contender.cut)
        if key not in self._populations:
            policy = certifying.reloaded(certifying.draft(self.shop, contender, "", None))
            scored = policy.score(Inputs.of(self.pool.texts, self.pool.dense)).scored
            self._populations[key] = Population(scored.scores, scored.predicted == self.pool.y)
        return self._populations[key]

    def _train_baselines(self) -> Iterator[tuple[str, tuple[Population, Population]]]:
        """Each baseline on the pool, and out of fold on the train room."""
        dataset, rooms = self.shop.dataset, self.shop.rooms
        known = rooms.train[dataset.y[rooms.train] != OUTSIDE]
        room = dataset.take(known)
        folds = fold_ids(dataset, known, FitConfig().folds)
        first = folds == folds.min()
        penalty = baselines.best_penalty(room.take(np.flatnonzero(~first)), room.take(np.flatnonzero(first)))
        fits: dict[str, Callable[[Dataset, Dataset], baselines.Scores]] = {
            "confidence": partial(baselines.confidence, inverse_penalty=penalty),
            "cache": baselines.nearest,
        }
        for name, fit in fits.items():
            scores, agree = np.empty(len(room)), np.empty(len(room), dtype=np.bool_)
            for fold in np.unique(folds):
                inside = folds == fold
                held = fit(room.take(np.flatnonzero(~inside)), room.take(np.flatnonzero(inside)))
                scores[inside], agree[inside] = held.score, held.agree
            on_pool = fit(room, self.pool)
            yield (
                name,
                (Population(np.asarray(on_pool.score, dtype=np.float64), on_pool.agree), Population(scores, agree)),
            )


def _for_setting(shop: Workshop, config: FitConfig, n_shadow: int) -> Workshop:
    """What training would have left for this target, delta and number of shadow traces.

    Nothing but the cut of the cascade depends on them, so nothing else is trained again.
    """
    single = [c for c in shop.contenders if c.first is None]
    cascades = training.cascades([c.trained for c in single], config, n_shadow)
    return replace(shop, contenders=(*single, *cascades), n_shadow=n_shadow)


def _ours(
    entrants: Sequence[Entrant], contenders: Sequence[Contender], setting: Setting, rows: NDArray[np.intp]
) -> dict[str, int]:
    """The gate on each draw (draws, n), and the choice among those that passed, as ``certifying.certify`` makes it.

    ``assumed`` counts promotions that rest on the assumption of chains with several starts.
    """
    config, gate = setting.config, setting.gate
    thresholds = np.full((len(entrants), len(rows)), np.inf)
    total = {"promoted": 0, "violations": 0, "handled": 0, "assumed": 0}
    for i, drawn in enumerate(rows):
        shown = [replace(e, scores=e.scores[drawn], agree=e.agree[drawn]) for e in entrants]
        certificates = [passage.certificate for passage in run_gate(shown, gate)]
        # A baseline stands alone: there is nothing to choose.
        chosen = certifying.choose(certificates, contenders, config) if contenders else 0
        if chosen is None or certificates[chosen] is None:
            continue
        certificate = certificates[chosen]
        assert certificate is not None
        thresholds[chosen, i] = certificate.threshold
        total["assumed"] += bool(certificate.assumption)
    for entrant, own in zip(entrants, thresholds, strict=True):
        for key, count in Population(entrant.scores, entrant.agree).tally(own, setting.target).items():
            total[key] += count
    return total


def _by_rule(
    population: Population, rule: rules.Rule, target: float, rows: NDArray[np.intp], rng: np.random.Generator
) -> dict[str, int]:
    thresholds = np.full(len(rows), np.inf)
    for i, drawn in enumerate(rows):
        threshold = rule(population.scores[drawn], population.agree[drawn], target, rng)
        if threshold is not None:
            thresholds[i] = threshold
    return population.tally(thresholds, target)


def partition(source: Source, part: Part, seed: int, draws: int) -> dict[str, Any]:
    """All cells of one partition."""
    bench = Bench(source, part, seed)
    best = max(bench.shop.contenders, key=lambda c: int(c.agree.sum()))
    cells = [
        {"target": s.target, "delta": s.delta, "n": s.n, **bench.measure(s, seed, draws)}
        for s in (Setting(*values) for values in product(source.targets, _DELTAS, _SIZES))
    ]
    out = {"seed": seed, "n_train": len(bench.shop.y), "n_pool": len(bench.pool)}
    print(f"{source.name}, seed {seed}: {out['n_train']} to train, pool of {out['n_pool']}", flush=True)
    return out | {"out_of_fold": int(best.agree.sum()), "cells": cells}


def summed(partitions: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Counts of each cell summed over partitions. ``pool`` is the sum of their pools' sizes."""
    pool = sum(p["n_pool"] for p in partitions)
    out = []
    for same in zip(*(p["cells"] for p in partitions), strict=True):
        cell = {key: same[0][key] for key in ("target", "delta", "n")} | {"pool": pool}
        for key, value in same[0].items():
            if isinstance(value, dict):
                cell[key] = {name: sum(c[key][name] for c in same) for name in value}
            elif key not in cell:
                cell[key] = sum(c[key] for c in same)
        out.append(cell)
    return out


def measure_source(source: Source, folder: Path, *, quick: bool) -> dict[str, Any]:
    """All partitions of a data set."""
    part = load_part(
        folder / source.name / source.file,
        group_by=premise if source.grouped else None,
        limit=QUICK_ROWS if quick else None,
    )
    cells = Cells("resplits", part.digest, revision=_REVISION, quick=quick)
    draws = _QUICK_DRAWS if quick else _DRAWS
    partitions = [
        cells.get(f"{source.name} {seed}", partial(partition, source, part, seed, draws))
        for seed in (_QUICK_SEEDS if quick else _SEEDS)
    ]
    return {
        "data": source.name,
        "digest": part.digest[:16],
        "n_traces": len(part.dataset),
        "partitions": [{k: v for k, v in p.items() if k != "cells"} for p in partitions],
        "cells": summed(partitions),
    }


def main() -> None:
    """Measure every data set and write the results."""
    given = arguments(__doc__ or "")
    sources = [source for source in _SOURCES if not given.quick or source.name in _QUICK]
    sets = [measure_source(source, given.data, quick=given.quick) for source in sources]
    content = {
        "digest": hashlib.sha256(" ".join(s["digest"] for s in sets).encode()).hexdigest()[:16],
        "part": _PART,
        "shadow_share": _SHADOW_SHARE,
        "draws": _QUICK_DRAWS if given.quick else _DRAWS,
        "partitions": len(_QUICK_SEEDS if given.quick else _SEEDS),
        "sets": sets,
    }
    write_result("resplits", content, quick=given.quick)


@dataclass(frozen=True, slots=True)
class Row:
    """A cell as the tables read it: counts over ``partitions`` of ``each`` draws."""

    data: str
    counts: dict[str, Any]
    each: int
    partitions: int

    @property
    def draws(self) -> int:
        """Draws in all."""
        return self.each * self.partitions

    @property
    def setting(self) -> tuple[float, int]:
        """Delta and the number of shadow traces."""
        return self.counts["delta"], self.counts["n"]

    def coverage(self, method: str) -> float:
        """Mean share of the pool that is handled, 0 where refused."""
        counts, pool = self.counts[method], self.counts["pool"]
        return float(counts / pool if isinstance(counts, int) else counts["handled"] / (self.each * pool))

    def violated(self, method: str) -> float:
        """Share of the draws that promote a policy below the target."""
        return float(self.counts[method]["violations"] / self.draws)

    def both(self, method: str) -> str:
        """Coverage, then share of violations."""
        return f"{self.coverage(method):.3f}, {self.violated(method):.3f}"

    def certified(self, method: str) -> str:
        """Coverage at a certified threshold, and that of the method's own oracle."""
        return f"{self.coverage(f'{method}_certified'):.3f} ({self.coverage(f'{method}_oracle'):.3f})"

    def lost(self, method: str) -> float:
        """Coverage that a method leaves to the oracle."""
        return self.coverage("oracle") - self.coverage(method)

    @property
    def p_value(self) -> float:
        """P-value of 'ours breaks the promise in at most a share delta of the draws'.

        Given its partition, a draw breaks it with a chance of at most delta. So the binomial law of the sum holds over
        partitions too.
        """
        return float(binom.sf(self.counts["ours"]["violations"] - 1, self.draws, self.counts["delta"]))


def render(result: dict[str, Any]) -> str:
    """The promise on the page's setting, then over all cells, then beside the baselines."""
    rows = [Row(s["data"], c, result["draws"], result["partitions"]) for s in result["sets"] for c in s["cells"]]
    delta, n = _SHOWN
    shown = [row for row in rows if row.setting == _SHOWN]
    pools = ", ".join(
        f"{s['data']} {s['partitions'][0]['n_train']:,} and {s['partitions'][0]['n_pool']:,}" for s in result["sets"]
    )
    method = _METHOD.format(
        **{key: result[key] for key in ("part", "shadow_share", "draws", "partitions")}, delta=delta, n=n, pools=pools
    )
    penalties = ", ".join(f"{c:g}" for c in baselines.PENALTIES)
    adjusted = holm(np.array([row.p_value for row in rows])).tolist()
    intents = [row for row in rows if "confidence_certified" in row.counts]
    more = {
        name: sum(row.coverage(f"{name}_certified") > row.coverage("ours") for row in intents) for name in _BASELINES
    }
    counts = [row.counts["ours"] for row in rows]
    return f"""## The promise on real traces, and its cost

{method}

{_promise_table(shown)}

Over all {len(rows)} cells (every data set and target, delta and number of shadow traces) ours breaks its promise in
more than a share delta of the draws, beyond chance, in {sum(p <= 0.05 for p in adjusted)} (exact one-sided binomial
tests at 0.05, adjusted by Holm's method; smallest adjusted p-value {min(adjusted):.3g}).
Of {sum(c["promoted"] for c in counts):,} promotions {sum(c["assumed"] for c in counts):,} rest on the assumption that
chains with several starts make.

{_beside(rows)}

{_summary_table(rows)}

Coverage at the same certified target, on the same draws: a confidence threshold (logistic regression on the
embeddings, the best C of {penalties} on a held-out fold) and a semantic cache (nearest neighbour by cosine), each with its own
scores and its own chain, tested alone at the full delta; in brackets the coverage of its own oracle. Over the
{len(intents)} cells of these data sets the confidence threshold covers more than ours in {more["confidence"]}, the
cache in {more["cache"]}. The last two columns: how often their threshold of largest empirical coverage, as it is
commonly set, falls short of the target.

{_baseline_table([row for row in intents if row.setting == _SHOWN])}

{common.footer(result)}
"""


_METHOD = """Of each training file a random {part:.0%} is split by hash into a train room, on which everything is trained as
`tracer.fit` does it, and a pool ({shadow_share:.0%} of it). The pool is the whole population, so its agreement is the
truth: in each of {partitions} partitions {draws} shadow rooms of {n:,} rows are drawn from it with replacement and go
through the gate at delta = {delta:g}. A violation is a draw that promotes a policy whose agreement on the pool is below
the target; of all draws, the promise allows a share of delta. Coverage is the mean over draws on the pool, 0 where
refused. The oracle takes the largest coverage that truly reaches the target. The rules of others see the same rows and,
like the oracle, the scores of our first candidate; the peer's own level is 0.10 at any delta. Targets were chosen from
out-of-fold agreement; official test sets play no part. Traces in train room and pool of the first partition (a pool
holds one of each group): {pools}."""


def _beside(rows: Sequence[Row]) -> str:
    """Where a rule of others covers more than ours, and whether it keeps a promise at delta."""
    lines = []
    for rule, title in (
        ("paper", "the paper's rule"),
        ("peer", "the peer's"),
        ("largest_empirical", "the largest empirical"),
    ):
        more = [row for row in rows if row.coverage(rule) > row.coverage("ours")]
        broken = sum(row.violated(rule) > row.counts["delta"] for row in more)
        at_most = max((row.violated(rule) for row in rows), default=0.0)
        lines.append(
            f"{title} in {len(more)}, of which it breaks the promise too often in {broken} (at most {at_most:.3f})"
        )
    return (
        f"Of the {len(rows)} cells, more than ours is covered by "
        + "; by ".join(lines)
        + ". Too often: in more than a share\n"
        "delta of the draws, as counted. The peer promises 0.10 whatever delta is; the worlds above have its rates\n"
        "where risk is flat."
    )


def _promise_table(rows: Sequence[Row]) -> str:
    head = [
        "data", "target", "oracle: coverage", "ours: coverage", "refused", "violations (95% interval)",
        "paper: coverage, violations", "peer: coverage, violations", "largest empirical: coverage, violations",
    ]  # fmt: skip
    return common.table(
        head,
        (
            [
                row.data,
                f"{row.counts['target']:g}",
                f"{row.coverage('oracle'):.3f}",
                f"{row.coverage('ours'):.3f}",
                common.share(row.draws - row.counts["ours"]["promoted"], row.draws),
                common.interval(row.counts["ours"]["violations"], row.draws),
                *(row.both(rule) for rule in _RULES),
            ]
            for row in rows
        ),
    )


def _summary_table(rows: Sequence[Row]) -> str:
    """Mean and largest over cells."""
    lines = []
    for delta, n in sorted({row.setting for row in rows}):
        same = [row for row in rows if row.setting == (delta, n)]
        violated = [_spread([row.violated(method) for row in same]) for method in ("ours", *_RULES)]
        lost = [_spread([row.lost(method) for row in same]) for method in ("ours", "peer")]
        lines.append([f"{delta:g}", f"{n:,}", len(same), *violated, *lost])
    head = [
        "delta", "shadow traces", "cells", "ours: violations, mean and largest", "paper: violations", "peer: violations",
        "largest empirical: violations", "ours: coverage lost to the oracle, mean and largest", "peer: coverage lost",
    ]  # fmt: skip
    return common.table(head, lines)


def _spread(values: Sequence[float]) -> str:
    return f"{mean(values):.3f}, {max(values):.3f}"


def _baseline_table(rows: Sequence[Row]) -> str:
    head = [
        "data", "target", "ours", "confidence threshold", "semantic cache",
        "confidence, largest empirical: violations", "cache, largest empirical: violations",
    ]  # fmt: skip
    return common.table(
        head,
        (
            [
                row.data,
                f"{row.counts['target']:g}",
                f"{row.coverage('ours'):.3f} ({row.coverage('oracle'):.3f})",
                *(row.certified(name) for name in _BASELINES),
                *(f"{row.violated(f'{name}_empirical'):.3f}" for name in _BASELINES),
            ]
            for row in rows
        ),
    )


if __name__ == "__main__":
    main()
