"""What more traces, another delta and the use of the data bring, on the training files alone.

Fitted on a random draw, measured on other rows of the same file: the official test sets play no part.

python -m benchmarks.growth --data FOLDER [--quick]
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.common import (
    QUICK_ROWS,
    Cells,
    Part,
    arguments,
    draw,
    footer,
    load_part,
    on_test,
    share,
    silent,
    table,
    write_result,
)
from benchmarks.hard_tasks import load_onet
from tracer import pipeline
from tracer.certification import proposals
from tracer.certification.gate import Entrant, GateRules, run_gate
from tracer.certification.proposals import Promise
from tracer.config import FitConfig
from tracer.learning import blending, fitting, pool, selection
from tracer.learning.acceptors import Acceptor
from tracer.learning.crossfit import cross_fit
from tracer.learning.heads import Head
from tracer.learning.pool import Learner
from tracer.pipeline import Certified, Encodings, certifying, training
from tracer.policies.policy import Inputs
from tracer.traces.rooms import fold_ids
from tracer.types import Bool, Dataset, Float32, Float64, Int32, LabelSpace

_REVISION = 1
_STAMP = "2026-01-01T00:00:00+00:00"
_HELD_OUT_SEED = 20260414
_DELTAS = (0.01, 0.02, 0.05, 0.10, 0.20)
_ROOM_TARGETS = (0.95, 0.90)
_TWO_ROOMS = (0.80, 0.20)
_FOUR_ROOMS = (0.595, 0.1275, 0.1275, 0.15)
_PENALTY = "penalty 0.02"


# Size


@dataclass(frozen=True, slots=True, eq=False)
class Pot:
    """Rows to draw from, rows never drawn, and the targets to try: chosen by what surrogates agree out of fold."""

    name: str
    source: Dataset
    held: Dataset
    encodings: Encodings
    digest: str
    sizes: tuple[int, ...]
    targets: tuple[float, ...]


def pots(folder: Path, limit: int | None) -> Iterator[Pot]:
    """The three training files, each with a fixed part held out; the test occupations of O*NET are left alone."""
    sizes = (250, 500, 1000, 2000, 5000, 10_000, 20_000)
    yield _pot("banking77", load_part(folder / "banking77" / "train.jsonl"), 0.2, (*sizes[:5], 8000), (0.95,))
    words = load_part(folder / "annolexical" / "train.jsonl", limit=limit)
    yield _pot("annolexical", words, 0.25, (*sizes, len(words.dataset)), (0.80, 0.85))
    onet = load_onet(folder, limit)
    part = Part(onet.train, onet.encodings, onet.digest)
    yield _pot("onet_exposure", part, 0.25, (*sizes, len(part.dataset)), (0.80, 0.85))


def _pot(name: str, part: Part, held: float, sizes: tuple[int, ...], targets: tuple[float, ...]) -> Pot:
    """Hold out a share of the rows, or of the groups where rows have them."""
    keys = [key if group is None else group for key, group in zip(part.dataset.ids, part.dataset.groups, strict=True)]
    distinct = sorted(set(keys))
    chosen = np.random.default_rng(_HELD_OUT_SEED).permutation(distinct)[: round(held * len(distinct))]
    out = np.isin(np.array(keys), chosen)
    source, rest = (part.dataset.take(np.flatnonzero(rows)) for rows in (~out, out))
    usable = tuple(sorted({min(size, len(source)) for size in sizes}))
    return Pot(name, source, rest, part.encodings, part.digest[:16], usable, targets)


def seeds_for(n: int, n_source: int) -> range:
    """More draws of small logs: they differ more. Draws of nearly all rows hardly differ at all."""
    if n > 0.9 * n_source:
        return range(1)
    return range(6 if n <= 1000 else 4 if n <= 2000 else 3 if n <= 5000 else 2)


def grown(pot: Pot, n: int, seed: int, target: float) -> dict[str, Any]:
    """One fit of ``n`` rows with all defaults; counts on the rows held out."""
    verdict = pipeline.fit(
        draw(pot.source, n, seed), FitConfig(targets=(target,), ledger="promotion"), encodings=pot.encodings
    )
    return {"n_shadow": verdict.report.n_shadow} | _counts(verdict, pot.held)


def _counts(verdict: pipeline.Verdict, held: Dataset) -> dict[str, int]:
    """Nothing is handled after a refusal."""
    if not isinstance(verdict, Certified):
        return {"certified": 0, "n_handled": 0, "n_agreed": 0}
    found = on_test(verdict.policy, held)
    return {"certified": 1, "n_handled": found["n_handled"], "n_agreed": found["n_agreed"]}


def columns(runs: Sequence[dict[str, Any]]) -> dict[str, list[Any]]:
    """One list a figure, over the seeds."""
    return {key: [run[key] for run in runs] for key in runs[0]}


def growth(folder: Path, cells: Cells, *, quick: bool) -> dict[str, Any]:
    """Every size and target of the three files."""
    out: dict[str, Any] = {}
    for pot in pots(folder, QUICK_ROWS // 2 if quick else None):
        rows = []
        sizes = pot.sizes[1:6:2] if quick else pot.sizes
        for n in sizes:
            for target in pot.targets[:1] if quick else pot.targets:
                seeds = range(1) if quick else seeds_for(n, len(pot.source))
                runs = [
                    cells.get(f"{pot.name} {pot.digest} {n} {seed} {target}", partial(grown, pot, n, seed, target))
                    for seed in seeds
                ]
                rows.append({"n": n, "target": target, "n_held": len(pot.held), **columns(runs)})
                print(f"{pot.name} {n} {target}: {rows[-1]}", flush=True)
        n_groups = len(set(pot.source.groups) - {None})
        out[pot.name] = {"digest": pot.digest, "n_source": len(pot.source), "n_groups": n_groups, "rows": rows}
    return out


# Delta


def rest_of(part: Part, n: int, seed: int) -> tuple[Dataset, Dataset]:
    """``n`` rows at random, and all others."""
    rows: NDArray[np.intp] = np.random.default_rng(seed).permutation(len(part.dataset))
    room = part.dataset.take(rows[:n])
    return room.with_space(LabelSpace.observed(room.labels)), part.dataset.take(rows[n:])


def by_delta(part: Part, n: int, seed: int) -> dict[str, Any]:
    """Train once, certify at each delta; a cascade's first stage keeps the cut chosen at the default delta."""
    room, rest = rest_of(part, n, seed)
    config = FitConfig()
    shop = training.train(room, config, encodings=part.encodings)
    judged: dict[tuple[bool, str], tuple[Float64, Bool]] = {}
    out = {}
    for delta in _DELTAS:
        verdict = certifying.certify(shop, replace(config, delta=delta), config.target, delta, 1, _STAMP, None)
        out[f"{delta:g}"] = {"certified": 0, "n_handled": 0, "n_agreed": 0}
        if not isinstance(verdict, Certified):
            continue
        policy = verdict.policy
        # Scored once: between deltas a contender differs by its threshold alone.
        key = (policy.first_stage is not None, policy.candidate.name)
        if key not in judged:
            scored = policy.score(Inputs.of(rest.texts, rest.dense)).scored
            judged[key] = scored.scores, scored.predicted == rest.with_space(policy.space).y
        scores, agree = judged[key]
        handled = scores >= policy.threshold
        out[f"{delta:g}"] = {"certified": 1, "n_handled": int(handled.sum()), "n_agreed": int((handled & agree).sum())}
    return out


def deltas(part: Part, cells: Cells, *, quick: bool) -> list[dict[str, Any]]:
    """Two sizes of log."""
    out = []
    for n, n_seeds in ((2001, 3),) if quick else ((2001, 20), (8000, 6)):
        runs = [
            cells.get(f"delta {part.digest[:16]} {n} {seed}", partial(by_delta, part, n, seed))
            for seed in range(n_seeds)
        ]
        levels = {level: columns([run[level] for run in runs]) for level in runs[0]}
        out.append({"n": n, "target": FitConfig().target, "n_held": len(part.dataset) - n, "levels": levels})
        print(f"delta, {n} traces: {n_seeds} seeds", flush=True)
    return out


# Two rooms against four


@dataclass(frozen=True, slots=True, eq=False)
class Scorer:
    """A dense logistic regression with its temperature, and an acceptor on the paper's four features."""

    head: Head
    weight: float
    acceptor: Acceptor

    def score(self, room: Dataset) -> tuple[Float64, Bool]:
        """Scores (n,) and agreement (n,)."""
        assert room.dense is not None
        return self.judge(self.head.logits(room.dense), room.y)

    def judge(self, logits: Float32, y: Int32) -> tuple[Float64, Bool]:
        """The same from logits (n, k)."""
        predicted, features, _ = self.acceptor.features((logits * np.float32(self.weight),))
        return self.acceptor.probability(features), predicted == y


def learner() -> Learner:
    """The same recipe for both: neither rooms nor cross-fitting choose its penalty."""
    return next(
        recipe
        for recipe in pool.learners("lean", frozenset({"dense"}))
        if recipe.family == "logistic" and recipe.variant == _PENALTY
    )


def _scorer(head: Head, logits: Float32, y: Int32, folds: NDArray[np.int8], k: int) -> Scorer:
    """Temperature and acceptor from logits (n, k) of rows that the head behind them has not seen."""
    inside = y >= 0
    weight = float(blending.fit_weights([logits[inside]], y[inside])[0][0])
    views = (logits * np.float32(weight),)
    predicted = views[0].argmax(axis=1).astype(np.int32)
    return Scorer(head, weight, fitting.fit_acceptor(views, predicted, predicted == y, folds, k, paper=True))


def _split(room: Dataset, shares: Sequence[float]) -> list[Dataset]:
    """Rooms of these shares; the rows lie in random order. Only labels of the first room are known."""
    cuts = np.round(np.cumsum(shares)[:-1] * len(room)).astype(int)
    rows = np.split(np.arange(len(room)), cuts)
    known = LabelSpace.observed([room.labels[i] for i in rows[0]])
    return [room.with_space(known).take(part) for part in rows]


def two_rooms(room: Dataset) -> tuple[Scorer, tuple[Float64, Bool], Dataset]:
    """Cross-fitting: all training rows give the surrogate, the acceptor and the proposal."""
    train, shadow = _split(room, _TWO_ROOMS)
    assert train.dense is not None
    folds, k = fold_ids(train, np.arange(len(train)), 5), len(train.space)
    member = cross_fit([learner()], {"dense": train.dense}, train.y, folds, k, 0, silent).members[0]
    scorer = _scorer(member.head, member.logits, train.y, folds, k)
    return scorer, scorer.judge(member.logits, train.y), shadow


def four_rooms(room: Dataset) -> tuple[Scorer, tuple[Float64, Bool], Dataset]:
    """The paper's: surrogate from train, acceptor from validation, proposal from calibration."""
    train, validation, calibration, shadow = _split(room, _FOUR_ROOMS)
    assert train.dense is not None
    assert validation.dense is not None
    k = len(train.space)
    head = learner().train(train.dense, train.y, k, None, 0)
    scorer = _scorer(head, head.logits(validation.dense), validation.y, np.zeros(len(validation), dtype=np.int8), k)
    return scorer, scorer.score(calibration), shadow


_ROOMS: dict[str, Callable[[Dataset], tuple[Scorer, tuple[Float64, Bool], Dataset]]] = {
    "two rooms, cross-fitting": two_rooms,
    "four rooms": four_rooms,
}


def rooms(part: Part, n: int, seed: int) -> dict[str, Any]:
    """Both uses of the same ``n`` rows, with the same exact gate, on the rest of the file."""
    room, rest = rest_of(part, n, seed)
    out: dict[str, Any] = {}
    for name, use in _ROOMS.items():
        scorer, evidence, shadow = use(room)
        held = rest.with_space(shadow.space)
        scores, agree = scorer.score(held)
        shadow_scores, shadow_agree = scorer.score(shadow)
        for target in _ROOM_TARGETS:
            threshold = _gated(evidence, shadow_scores, shadow_agree, target)
            handled = scores >= (np.inf if threshold is None else threshold)
            out[f"{name} {target:g}"] = {
                "certified": int(threshold is not None),
                "n_handled": int(handled.sum()),
                "n_agreed": int((handled & agree).sum()),
                "n_agreed_full": int(agree.sum()),
                "n_hindsight": round(selection.coverage_at(scores, agree, target) * len(agree)),
            }
    return out


def _gated(evidence: tuple[Float64, Bool], scores: Float64, agree: Bool, target: float) -> float | None:
    """One chain at the whole of delta, and its certified threshold."""
    config = FitConfig()
    promise = Promise(target, coverage_floor=config.coverage_floor)
    plan = proposals.propose(*evidence, len(scores), promise, config.delta, config.grid_size)
    rules = GateRules(promise, config.delta, config.delta, config.coverage_floor, 1, "random", "")
    passage = run_gate([Entrant("dense logistic", "l2d", plan, scores, agree)], rules)[0]
    return passage.certificate.threshold if passage.certificate else None


def room_use(part: Part, cells: Cells, *, quick: bool) -> list[dict[str, Any]]:
    """Two sizes of log."""
    out = []
    for n, n_seeds in ((2001, 3),) if quick else ((2001, 10), (8000, 5)):
        runs = [
            cells.get(f"rooms {part.digest[:16]} {n} {seed}", partial(rooms, part, n, seed)) for seed in range(n_seeds)
        ]
        for target in _ROOM_TARGETS:
            use = {name: columns([run[f"{name} {target:g}"] for run in runs]) for name in _ROOMS}
            out.append({"n": n, "target": target, "n_held": len(part.dataset) - n, "use": use})
        print(f"rooms, {n} traces: {n_seeds} seeds", flush=True)
    return out


# The page


def _measured(cell: dict[str, Any], target: float, n_held: int) -> list[object]:
    """Refusals, coverage (mean, least and most), agreement, and how often it fell short; refusals cover nothing."""
    n_seeds, handled, agreed = len(cell["certified"]), cell["n_handled"], cell["n_agreed"]
    below = sum(k < target * n for n, k in zip(handled, agreed, strict=True))
    spread = f" ({share(min(handled), n_held)} to {share(max(handled), n_held)})" if n_seeds > 1 else ""
    return [
        f"{n_seeds - sum(cell['certified'])} of {n_seeds}",
        share(sum(handled), n_held * n_seeds) + spread,
        share(sum(agreed), sum(handled)),
        f"{below} of {sum(cell['certified'])}",
    ]


_COLUMNS = ["refused", "coverage (least to most)", "agreement", "below target"]
_TITLES = {
    "banking77": "Banking77, 77 labels",
    "annolexical": "AnnoLexical, 2 labels, a noisy teacher",
    "onet_exposure": "O*NET exposure, 3 labels, grouped by occupation",
}


def render(result: dict[str, Any]) -> str:
    """The section of docs/benchmarks.md."""
    parts = [
        "## More traces, another delta, another use of the data",
        "Fitted on random draws of a training file and measured on other rows of the same file; counts of all seeds are\n"
        "added up, and a refusal covers nothing. *Below target* counts the certified fits whose agreement on the rows held\n"
        "out is below the target; these rows are a sample too, so a fit at the edge of its promise falls on either side.\n"
        "Draws of one file overlap, the more the larger they are: their fits are not independent.",
    ]
    for name, file in result["growth"].items():
        parts += [f"### Size: {_TITLES[name]}", _size_text(file), _size_table(file)]
    parts += ["### Delta", _delta_text(result["delta"]), _delta_table(result["delta"])]
    parts += ["### Two rooms or four", _ROOMS_TEXT, _rooms_table(result["rooms"])]
    return "\n\n".join([*parts, footer(result)]) + "\n"


def _size_text(file: dict[str, Any]) -> str:
    text = f"Drawn from {file['n_source']:,} rows, measured on {file['rows'][0]['n_held']:,} that are never drawn."
    if file["n_groups"]:
        text += (
            f" The rows drawn from lie in {file['n_groups']:,} groups, the rows held out in others; one row a group"
            " certifies, so the shadow room stops growing when all groups are in."
        )
    return text


def _size_table(file: dict[str, Any]) -> str:
    rows = []
    for row in file["rows"]:
        n_seeds = len(row["certified"])
        shadow = sum(row["n_shadow"]) / n_seeds
        measured = _measured(row, row["target"], row["n_held"])
        rows.append([f"{row['n']:,}", f"{row['target']:.2f}", f"{shadow:,.0f}", *measured])
    rows.sort(key=lambda cells: str(cells[1]))
    return table(["traces", "target", "shadow", *_COLUMNS], rows)


def _delta_text(found: list[dict[str, Any]]) -> str:
    return (
        f"Banking77's training file, target {found[0]['target']:g}. Trained once a seed and certified at each delta, each a\n"
        "statement of its own; a cascade's first stage keeps the cut chosen at the default delta."
    )


def _delta_table(found: list[dict[str, Any]]) -> str:
    rows = [
        [f"{size['n']:,}", level, *_measured(cell, size["target"], size["n_held"])]
        for size in found
        for level, cell in size["levels"].items()
    ]
    return table(["traces", "delta", *_COLUMNS], rows)


_ROOMS_TEXT = """Banking77's training file; one learner (dense logistic regression, one penalty), the paper's four acceptor features and
the same exact gate on both sides: only the use of the traces differs. Two rooms: 80% train, cross-fitted in 5 folds, and
20% shadow. Four rooms as `mode="paper"` has them: 59.5% train, 12.75% validation (acceptor), 12.75% calibration (proposal), 15%
shadow. *With hindsight*: the largest coverage at the target if one could see the rows held out."""


def _rooms_table(found: list[dict[str, Any]]) -> str:
    rows = []
    for cell in found:
        for name, use in cell["use"].items():
            whole = cell["n_held"] * len(use["certified"])
            full, hindsight = share(sum(use["n_agreed_full"]), whole), share(sum(use["n_hindsight"]), whole)
            measured = _measured(use, cell["target"], cell["n_held"])
            rows.append([f"{cell['n']:,}", f"{cell['target']:.2f}", name, full, hindsight, *measured])
    return table(["traces", "target", "use", "agreement of all", "coverage with hindsight", *_COLUMNS], rows)


def main() -> None:
    """Measure all three and write the results file."""
    given = arguments(__doc__ or "")
    banking = load_part(given.data / "banking77" / "train.jsonl")
    cells = Cells("growth", "stamps in keys", revision=_REVISION, quick=given.quick)
    content = {
        "digest": banking.digest[:16],
        "settings": {
            "held_out_seed": _HELD_OUT_SEED,
            "penalty": _PENALTY,
            "seeds": "0, 1, ... in the order of the lists",
        },
        "rooms": room_use(banking, cells, quick=given.quick),
        "delta": deltas(banking, cells, quick=given.quick),
        "growth": growth(given.data, cells, quick=given.quick),
    }
    write_result("growth", content, quick=given.quick)


if __name__ == "__main__":
    main()
