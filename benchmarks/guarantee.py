"""Is the promise true where the truth is known in closed form? The gate, and other rules, in simulated worlds.

Each repetition is a fresh shadow room. A violation is a promotion whose true selective agreement at the deployed
threshold is below the target (for the overall contract: that breaks either of its two promises). Needs no data;
``--data`` is taken as by all benchmarks.

python -m benchmarks.guarantee --data FOLDER [--quick]
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import special

from benchmarks import rules
from benchmarks.common import Cells, arguments, footer, interval, share, table, write_result
from benchmarks.worlds import (
    BENIGN,
    COVERAGE_FLOOR,
    EASY,
    EVIDENCE,
    HARD,
    Listed,
    Room,
    World,
    agreement,
    blocks,
    boundary,
    draw,
    flat,
    holm,
    overall,
    overconfident,
    power,
    traps,
    wave,
)
from tracer.certification import proposals
from tracer.certification.gate import WEIGHTS, Entrant, GateRules, run_gate
from tracer.certification.proposals import Promise, propose
from tracer.config import Contract
from tracer.pipeline.training import SHORTLIST
from tracer.stats import testing
from tracer.traces.rooms import assign_rooms
from tracer.types import Bool, Dataset, Float64, Origin

_REVISION = 2
_SEED = 20260727
_HAIR = 1e-6
_REPETITIONS = 2000
_PER_PROPOSAL = 100
_ATTEMPTS = 30
_SIZES = (150, 300, 500, 1000, 2000, 5000)
_OTHERS: dict[str, rules.Rule] = {
    "peer": rules.peer,
    "paper": rules.paper,
    "largest empirical": rules.largest_empirical,
}
_FIXED_STARTS = (98, 119, 140)
_SPREAD = (0.4, 0.6, 0.8, 1.0)
Starts = Literal["proposed", "several"] | tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Cell:
    """One world at one size, target and delta.

    ``evidence``: the out-of-fold evidence comes from these worlds instead, so that it misleads. ``starts``: as
    proposed, always several up to the proposed one, or these. ``falling``: disagreement does not rise with the score,
    which several starts assume. ``size``: rows of each group; with more than one row ``n`` counts groups.
    """

    heading: str
    worlds: tuple[World, ...]
    n: int
    target: float
    delta: float = 0.05
    contract: Contract = "agreement"
    likeness: float = 0.7
    evidence: tuple[World, ...] | None = None
    starts: Starts = "proposed"
    falling: bool = True
    size: int = 1

    @property
    def key(self) -> str:
        """Names the cell, and seeds it."""
        numbers = f"n {self.n}, target {self.target:g}, delta {self.delta:g}, likeness {self.likeness:g}"
        return f"{self.heading}: {numbers}"

    @property
    def part(self) -> str:
        """The table it belongs to."""
        if self.size > 1:
            return "groups"
        if len(self.worlds) > 1:
            return "candidates"
        if self.starts != "proposed":
            return "starts"
        return "overall" if self.contract == "overall" else "one candidate"

    @property
    def promise(self) -> Promise:
        """What is promised."""
        return agreement(self.target) if self.contract == "agreement" else overall(self.target)


@dataclass(slots=True)
class Count:
    """What became of the repetitions of one method."""

    broken: int = 0
    refused: int = 0
    coverages: list[float] = field(default_factory=list)

    def add(self, world: World | None, threshold: float | None, promise: Promise) -> None:
        """One repetition: what was deployed, or None where it was refused."""
        if world is None or threshold is None:
            self.refused += 1
            self.coverages.append(0.0)
            return
        self.broken += not world.keeps(promise, threshold)
        self.coverages.append(world.coverage(threshold))

    def as_list(self) -> list[float]:
        """Violations, refusals, mean true coverage."""
        return [self.broken, self.refused, round(float(np.mean(self.coverages)), 4)]


# --- the gate as the pipeline uses it ---------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Passed:
    """A candidate that passed: its threshold and its handled shadow rows."""

    candidate: int
    threshold: float
    n_handled: int


def passed(listed: Listed, room: Room, promise: Promise, level: float) -> Passed | None:
    """The gate on one candidate at its share of delta.

    With several starts the gate finds a common level between level / starts and level. Where both ends lead to the same
    step no level between them can lead elsewhere, and the search is spared.
    """
    plan = listed.proposal
    if len(plan.starts) > 1:
        handled, wrong = proposals.counts_at(*room, plan.thresholds)
        p = promise.p_values(wrong, handled, len(room[0]))
        strict, loose = (testing.multi_start(p, plan.starts, x) for x in (level / len(plan.starts), level))
        if strict == loose:
            enough = loose >= 0 and handled[loose] >= COVERAGE_FLOOR * len(room[0])
            return Passed(listed.candidate, float(plan.thresholds[loose]), int(handled[loose])) if enough else None
    asked = GateRules(promise, level, level, COVERAGE_FLOOR, 1, "simulated", "")
    (passage,) = run_gate([Entrant("", "l2d", plan, *room)], asked)
    certificate = passage.certificate
    return Passed(listed.candidate, certificate.threshold, certificate.n_handled) if certificate else None


def passes(listed: Sequence[Listed], room: Sequence[Room], promise: Promise, levels: Sequence[float]) -> list[Passed]:
    """Those that passed, in the order of the shortlist."""
    each = (passed(one, room[one.candidate], promise, x) for one, x in zip(listed, levels, strict=True))
    return [one for one in each if one is not None]


def deployed(won: Sequence[Passed]) -> Passed | None:
    """The one that handles most: the pipeline's choice, but for what it pays for agreement."""
    return max(won, key=lambda one: one.n_handled, default=None)


def one_start(listed: Listed, evidence: Room, cell: Cell, level: float) -> Listed:
    """The chain as it is proposed where only one start is allowed."""
    return replace(listed, proposal=propose(*evidence, cell.n, cell.promise, level, one_scale=False))


def with_starts(listed: Listed, single: Listed, starts: Starts) -> Listed:
    """The chain with the starts that the cell asks for; several of them up to the best single one."""
    if starts == "proposed":
        return listed
    (start,) = single.proposal.starts
    chosen = tuple(sorted({int(start * x) for x in _SPREAD})) if starts == "several" else starts
    return replace(listed, proposal=replace(listed.proposal, starts=chosen))


# --- cells ------------------------------------------------------------------------------------------------


def measure(cell: Cell, repetitions: int) -> dict[str, Any]:
    """All repetitions of a cell, each method on the same shadow rooms."""
    rng = np.random.default_rng([_SEED, zlib.crc32(cell.key.encode())])
    counts = _measure_groups(cell, repetitions, rng) if cell.size > 1 else _measure_gate(cell, repetitions, rng)
    extras = counts.pop("extras", {})
    return {
        "part": cell.part,
        "world": cell.heading,
        "n": cell.n,
        "target": cell.target,
        "delta": cell.delta,
        "repetitions": repetitions,
        "oracle": round(max(world.best_coverage(cell.promise) for world in cell.worlds), 4),
        "methods": {name: count.as_list() for name, count in counts.items()},
        **extras,
    }


def _measure_gate(cell: Cell, repetitions: int, rng: np.random.Generator) -> dict[str, Any]:
    promise, n_worlds = cell.promise, len(cell.worlds)
    levels = [weight * cell.delta for weight in WEIGHTS[min(n_worlds, SHORTLIST)]]
    names = ["ours", *_OTHERS, *(["all at full delta"] if n_worlds > 1 else [])]
    names += ["one start"] if cell.starts == "several" else []
    counts = {name: Count() for name in names}
    any_broken = several = 0
    gained = np.zeros(2)
    for seen, proposed, rooms in _blocks(cell, repetitions, rng):
        single = [one_start(one, seen[one.candidate], cell, x) for one, x in zip(proposed, levels, strict=True)]
        listed = [with_starts(one, best, cell.starts) for one, best in zip(proposed, single, strict=True)]
        everyone = [
            Listed(i, propose(*evidence, cell.n, promise, cell.delta)) for i, evidence in enumerate(seen)
        ] if n_worlds > 1 else []  # fmt: skip
        for room in rooms:
            won = passes(listed, room, promise, levels)
            any_broken += any(not cell.worlds[one.candidate].keeps(promise, one.threshold) for one in won)
            _add(counts["ours"], cell, deployed(won))
            if any(len(one.proposal.starts) > 1 for one in listed):
                several += 1
                alone = deployed(passes(single, room, promise, levels))
                gained += [_covered(cell, deployed(won)), _covered(cell, alone)]
            if everyone:
                won = passes(everyone, room, promise, [cell.delta] * n_worlds)
                _add(counts["all at full delta"], cell, deployed(won))
            if "one start" in counts:
                _add(counts["one start"], cell, deployed(passes(single, room, promise, levels)))
            first = listed[0].candidate
            _add_others(counts, cell.worlds[first], room[first], promise, rng)
    extras: dict[str, Any] = {}
    if n_worlds > 1:
        extras["any_broken"] = any_broken
    if several:
        mean = [round(float(x), 4) for x in gained / several]
        extras |= {"several_starts": several, "coverage_several_one": mean, "assumption_holds": cell.falling}
    return {**counts, "extras": extras}


def _blocks(
    cell: Cell, repetitions: int, rng: np.random.Generator
) -> Iterator[tuple[list[Room], list[Listed], list[list[Room]]]]:
    return blocks(
        rng,
        cell.worlds,
        cell.n,
        cell.promise,
        cell.delta,
        trials=repetitions,
        proposals=repetitions // _PER_PROPOSAL,
        likeness=cell.likeness,
        weights=WEIGHTS[min(len(cell.worlds), SHORTLIST)],
        evidence=cell.evidence,
    )


def _add(count: Count, cell: Cell, one: Passed | None) -> None:
    count.add(cell.worlds[one.candidate] if one else None, one.threshold if one else None, cell.promise)


def _covered(cell: Cell, one: Passed | None) -> float:
    return cell.worlds[one.candidate].coverage(one.threshold) if one else 0.0


def _add_others(counts: dict[str, Count], world: World, room: Room, promise: Promise, rng: np.random.Generator) -> None:
    for name, rule in _OTHERS.items():
        counts[name].add(world, rule(*room, promise.target, rng), promise)


def _measure_groups(cell: Cell, repetitions: int, rng: np.random.Generator) -> dict[str, Any]:
    """Rows of a group share their luck, each with a score of its own. Only ours knows of the groups."""
    (world,), promise, rows = cell.worlds, cell.promise, cell.n * cell.size
    counts = {name: Count() for name in ("ours", *_OTHERS, "groups ignored")}
    for block in range(repetitions // _PER_PROPOSAL):
        kept = one_a_group(cell.n, cell.size, f"{cell.key} {block}")
        plan = Listed(0, propose(*_grouped(rng, world, EVIDENCE * cell.n, 1), cell.n, promise, cell.delta))
        seen = _grouped(rng, world, EVIDENCE * cell.n, cell.size)
        blind = Listed(0, propose(*seen, rows, promise, cell.delta))
        for _ in range(_PER_PROPOSAL):
            scores, agree = _grouped(rng, world, cell.n, cell.size)
            _add(counts["ours"], cell, passed(plan, (scores[kept], agree[kept]), promise, cell.delta))
            _add(counts["groups ignored"], cell, passed(blind, (scores, agree), promise, cell.delta))
            _add_others(counts, world, (scores, agree), promise, rng)
    return {**counts, "extras": {"group_size": cell.size}}


def _grouped(rng: np.random.Generator, world: World, n_groups: int, size: int) -> Room:
    c = rng.uniform(size=n_groups * size)
    luck = np.repeat(rng.uniform(size=n_groups), size)
    return world.scores(c), luck >= world.disagreement(c)


def one_a_group(n_groups: int, size: int, salt: str) -> NDArray[np.intp]:
    """The shadow rows that certify, as the rooms choose them; the last row only trains, since no room may be empty."""
    n = n_groups * size
    ids = [f"{salt} {i}" for i in range(n + 1)]
    origins: list[Origin] = ["audit"] * n
    dataset = Dataset.from_columns(
        ["label"] * (n + 1),
        texts=ids,
        ids=ids,
        origins=[*origins, "imported"],
        groups=[*(str(i // size) for i in range(n)), None],
    )
    shadow = assign_rooms(dataset, shadow_share=0.5, split="hash").shadow
    assert len(shadow) == n_groups
    return shadow


# --- the life of a policy ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Life:
    """``_ATTEMPTS`` gates of one home, on fresh rooms or all on one with slightly different candidates."""

    heading: str
    world: World
    n: int
    target: float
    fresh: bool
    delta: float = 0.05
    likeness: float = 0.95

    @property
    def key(self) -> str:
        """Names the cell, and seeds it."""
        return f"life, {self.heading}, {'fresh rooms' if self.fresh else 'one room'}"


def measure_life(life: Life, lives: int) -> dict[str, Any]:
    """For each method: lives with a false promotion, false promotions, promotions, and mean coverage an attempt."""
    rng = np.random.default_rng([_SEED, zlib.crc32(life.key.encode())])
    promise = agreement(life.target)
    ledgers: dict[str, Callable[[int], float]] = {
        "ours, promotion": lambda _attempt: life.delta,
        "ours, lifetime": partial(testing.spending, life.delta),
    }
    names = (*ledgers, *_OTHERS)
    broken: dict[str, Bool] = {name: np.zeros((lives, _ATTEMPTS), dtype=np.bool_) for name in names}
    coverage = {name: np.zeros((lives, _ATTEMPTS)) for name in names}
    for block in range(0, lives, _PER_PROPOSAL):
        for attempt, rooms in enumerate(_attempts(life, rng)):
            seen = draw(rng, [life.world], (EVIDENCE * life.n,), 0.0)[0]
            plans = {
                name: Listed(0, propose(*seen, life.n, promise, spend(attempt + 1))) for name, spend in ledgers.items()
            }
            for row, room in enumerate(rooms, start=block):
                thresholds: dict[str, float | None] = {}
                for name, spend in ledgers.items():
                    one = passed(plans[name], room, promise, spend(attempt + 1))
                    thresholds[name] = one.threshold if one else None
                for name, rule in _OTHERS.items():
                    thresholds[name] = rule(*room, life.target, rng)
                for name, threshold in thresholds.items():
                    if threshold is not None:
                        broken[name][row, attempt] = not life.world.keeps(promise, threshold)
                        coverage[name][row, attempt] = life.world.coverage(threshold)
    return {
        "part": "lives",
        "world": life.heading,
        "rooms": "fresh" if life.fresh else "one",
        "n": life.n,
        "target": life.target,
        "delta": life.delta,
        "lives": lives,
        "attempts": _ATTEMPTS,
        "methods": {
            name: [
                int(broken[name].any(axis=1).sum()),
                int(broken[name].sum()),
                int((coverage[name] > 0).sum()),
                round(float(coverage[name].mean()), 4),
            ]
            for name in names
        },
    }


def _attempts(life: Life, rng: np.random.Generator) -> Iterator[list[Room]]:
    """For each attempt the rooms of all lives of a block."""
    shape = (_PER_PROPOSAL, life.n)
    shared, luck = rng.standard_normal(shape), rng.uniform(size=shape)
    for _ in range(_ATTEMPTS):
        if life.fresh:
            shared, luck = rng.standard_normal(shape), rng.uniform(size=shape)
        own = rng.standard_normal(shape)
        c: Float64 = special.ndtr(life.likeness * shared + np.sqrt(1.0 - life.likeness**2) * own)
        yield list(zip(life.world.scores(c), luck >= life.world.disagreement(c), strict=True))


# --- which cells ------------------------------------------------------------------------------------------


def cells() -> list[Cell]:
    """All cells. Each asks something that could break the promise."""
    return [*_one_candidate(), *_several_starts(), *_candidates(), *_groups(), *_overall()]


def _edge(target: float) -> World:
    return boundary(target, hair=_HAIR)


def _one_candidate() -> Iterator[Cell]:
    grid = [(n, t, 0.05) for t in (0.90, 0.95, 0.98) for n in _SIZES]
    grid += [(n, 0.95, 0.10) for n in _SIZES] + [(n, 0.80, 0.05) for n in (150, 500, 2000)]
    for n, target, delta in grid:
        yield Cell("score ranks well", (BENIGN,), n, target, delta)
        yield Cell("score says nothing, all just below target", (_edge(target),), n, target, delta)
    for n in (150, 300, 1000, 5000):
        ranks = replace(power(0.004, 0.126, 5.78, levels=8), name="ties")
        yield Cell("8 distinct scores, ranks well", (ranks,), n, 0.95)
        yield Cell("4 distinct scores, all just below target", (flat(0.1 + _HAIR, levels=4),), n, 0.90)
    for n in (150, 300, 500, 1000, 5000):
        for swing, waves in ((0.09, 6.0), (-0.09, 2.0)):
            heading = f"risk in waves around the target ({waves:g})"
            yield Cell(heading, (wave(0.1 + _HAIR, swing, waves),), n, 0.90, falling=False)
        yield Cell("surest 5% are the worst", (overconfident(0.2, 0.03, 0.4),), n, 0.95, falling=False)
    for n, target in ((150, 0.90), (300, 0.95), (1000, 0.95), (1000, 0.90)):
        yield Cell("out-of-fold evidence far too good", (_edge(target),), n, target, evidence=(EASY,))


def _several_starts() -> Iterator[Cell]:
    """Small rooms with several starts, whatever rehearsal would choose."""
    for n, target, delta in ((300, 0.90, 0.05), (300, 0.90, 0.10), (500, 0.95, 0.05), (1000, 0.98, 0.05)):
        yield Cell("several starts: all just below target", (_edge(target),), n, target, delta, starts="several")
        yield Cell(
            "several starts: fixed ones, all just below target",
            (_edge(target),),
            n,
            target,
            delta,
            starts=_FIXED_STARTS,
        )
        world = traps(1.0 - target + _HAIR, [(s + 1) / 200 for s in _FIXED_STARTS])
        yield Cell(
            "several starts: fixed ones, a trap at each",
            (world,),
            n,
            target,
            delta,
            starts=_FIXED_STARTS,
            falling=False,
        )
    for swing, waves in ((0.09, 6.0), (-0.09, 2.0), (-0.09, 1.0)):
        world = wave(0.1 + _HAIR, swing, waves)
        heading = f"several starts: risk in waves around the target ({waves:g})"
        yield Cell(heading, (world,), 300, 0.90, starts="several", falling=False)
    for n in (300, 500):
        world = overconfident(0.2, 0.03, 0.4)
        yield Cell("several starts: surest 5% are the worst", (world,), n, 0.95, starts="several", falling=False)
        yield Cell("several starts: score ranks well", (BENIGN,), n, 0.95, starts="several")
    yield Cell("several starts: score ranks well, few disagreements", (EASY,), 150, 0.95, starts="several")


def _candidates() -> Iterator[Cell]:
    for n, delta, likeness in ((300, 0.05, 0.7), (1000, 0.05, 0.2), (1000, 0.05, 0.7), (1000, 0.10, 0.95)):
        for k in (3, 12):
            worlds = tuple(flat(0.1 + _HAIR * (i + 1)) for i in range(k))
            heading = f"{k} candidates (correlation {likeness:g}), all just below target"
            yield Cell(heading, worlds, n, 0.90, delta, likeness=likeness)
    for k in (3, 12):
        bad = (_edge(0.95), HARD) * k
        yield Cell(f"{k} candidates (correlation 0.7), one of them good", (BENIGN, *bad[: k - 1]), 1000, 0.95)


def _groups() -> Iterator[Cell]:
    yield Cell("groups of 5, all just below target", (_edge(0.90),), 200, 0.90, size=5)
    yield Cell("groups of 5, all just below target", (_edge(0.90),), 500, 0.90, size=5)
    yield Cell("groups of 5, score ranks well", (BENIGN,), 500, 0.95, size=5)


def _overall() -> Iterator[Cell]:
    worlds = {
        "score ranks well": BENIGN,
        "broken at accept-all by a hair": flat(0.05 + _HAIR),
        "handled agreement just below its floor": flat(0.1 + _HAIR),
        "risk in waves around the floor": wave(0.1 + _HAIR, 0.09, 6.0),
    }
    for heading, world in worlds.items():
        for n in (300, 1000):
            yield Cell(f"overall contract: {heading}", (world,), n, 0.95, contract="overall")


def lives() -> list[Life]:
    """30 attempts each: of candidates that must not pass, and of good ones, for what the ledger costs."""
    return [
        Life("all just below target", _edge(0.90), 500, 0.90, fresh=True),
        Life("all just below target", _edge(0.90), 500, 0.90, fresh=False),
        Life("score ranks well", BENIGN, 1000, 0.95, fresh=True),
    ]


# --- running ----------------------------------------------------------------------------------------------


def _tasks(quick: bool) -> dict[str, Callable[[], dict[str, Any]]]:
    """What to measure, by key. Quick: few repetitions of few cells, the same code."""
    few = [cell for cell in cells() if cell.delta == 0.05 and cell.n in (300, 500 if cell.size > 1 else 1000)]
    chosen = few if quick else cells()
    tasks: dict[str, Callable[[], dict[str, Any]]] = {}
    for cell in chosen:
        assert cell.key not in tasks, cell.key
        tasks[cell.key] = partial(measure, cell, 200 if quick else _REPETITIONS)
    for life in lives():
        tasks[life.key] = partial(measure_life, life, _PER_PROPOSAL if quick else _REPETITIONS)
    return tasks


def _one(key: str, quick: bool) -> dict[str, Any]:
    """One cell, in a process of the pool."""
    result: dict[str, Any] = Cells("guarantee", "simulated", revision=_REVISION, quick=quick).get(
        key, _tasks(quick)[key]
    )
    print(f"{key}: {result['methods']}", flush=True)
    return result


def main() -> None:
    """Measure all cells and write the results."""
    given = arguments(__doc__ or "")
    keys = list(_tasks(given.quick))
    with ProcessPoolExecutor(2) as pool:
        measured = list(pool.map(partial(_one, quick=given.quick), keys))
    claims = [(cell, name, *counts) for cell in measured for name, counts in _claims(cell).items()]
    adjusted = holm(np.array([_p_value(broken, n, cell["delta"]) for cell, _, broken, n in claims]))
    for (cell, name, _, _), p in zip(claims, adjusted, strict=True):
        cell.setdefault("holm_p", {})[name] = float(f"{p:.3g}")
    content = {
        "settings": {
            "seed": _SEED,
            "repetitions_a_proposal": _PER_PROPOSAL,
            "evidence_rows_a_shadow_row": EVIDENCE,
            "coverage_floor": COVERAGE_FLOOR,
            "peer_level": 0.10,
            "methods": "violations, refusals, mean true coverage (0 where refused)",
            "methods_of_lives": "lives with a violation, violations, promotions, mean true coverage an attempt",
        },
        "smallest_holm_p": float(f"{adjusted.min():.3g}"),
        "cells": measured,
    }
    write_result("guarantee", content, quick=given.quick)


def _claims(cell: dict[str, Any]) -> dict[str, tuple[int, int]]:
    """What must not exceed delta: violations of ours, and of how many.

    On fresh rooms the attempts of a life are independent; on one room they are not, and each ledger's promise for one
    attempt is the same as in the other cells.
    """
    methods = cell["methods"]
    if cell["part"] != "lives":
        return {"ours": (methods["ours"][0], cell["repetitions"])}
    out = {"ours, lifetime": (methods["ours, lifetime"][0], cell["lives"])}
    if cell["rooms"] == "fresh":
        out["ours, promotion"] = (methods["ours, promotion"][1], cell["lives"] * cell["attempts"])
    return out


def _p_value(broken: int, n: int, delta: float) -> float:
    """P(at least this many violations) if their true rate were delta."""
    return float(special.bdtrc(broken - 1, n, delta)) if broken else 1.0


# --- the page ---------------------------------------------------------------------------------------------


def render(result: dict[str, Any]) -> str:
    """The Markdown section."""
    parts = {name: [c for c in result["cells"] if c["part"] == name] for name in _PARTS}
    return "\n\n".join(
        [
            "## The promise in worlds where the truth is known",
            _summary(result),
            _by_size(parts["one candidate"]),
            _worst(parts["one candidate"] + parts["overall"]),
            _starts(parts["starts"], parts["one candidate"]),
            _many(parts["candidates"]),
            _grouped_rows(parts["groups"]),
            _lives(parts["lives"]),
            footer(result),
        ]
    )


_PARTS = ("one candidate", "overall", "starts", "candidates", "groups", "lives")


def _summary(result: dict[str, Any]) -> str:
    gates = [cell for cell in result["cells"] if cell["part"] != "lives"]
    worst = max(gates, key=_ratio)
    smallest = result["smallest_holm_p"]
    fails = [f"{c['world']} ({c['n']:,})" for c in result["cells"] if min(c["holm_p"].values()) <= 0.05]
    verdict = (
        f"These cells exceed delta beyond chance: {'; '.join(fails)}."
        if fails
        else "No cell's share exceeds delta beyond what chance explains."
    )
    repetitions = sum(cell["repetitions"] for cell in gates)
    return (
        f"The gate was put before {repetitions:,} shadow rooms in {len(gates)} cells (a world, a size, a target, a "
        "delta), each room fresh, with a new proposal on out-of-fold evidence every "
        f"{result['settings']['repetitions_a_proposal']} rooms. A violation is a promotion whose true agreement at the "
        "deployed threshold is below the target; a refusal is none. The largest share of ours relative to delta is "
        f"{_ours(worst)} where delta is {worst['delta']:g} ({worst['world']}, n = {worst['n']:,}, target "
        f"{worst['target']:g}). The smallest Holm-adjusted p-value of 'the violation rate is at most delta', over all "
        f"cells, is {smallest:.3g}. {verdict}\n\n"
        "Beside it, on the same rows: the rule of the peer (`tracer-llm` 0.3.3, always at its level of 0.10), the rule of "
        "the paper, and the largest coverage whose empirical agreement reaches the target. Ours with exact 95% intervals; "
        "n counts shadow rows. Coverage is the true share of traffic handled, 0 where refused; the oracle is the largest "
        "that keeps the promise. In worlds that lie a hair below the target everywhere, each promotion is a violation."
    )


def _ratio(cell: dict[str, Any]) -> float:
    return float(cell["methods"]["ours"][0] / cell["repetitions"] / cell["delta"])


def _ours(cell: dict[str, Any]) -> str:
    return interval(int(cell["methods"]["ours"][0]), cell["repetitions"])


def _broken(cell: dict[str, Any], name: str) -> str:
    return share(int(cell["methods"][name][0]), cell["repetitions"])


def _coverage(cell: dict[str, Any], name: str) -> str:
    return f"{cell['methods'][name][2]:.3f}"


_HEAD = [
    *("world", "n", "target", "delta", "violations, ours", *(f"violations, {name}" for name in _OTHERS)),
    *("coverage, ours", *(f"coverage, {name}" for name in _OTHERS), "coverage, oracle"),
]


def _row(cell: dict[str, Any]) -> list[str]:
    return [
        *(cell["world"], f"{cell['n']:,}", f"{cell['target']:g}", f"{cell['delta']:g}", _ours(cell)),
        *(_broken(cell, name) for name in _OTHERS),
        *(_coverage(cell, name) for name in ("ours", *_OTHERS)),
        f"{cell['oracle']:.3f}",
    ]


def _by_size(cells: list[dict[str, Any]]) -> str:
    """The two plainest worlds at the default target and delta."""
    names = list(dict.fromkeys(cell["world"] for cell in cells))[:2]
    rows = [
        _row(cell)
        for name in names
        for cell in cells
        if cell["world"] == name and cell["target"] == 0.95 and cell["delta"] == 0.05
    ]
    return "By number of shadow rows, target 0.95:\n\n" + table(_HEAD, rows)


def _worst(cells: list[dict[str, Any]]) -> str:
    """Of each world the cell in which ours comes nearest to delta, or exceeds it most."""
    worlds: dict[str, list[dict[str, Any]]] = {}
    for cell in cells:
        worlds.setdefault(cell["world"], []).append(cell)
    rows = []
    for name, group in worlds.items():
        usual = [cell for cell in group if cell["delta"] == 0.05]
        pooled = interval(
            sum(int(cell["methods"]["ours"][0]) for cell in usual), sum(cell["repetitions"] for cell in usual)
        )
        rows.append([name, len(group), pooled, *_row(max(group, key=_ratio))[1:]])
    lead = (
        "Each world over all its sizes, targets and deltas: violations of ours in all its cells at delta 0.05 together, "
        "and the cell that is worst for ours relative to delta."
    )
    head = ["world", "cells", "violations, ours, all at delta 0.05", *(f"worst: {_HEAD[1]}", *_HEAD[2:])]
    return f"{lead}\n\n{table(head, rows)}"


def _starts(cells: list[dict[str, Any]], proposed: list[dict[str, Any]]) -> str:
    small = [cell for cell in proposed if cell["n"] * (1 - cell["target"]) < proposals.SMALL_SAMPLE]
    several = [cell for cell in small if cell.get("several_starts")]
    outside = [cell for cell in [*several, *cells] if not cell.get("assumption_holds", True)]
    n_small, n_several = sum(c["repetitions"] for c in small), sum(c["several_starts"] for c in several)
    means = [
        sum(c["coverage_several_one"][i] * c["several_starts"] for c in several) / max(n_several, 1) for i in (0, 1)
    ]
    rows = [
        [
            *(cell["world"].removeprefix("several starts: "), f"{cell['n']:,}", f"{cell['target']:g}"),
            *(f"{cell['delta']:g}", "holds" if cell["assumption_holds"] else "broken", _ours(cell)),
            _broken(cell, "one start") if "one start" in cell["methods"] else "-",
            _coverage(cell, "ours"),
            _coverage(cell, "one start") if "one start" in cell["methods"] else "-",
            f"{cell['oracle']:.3f}",
        ]
        for cell in cells
    ]
    worst = max(outside, key=_ratio)
    over = sum(_ratio(cell) > 1 for cell in outside)
    head = [
        *("world", "n", "target", "delta", "assumption", "violations, several starts", "violations, one start"),
        *("coverage, several starts", "coverage, one start", "coverage, oracle"),
    ]
    return (
        "Small rooms may use several starts, which assumes that disagreement does not rise with the score. Rehearsal chose "
        f"them in {n_several:,} of {n_small:,} small rooms of the cells above; mean coverage there was {means[0]:.3f}, and "
        f"{means[1]:.3f} with one start at the full level. Here they are forced upon the gate, or put where the world has "
        "its traps. Over the "
        f"{len(outside)} cells with several starts where the assumption is broken, the share exceeds delta in {over}; the "
        f"largest relative to delta is {_ours(worst)} where delta is {worst['delta']:g}.\n\n"
        f"{table(head, rows)}"
    )


def _many(cells: list[dict[str, Any]]) -> str:
    rows = [
        [
            *(cell["world"], f"{cell['n']:,}", f"{cell['target']:g}", f"{cell['delta']:g}", _ours(cell)),
            share(cell["any_broken"], cell["repetitions"]),
            *(_broken(cell, name) for name in ("all at full delta", *_OTHERS)),
            *(_coverage(cell, name) for name in ("ours", "all at full delta")),
            f"{cell['oracle']:.3f}",
        ]
        for cell in cells
    ]
    head = [
        *("world", "n", "target", "delta", "violations, ours", "any that passed", "violations, all at full delta"),
        *(f"violations, {name}" for name in _OTHERS),
        *("coverage, ours", "coverage, all at full delta", "coverage, oracle"),
    ]
    return (
        "Several candidates with correlated scores and errors. Ours shortlists three out of fold and tests them at shares of "
        "delta; 'any that passed' counts rooms where any of the three passed falsely, deployed or not. The "
        "control tests every candidate at full delta and deploys the one that handles most. The other rules see the first "
        f"of the shortlist.\n\n{table(head, rows)}"
    )


def _grouped_rows(cells: list[dict[str, Any]]) -> str:
    rows = [
        [
            *(cell["world"], f"{cell['n']:,}", f"{cell['target']:g}", f"{cell['delta']:g}", _ours(cell)),
            *(_broken(cell, name) for name in ("groups ignored", *_OTHERS)),
            *(_coverage(cell, name) for name in ("ours", "groups ignored")),
            f"{cell['oracle']:.3f}",
        ]
        for cell in cells
    ]
    head = [
        *("world", "groups", "target", "delta", "violations, ours", "violations, groups ignored"),
        *(f"violations, {name}" for name in _OTHERS),
        *("coverage, ours", "coverage, groups ignored", "coverage, oracle"),
    ]
    return (
        "Rows of one group share their luck. Ours certifies on one row a group; the control, like the other rules, takes "
        f"all rows for independent.\n\n{table(head, rows)}"
    )


def _lives(cells: list[dict[str, Any]]) -> str:
    rows = []
    for cell in cells:
        tried = cell["lives"] * cell["attempts"]
        for name, (lives_broken, broken, _, coverage) in cell["methods"].items():
            rows.append(
                [
                    *(cell["world"], "fresh ones" if cell["rooms"] == "fresh" else "the same rows", name),
                    interval(lives_broken, cell["lives"]),
                    interval(broken, tried) if cell["rooms"] == "fresh" else share(broken, tried),
                    f"{coverage:.3f}",
                ]
            )
    first = cells[0]
    return (
        f"A policy's life of {first['attempts']} attempts, on fresh shadow rows each or all on the same rows with slightly "
        f"different candidates, delta {first['delta']:g}. The ledger `promotion` promises delta for each attempt, "
        "`lifetime` for the whole life; neither `promotion` nor the other rules promise anything for a life.\n\n"
        + table(
            ["world", "shadow rows", "method", "lives with a violation", "violations an attempt", "mean coverage"], rows
        )
    )


if __name__ == "__main__":
    main()
