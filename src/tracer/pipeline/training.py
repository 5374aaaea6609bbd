"""The train room: features, pool, cross-fitting, acceptors, and the contenders. Reads no shadow label."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from tracer.certification import proposals
from tracer.certification.gate import WEIGHTS
from tracer.certification.proposals import Promise
from tracer.config import FitConfig
from tracer.errors import ConfigError, FeatureError, TraceError
from tracer.features.lexical import LexicalFeatures
from tracer.learning import fitting, pool
from tracer.learning.candidates import Rules, Scored
from tracer.learning.crossfit import Anchors, CrossFit, Member, Progress, cross_fit
from tracer.learning.ensembles import ensembles
from tracer.learning.fitting import OutOfFoldNeighbours, RuleSettings, Trained
from tracer.learning.heads import Block
from tracer.learning.neighbours import MAX_ROWS
from tracer.learning.surrogates import BlockName
from tracer.learning.threads import n_workers, one_thread_each
from tracer.learning.warmstart import WarmStart, row_digests
from tracer.policies.policy import Family, combine_stages, left_by
from tracer.traces.digests import n_digests
from tracer.traces.rooms import Rooms, assign_rooms, fold_ids
from tracer.types import OUTSIDE, Bool, Dataset, Float32, Float64, Int32, LabelSpace

MIN_TRAIN = 20
"""Fewest training rows with a known label that a fit accepts."""
SHORTLIST = 3
_ANCHOR_COPIES = 2
_ENOUGH_PLAIN = 200
"""Training rows that are plain samples of traffic from which on the evidence is theirs alone."""


@dataclass(frozen=True, slots=True, eq=False)
class Encodings:
    """What the embedder says of fixed texts: ``probes`` (m, d), and ``labels`` (k, d) of the label ``names`` (k)."""

    probes: Float32
    names: tuple[str, ...]
    labels: Float32


@dataclass(frozen=True, slots=True, eq=False)
class Contender:
    """A candidate policy with out-of-fold scores: single surrogate, or lexical-first cascade.

    ``plain`` (n,) marks the training rows that are plain samples of traffic; None where all serve as evidence.
    """

    name: str
    trained: Trained
    scored: Scored
    agree: Bool
    plain: Bool | None = None
    first: Trained | None = None
    cut: float = 0.0
    encoder_share: float = 0.0

    @property
    def family(self) -> Family:
        """``cascade``, or ``l2d``; accept-all is the last step of an l2d chain and then called ``global``."""
        return "cascade" if self.first is not None else "l2d"

    @property
    def evidence(self) -> tuple[Float64, Bool]:
        """Out-of-fold scores and agreement that predict what a gate on traffic will find.

        What the teacher was asked because the policy in force deferred it is harder than traffic: it trains, and says
        nothing of how much can be handled.
        """
        return _of(self.scored.scores, self.plain), _of(self.agree, self.plain)

    @property
    def main_evidence(self) -> tuple[Float64, Bool]:
        """The same of the main stage alone."""
        return _of(self.trained.scored.scores, self.plain), _of(self.trained.agree, self.plain)


@dataclass(frozen=True, slots=True, eq=False)
class Workshop:
    """What training left: rooms, features, contenders."""

    dataset: Dataset
    rooms: Rooms
    lexical: LexicalFeatures | None
    contenders: tuple[Contender, ...]
    cross: CrossFit
    y: Int32
    n_shadow: int
    encodings: Encodings | None
    warm: WarmStart
    released: int = 0
    seconds: dict[str, float] = field(default_factory=dict)


_Column = TypeVar("_Column", Float64, Bool)


def _of(column: _Column, rows: Bool | None) -> _Column:
    return column if rows is None else column[rows]


def silent(_what: str, _done: int, _total: int) -> None:
    """Progress that nobody watches."""


def train(
    dataset: Dataset,
    config: FitConfig,
    *,
    progress: Progress = silent,
    encodings: Encodings | None = None,
    warm: WarmStart | None = None,
    released: int = 0,
) -> Workshop:
    """Split, extract features, cross-fit the pool and build all contenders. Reads no shadow label.

    ``warm``: what an earlier fit of fewer traces left; used where it fits. Rows up to number ``released`` only train.
    """
    began = time.perf_counter()
    share = config.shadow_share_for(dataset.n_units)
    rooms = assign_rooms(dataset, shadow_share=share, split=config.split, released=released)
    if config.guarantee == "estimated":
        everything = np.sort(np.concatenate([rooms.train, rooms.shadow]))
        rooms = replace(rooms, train=everything)
    if not dataset.space.declared:
        # Labels seen in the shadow room alone are no labels that a surrogate could know.
        dataset = dataset.with_space(LabelSpace.observed([dataset.labels[i] for i in rooms.train]))
    known = rooms.train[dataset.y[rooms.train] != OUTSIDE]
    n_classes = len(dataset.space)
    if len(known) < MIN_TRAIN:
        raise TraceError(f"{len(known)} training traces with a known label; at least {MIN_TRAIN} are needed")
    room = dataset.take(known)
    folds = _usable_folds(fold_ids(dataset, known, config.folds), config.folds)
    progress("features", 0, 1)
    lexical = None
    blocks: dict[BlockName, Block] = {}
    names = block_names(dataset, config)
    if "lexical" in names:
        lexical, blocks["lexical"] = LexicalFeatures.fit_transform(room.texts or ())
    if "dense" in names and room.dense is not None:
        blocks["dense"] = room.dense
    featured = time.perf_counter()
    recipes = pool.learners(config.pool, names)
    anchors = anchors_of(dataset.space, lexical, encodings if "dense" in names else None)
    hashes = lexical.hashes if lexical is not None else None
    width = room.dense.shape[1] if "dense" in blocks and room.dense is not None else 0
    labels, basis = dataset.space.names, _basis(config, width)
    rows = row_digests(room.ids, room.groups, folds)
    earlier = warm.usable(labels, hashes, basis, int(folds.max()) + 1, rows) if warm is not None else None
    cross = cross_fit(
        recipes,
        blocks,
        room.y,
        folds,
        n_classes,
        config.seed,
        progress,
        anchors,
        earlier.heads if earlier is not None else None,
        keep_folds=earlier is not None and earlier.keep_folds,
    )
    trained_at = time.perf_counter()
    settings = RuleSettings(
        config.novelty, business_rules(dataset.space, config), config.target if config.per_class else None
    )
    neighbours = None
    if config.neighbours and "dense" in names and room.dense is not None and len(known) <= MAX_ROWS:
        progress("neighbours", 1, 1)
        neighbours = OutOfFoldNeighbours.of(room.dense, room.y, folds, n_classes, config.seed)
    progress("acceptors", 1, 1)
    combined = ensembles(cross.members)

    def build(members: tuple[Member, ...]) -> Trained:
        return fitting.build(members, room.y, folds, n_classes, settings, neighbours)

    plain = _plain(room)
    with one_thread_each(), ThreadPoolExecutor(n_workers(len(combined))) as workers:
        trained = list(workers.map(build, combined))
        contenders = [
            Contender(t.name, t, t.scored, t.agree, plain, encoder_share=float("dense" in t.candidate.surrogate.blocks))
            for t in trained
        ]
        contenders += cascades(trained, config, len(rooms.shadow), plain)
    seconds = {
        "features": featured - began,
        "surrogates": trained_at - featured,
        "acceptors": time.perf_counter() - trained_at,
    }
    left = WarmStart.of(cross, labels, hashes, basis, rows, earlier)
    return Workshop(
        dataset, rooms, lexical, tuple(contenders), cross, room.y, len(rooms.shadow), encodings, left, released, seconds
    )


def _plain(room: Dataset) -> Bool | None:
    origins = np.asarray(room.origins)
    plain: Bool = (origins == "bootstrap") | (origins == "audit")
    return None if plain.all() or plain.sum() < _ENOUGH_PLAIN else plain


def _basis(config: FitConfig, width: int) -> str:
    """What must not change between a fit and one that starts from it, beside the rows: settings, and the embeddings'
    width."""
    names = ("split", "shadow_share", "guarantee", "folds", "features", "pool", "seed")
    return json.dumps({"width": width} | {name: getattr(config, name) for name in names}, sort_keys=True)


def block_names(dataset: Dataset, config: FitConfig) -> frozenset[BlockName]:
    """Which feature blocks the fit uses. Raises FeatureError where a wanted block cannot be had."""
    wanted: dict[str, tuple[BlockName, ...]] = {
        "auto": ("lexical", "dense"), "both": ("lexical", "dense"), "lexical": ("lexical",), "dense": ("dense",),
    }  # fmt: skip
    have = {"lexical": dataset.texts is not None, "dense": dataset.dense is not None}
    names = wanted[config.features]
    missing = [name for name in names if not have[name]]
    if missing and config.features != "auto":
        needs = {"lexical": "texts", "dense": "embeddings"}
        raise FeatureError(f"features = {config.features!r} needs {needs[missing[0]]}, and the traces have none")
    return frozenset(name for name in names if have[name])


def label_text(name: str) -> str:
    """A label's name as words: ``card_notWorking`` reads ``card not working``."""
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)
    return " ".join(re.sub(r"[^\w]|_", " ", spaced).lower().split()) or name


def anchors_of(space: LabelSpace, lexical: LexicalFeatures | None, encodings: Encodings | None) -> Anchors:
    twice = np.tile(np.arange(len(space), dtype=np.int32), _ANCHOR_COPIES)
    blocks: dict[BlockName, Block] = {}
    if lexical is not None:
        blocks["lexical"] = lexical.transform([label_text(space.names[code]) for code in twice])
    if encodings is not None:
        position = {name: i for i, name in enumerate(encodings.names)}
        if set(space.names) <= set(position):
            blocks["dense"] = encodings.labels[[position[space.names[code]] for code in twice]]
    return Anchors(blocks, twice)


def business_rules(space: LabelSpace, config: FitConfig) -> Rules:
    """Rules by label code. A label that no surrogate can answer needs no rule."""
    codes = {name: i for i, name in enumerate(space.names)}
    always = np.array(sorted(codes[name] for name in config.always_defer if name in codes), dtype=np.int32)
    ratio = None
    if config.error_costs and config.teacher_usd is not None:
        if config.teacher_usd <= 0:
            raise ConfigError(f"teacher_usd = {config.teacher_usd}: must be positive to weigh errors against it")
        ratio = np.zeros(len(codes))
        for name, cost in config.error_costs.items():
            if name in codes:
                ratio[codes[name]] = float(cost / config.teacher_usd)
    return Rules(always_defer=always, error_ratio=ratio)


def check_config(dataset: Dataset, config: FitConfig) -> None:
    if len(dataset.space) < 2:
        raise TraceError(f"all traces carry one label ({dataset.space.names[0]!r}): there is nothing to learn")
    if dataset.texts is not None and (n := n_digests(dataset.texts)):
        raise TraceError(
            f"{n:,} of {len(dataset):,} traces hold digests in place of texts, and not all have vectors of one "
            f"embedder: nothing can be learned from such traces"
        )
    unknown = sorted({*config.always_defer, *config.error_costs} - set(dataset.space.names))
    if unknown:
        known = ", ".join(dataset.space.names[:10]) + (", ..." if len(dataset.space) > 10 else "")
        raise ConfigError(f"no trace is labelled {', '.join(map(repr, unknown))}; labels: {known}")
    if config.mode == "paper":
        _check_paper(config)


def _check_paper(config: FitConfig) -> None:
    """The paper's protocol knows no rules: rather refuse than drop them in silence."""
    default = FitConfig()
    for name in ("contract", "per_class", "always_defer", "error_costs", "split", "guarantee"):
        if getattr(config, name) != getattr(default, name):
            raise ConfigError(f"mode = 'paper' knows no {name}: it is the published protocol and nothing else")


def _usable_folds(folds: NDArray[np.int8], wanted: int) -> NDArray[np.int8]:
    """Fold numbers without gaps; rows are dealt in turn where hashing left fewer than two folds."""
    present, dense_ids = np.unique(folds, return_inverse=True)
    if len(present) >= 2:
        return dense_ids.astype(np.int8)
    return (np.arange(len(folds)) % wanted).astype(np.int8)


def cascades(
    trained: Sequence[Trained], config: FitConfig, n_shadow: int, plain: Bool | None = None
) -> list[Contender]:
    """Lexical first, then the best that reads embeddings. The cut of the first stage is fixed out of fold.

    The cut minimises the predicted cost a request: teacher calls, plus encoder calls at their relative price.
    """
    lexical = [t for t in trained if t.candidate.surrogate.blocks == {"lexical"}]
    dense = [
        t for t in trained if "dense" in t.candidate.surrogate.blocks and "lexical" in t.candidate.surrogate.blocks
    ]
    if not lexical or not dense:
        return []
    first = lexical[0]
    promise = promise_of(config, config.target)
    level = config.delta * WEIGHTS[SHORTLIST][0]

    def predicted_cost(cut: float, scored: Scored, agree: Bool) -> float:
        scores, agree = _of(scored.scores, plain), _of(agree, plain)
        plan = proposals.propose(scores, agree, n_shadow, promise, level, config.grid_size, one_scale=False)
        encoded = float((_of(first.scored.scores, plain) < cut).mean())
        return 1.0 - plan.predicted_coverage + config.encoder_cost * encoded

    second = min(dense, key=lambda t: predicted_cost(np.inf, t.scored, t.agree))
    finite = first.scored.scores[np.isfinite(first.scored.scores)]
    if not len(finite):
        return []
    best: tuple[float, Contender] | None = None
    for share in (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8):
        cut = float(np.quantile(finite, 1.0 - share))
        rest = left_by(first.scored, cut)
        left = Scored(second.scored.predicted[rest], second.scored.scores[rest], second.scored.bars[rest])
        scored = combine_stages(first.scored, cut, left, rest).scored
        agree = np.where(first.scored.scores >= cut, first.agree, second.agree)
        cost = predicted_cost(cut, scored, agree)
        if best is None or cost < best[0]:
            name = f"cascade: {first.name}, then {second.name}"
            best = (cost, Contender(name, second, scored, agree, plain, first, cut, len(rest) / len(agree)))
    return [best[1]] if best else []


def promise_of(config: FitConfig, target: float) -> Promise:
    return Promise(target, config.contract, config.handled_floor_for(target), config.coverage_floor)
