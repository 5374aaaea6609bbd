"""Hard tasks: subjective and noisy teachers, a teacher that contradicts itself, and inputs that belong to no label.

python -m benchmarks.hard_tasks --data FOLDER [--quick]
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from math import sqrt
from pathlib import Path
from typing import Any

import numpy as np
from scipy import special

from benchmarks.common import (
    QUICK_ROWS,
    Cells,
    Part,
    Task,
    arguments,
    draw,
    encoder,
    footer,
    interval,
    load_part,
    load_task,
    on_test,
    share,
    silent,
    table,
    write_result,
)
from benchmarks.core import premise
from tracer import flywheel, pipeline
from tracer.config import FitConfig, Novelty
from tracer.features.dense import checked
from tracer.learning.candidates import Candidate, NoveltyGuard
from tracer.learning.fitting import OutOfFoldNeighbours, Trained
from tracer.learning.surrogates import Blocks
from tracer.pipeline import Certified, Encodings, Verdict, certifying, training
from tracer.pipeline.training import Contender, Workshop
from tracer.policies.policy import Policy
from tracer.traces.rooms import fold_ids
from tracer.types import Dataset, Float32, Float64, LabelSpace

_STAMP = "2026-01-01T00:00:00+00:00"
_REVISION = 1
_TARGETS = (0.60, 0.70, 0.75, 0.80, 0.85, 0.90, 0.95)
_INTRUDER_TARGETS = (0.95, 0.98, 0.99)
_CEILING_TARGETS = (0.90, 0.98)
_TITLES = {
    "onet_exposure": "O*NET exposure: GPT-4, a subjective rubric, rows grouped by occupation",
    "annolexical": "AnnoLexical: majority of three open models, biased wording or not",
    "nli": "NLI: PaLM, premise and hypothesis in one text, rows grouped by premise",
}
OUT_OF_SCOPE = "out_of_scope"
_SIGNALS = {
    "max_logit": "largest logit (the guard's)",
    "class_logit": "largest logit, less the mean of its predicted class",
    "energy": "energy: log of the sum of exponentials",
    "acceptor": "acceptor's score",
    "nearest": "similarity of the nearest prototype",
}
_QUANTILES = (0.02, 0.05, 0.10)
_GUARDS: tuple[tuple[Novelty, float], ...] = (
    ("off", 0.0), ("rank", 0.02), ("rank", 0.05), ("rank", 0.10), ("defer", 0.02), ("defer", 0.05), ("defer", 0.10)
)  # fmt: skip


# Tasks that are hard to learn


def occupation(text: str) -> str:
    """What ties O*NET rows together."""
    return text.split("\n", 1)[0]


def load_onet(folder: Path, limit: int | None = None) -> Task:
    """A quarter of the occupations, drawn with seed 0, is the test set."""
    part = load_part(folder / "onet_exposure" / "traces.jsonl", group_by=occupation, limit=limit)
    groups = sorted({group for group in part.dataset.groups if group is not None})
    held = set(np.random.default_rng(0).permutation(groups)[: len(groups) // 4].tolist())
    inside = np.array([group in held for group in part.dataset.groups])
    train, test = (part.dataset.take(np.flatnonzero(rows)) for rows in (~inside, inside))
    return Task("onet_exposure", train, test, part.encodings, part.digest[:16])


def hard_task(task: Task, targets: Sequence[float], cells: Cells) -> dict[str, Any]:
    """One fit a target, and what stands beside it: the teacher against the truth, and a constant answer."""
    train, test = draw(task.train, len(task.train), 0), task.test
    common_label = Counter(train.labels).most_common(1)[0][0]
    has_truth = all(truth is not None for truth in test.truth)
    right = sum(a == b for a, b in zip(test.labels, test.truth, strict=True))
    return {
        "digest": task.digest,
        "n_train": len(train),
        "n_test": len(test),
        "n_labels": len(train.space),
        "n_groups": len(set(train.groups) - {None}),
        "constant": {"label": common_label, "n_agreed": sum(label == common_label for label in test.labels)},
        "teacher_right": right if has_truth else None,
        "rows": [
            cells.get(f"{task.name} {task.digest} {target}", partial(fitted, task, train, target)) for target in targets
        ],
    }


def fitted(task: Task, train: Dataset, target: float) -> dict[str, Any]:
    """Fit at one target with all defaults; counts on the test traces."""
    began = time.perf_counter()
    verdict = pipeline.fit(train, FitConfig(targets=(target,), ledger="promotion"), encodings=task.encodings)
    row: dict[str, Any] = {"target": target, "fit_s": round(time.perf_counter() - began, 2)}
    row |= {"n_shadow": verdict.report.n_shadow, "n_learned": verdict.report.n_train}
    if isinstance(verdict, Certified):
        certificate = verdict.certificate
        row |= {"verdict": "certified", "policy": f"{verdict.policy.family}: {verdict.policy.candidate.name}"}
        row |= {"shadow": {"n_handled": certificate.n_handled, "n_agreed": certificate.n_agreed}}
        row |= {"test": on_test(verdict.policy, task.test), "by_group": _by_group(verdict.policy, task.test)}
        best: Policy | None = verdict.policy
    else:
        row |= {"verdict": "refused", "statement": verdict.refusal.statement()}
        best = verdict.best
    row["full"] = at_full_coverage(best, task.test) if best is not None else None
    print(f"{task.name}, target {target}: {row['verdict']}, {row['fit_s']} s", flush=True)
    return row


def at_full_coverage(policy: Policy, test: Dataset) -> dict[str, int]:
    """How often the surrogate agrees, and is right, if it answers everything."""
    labels = policy.decide(test.texts, test.dense).labels
    return {
        "n": len(test),
        "n_agreed": sum(a == b for a, b in zip(labels, test.labels, strict=True)),
        "n_right": sum(a == b for a, b in zip(labels, test.truth, strict=True)),
    }


def _by_group(policy: Policy, test: Dataset) -> float | None:
    """Agreement on handled traffic with each group counting alike, as a grouped certificate claims it."""
    if test.groups[0] is None:
        return None
    decisions = policy.decide(test.texts, test.dense)
    sizes = Counter(test.groups)
    weights = np.array([1.0 / sizes[group] for group in test.groups])
    agree = np.array([a == b for a, b in zip(decisions.labels, test.labels, strict=True)])
    handled = float(weights[decisions.handled].sum())
    return round(float(weights[decisions.handled & agree].sum()) / handled, 4) if handled else None


# A teacher asked twice


def ceiling(folder: Path, task: Task, train: Dataset) -> dict[str, Any]:
    """The teacher's agreement with itself, and surrogates' with both of its answers on test rows."""
    lines = (folder / "clinc150" / "asked_twice.jsonl").read_text(encoding="utf-8").splitlines()
    twice = [json.loads(line) for line in lines]
    test_ids = set(task.test.ids)
    on_test_rows = [row for row in twice if row["id"] in test_ids]
    return {
        "n_train": len(train),
        "all": {"n": len(twice), "n_same": sum(r["teacher"] == r["teacher_again"] for r in twice)},
        "test": {"n": len(on_test_rows), "n_same": sum(r["teacher"] == r["teacher_again"] for r in on_test_rows)},
        "surrogates": [_asked(task, train, target, on_test_rows) for target in _CEILING_TARGETS],
    }


def _asked(task: Task, train: Dataset, target: float, twice: Sequence[Mapping[str, str]]) -> dict[str, Any]:
    """What the surrogate that a target chooses answers, whether it would be handled or not."""
    verdict = pipeline.fit(train, FitConfig(targets=(target,), ledger="promotion"), encodings=task.encodings)
    policy = verdict.policy if isinstance(verdict, Certified) else verdict.best
    assert policy is not None
    answers = dict(zip(task.test.ids, policy.decide(task.test.texts, task.test.dense).labels, strict=True))
    return {
        "target": target,
        "name": policy.candidate.name,
        "test": at_full_coverage(policy, task.test),
        "first": sum(answers[row["id"]] == row["teacher"] for row in twice),
        "again": sum(answers[row["id"]] == row["teacher_again"] for row in twice),
    }


# Inputs that belong to no label


def load_intruders(folder: Path) -> Dataset:
    """CLINC150's out-of-scope texts, labelled as such."""
    lines = (folder / "clinc150" / "oos_test.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    plain = Dataset.from_columns(
        [OUT_OF_SCOPE] * len(rows), texts=[r["input"] for r in rows], ids=[r["id"] for r in rows]
    )
    return flywheel.embed_dataset(plain, encoder(), FitConfig(), silent)[0]


def joined(first: Dataset, second: Dataset) -> Dataset:
    """Both data sets in one, in a random order."""
    assert first.texts is not None
    assert second.texts is not None
    assert first.dense is not None
    assert second.dense is not None
    both = Dataset.from_columns(
        [*first.labels, *second.labels],
        texts=[*first.texts, *second.texts],
        ids=[*first.ids, *second.ids],
        dense=np.concatenate([first.dense, second.dense]),
        embedder=first.embedder,
    )
    return draw(both, len(both), 1)


def with_out_of_scope(encodings: Encodings) -> Encodings:
    """The names of the labels with one more."""
    vector = checked(encoder(), [pipeline.label_text(OUT_OF_SCOPE)])
    return Encodings(encodings.probes, (*encodings.names, OUT_OF_SCOPE), np.concatenate([encodings.labels, vector]))


def intrusion(
    train: Dataset, inside: Dataset, outside: Dataset, encodings: Encodings, settings: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """Train once, certify at each target (each a statement of its own at delta), count on both kinds of input.

    The cut of a cascade's first stage is chosen for the first target and kept.
    """
    config = FitConfig(targets=_INTRUDER_TARGETS[:1], ledger="promotion", **settings)
    shop = training.train(train, config, encodings=encodings if config.features != "lexical" else None)
    return [{"target": t} | intruded(certified(shop, config, t), inside, outside) for t in _INTRUDER_TARGETS]


def certified(shop: Workshop, config: FitConfig, target: float) -> Verdict:
    """A verdict at the whole of delta."""
    return certifying.certify(shop, config, target, config.delta, 1, _STAMP, None)


def intruded(verdict: Verdict, inside: Dataset, outside: Dataset) -> dict[str, Any]:
    """Counts on in-scope test traces and on intruders."""
    if not isinstance(verdict, Certified):
        return {"verdict": "refused", "inside": _nothing(len(inside)), "outside": {"n": len(outside)} | _NO_INTRUDER}
    decisions = verdict.policy.decide(outside.texts, outside.dense)
    as_such = np.array([label == OUT_OF_SCOPE for label in decisions.labels])
    on_inside = on_test(verdict.policy, inside)
    return {
        "verdict": verdict.policy.family,
        "inside": {key: on_inside[key] for key in ("n", "n_handled", "n_agreed")},
        "outside": {
            "n": len(outside),
            "n_wrong": int((decisions.handled & ~as_such).sum()),
            "n_recognised": int((decisions.handled & as_such).sum()),
        },
    }


_NO_INTRUDER = {"n_wrong": 0, "n_recognised": 0}


def _nothing(n: int) -> dict[str, int]:
    return {"n": n, "n_handled": 0, "n_agreed": 0}


def intruders(folder: Path, task: Task, train: Dataset, cells: Cells, *, quick: bool) -> dict[str, Any]:
    """Traffic without intruders in the traces, and traffic with half of them in."""
    outside = load_intruders(folder)
    rows = np.random.default_rng(0).permutation(len(outside))
    seen, unseen = outside.take(rows[: len(rows) // 2]), outside.take(rows[len(rows) // 2 :])
    mixed, names = joined(train, seen), with_out_of_scope(task.encodings)
    novelties: tuple[Novelty, ...] = ("rank", "defer") if quick else ("off", "rank", "defer")
    out: dict[str, Any] = {"n_train": len(train), "n_seen": len(seen), "fits": []}
    for features in ("auto",) if quick else ("auto", "lexical"):
        for novelty in novelties:
            for traffic in ("clean", "mixed"):
                key = f"intruders {task.digest} {features} {novelty} {traffic} {len(train)}"
                settings: dict[str, Any] = {"features": features, "novelty": novelty}
                if traffic == "clean":
                    measure = partial(intrusion, train, task.test, outside, task.encodings, settings)
                else:
                    measure = partial(intrusion, mixed, task.test, unseen, names, settings)
                found = cells.get(key, measure)
                out["fits"].append({**settings, "traffic": traffic, "rows": found})
                print(key, flush=True)
    return out


# The guard, on the training file alone


def guards(part: Part, seed: int, *, n_rows: int | None) -> dict[str, Any]:
    """A fifth of the labels stays out of training and plays the intruders; a quarter of the other rows is held out."""
    dataset = part.dataset
    rng = np.random.default_rng(seed)
    names = rng.permutation(np.array(dataset.space.names))
    left_out = np.isin(np.array(dataset.labels), names[: len(names) // 5])
    known = rng.permutation(np.flatnonzero(~left_out))[:n_rows]
    cut = len(known) * 3 // 4
    fit, inside = dataset.take(known[:cut]), dataset.take(known[cut:])
    outside = dataset.take(np.flatnonzero(left_out))
    config = FitConfig(novelty="off", ledger="promotion")
    fit = fit.with_space(LabelSpace.observed(fit.labels))
    shop = training.train(fit, config, encodings=part.encodings)
    bench = _GuardBench(shop, inside, outside)
    return {"signals": bench.signals(), "guards": [bench.guarded(config, *guard) for guard in _GUARDS]}


class _GuardBench:
    """Single surrogates of one workshop (no cascades) under guards that differ."""

    def __init__(self, shop: Workshop, inside: Dataset, outside: Dataset) -> None:
        self.shop, self.inside, self.outside = shop, inside, outside
        self.room = shop.dataset.take(shop.rooms.train)
        assert self.room.dense is not None
        folds = fold_ids(shop.dataset, shop.rooms.train, FitConfig().folds)
        near = OutOfFoldNeighbours.of(self.room.dense, self.room.y, folds, len(shop.dataset.space), 0)
        assert near is not None
        self.near = near
        self.singles = [c for c in shop.contenders if c.first is None]
        self.members = {(m.learner.block, m.learner.family): m for m in shop.cross.members}

    def signals(self) -> dict[str, Any]:
        """Each signal barred at an out-of-fold quantile: in-scope inputs deferred, intruders let through."""
        best = next(c for c in self.singles if len(c.trained.candidate.surrogate.parts) > 1)
        candidate = best.trained.candidate
        nearest = self.near.nearness.similarities.max(axis=1).astype(np.float64)
        logits = np.sum(self._views(candidate), axis=0).astype(np.float64)
        means = _class_means(logits)
        train = _signals(logits, nearest, best.scored.scores, means)
        inside, outside = (self._served(candidate, room, means) for room in (self.inside, self.outside))
        return {
            name: {
                "auc": {"above": _wins(inside[name], outside[name]), "pairs": len(self.inside) * len(self.outside)},
                "bars": {
                    f"{q:g}": {
                        "n_in": len(self.inside),
                        "in_deferred": int((inside[name] < np.quantile(train[name], q)).sum()),
                        "n_out": len(self.outside),
                        "out_through": int((outside[name] >= np.quantile(train[name], q)).sum()),
                    }
                    for q in _QUANTILES
                },
            }
            for name in _SIGNALS
        }

    def guarded(self, config: FitConfig, mode: Novelty, quantile: float) -> dict[str, Any]:
        """Certify with this guard at each target."""
        contenders = tuple(self._contender(c, mode, quantile) for c in self.singles)
        shop = replace(self.shop, contenders=contenders)
        rows = [
            {"target": t} | intruded(certified(shop, config, t), self.inside, self.outside) for t in _INTRUDER_TARGETS
        ]
        return {"mode": mode, "quantile": quantile, "rows": rows}

    def _contender(self, contender: Contender, mode: Novelty, quantile: float) -> Contender:
        trained: Trained = contender.trained
        views = self._views(trained.candidate)
        largest = np.sum(views, axis=0).max(axis=1)
        guard = NoveltyGuard(mode, float(np.quantile(largest, quantile)))
        candidate = replace(trained.candidate, guard=guard)
        nearness = self.near.nearness if candidate.acceptor.prototypes is not None else None
        scored = candidate.score_views(views, nearness)
        return replace(contender, trained=replace(trained, candidate=candidate, scored=scored), scored=scored)

    def _views(self, candidate: Candidate) -> tuple[Float32, ...]:
        """Out-of-fold logits of each part, weighted."""
        return tuple(
            self.members[part.block, part.name].logits * np.float32(part.weight) for part in candidate.surrogate.parts
        )

    def _served(self, candidate: Candidate, room: Dataset, means: Float64) -> dict[str, Float64]:
        assert room.dense is not None
        assert self.shop.lexical is not None
        blocks: Blocks = {"lexical": self.shop.lexical.transform(room.texts or ()), "dense": room.dense}
        nearest = self.near.prototypes.nearness(room.dense).similarities.max(axis=1).astype(np.float64)
        logits = np.sum(candidate.surrogate.views(blocks), axis=0).astype(np.float64)
        return _signals(logits, nearest, candidate.score(blocks).scores, means)


def _class_means(logits: Float64, shrinkage: float = 10.0) -> Float64:
    """Mean largest logit (k,) by predicted class, shrunk to the overall one."""
    largest, predicted, k = logits.max(axis=1), logits.argmax(axis=1), logits.shape[1]
    sums = np.bincount(predicted, weights=largest, minlength=k) + shrinkage * largest.mean()
    return np.asarray(sums / (np.bincount(predicted, minlength=k) + shrinkage), dtype=np.float64)


def _signals(logits: Float64, nearest: Float64, scores: Float64, means: Float64) -> dict[str, Float64]:
    largest = logits.max(axis=1)
    return {
        "max_logit": largest,
        "class_logit": largest - means[logits.argmax(axis=1)],
        "energy": np.asarray(special.logsumexp(logits, axis=1), dtype=np.float64),
        "acceptor": scores,
        "nearest": nearest,
    }


def _wins(inside: Float64, outside: Float64) -> int:
    """Pairs in which the in-scope input has the higher signal."""
    return int(np.searchsorted(np.sort(outside), inside, side="left").sum())


def _pooled(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Counts of several seeds added up, whatever is nested in them."""
    out: dict[str, Any] = {}
    for key, first in runs[0].items():
        values = [run[key] for run in runs]
        if isinstance(first, dict):
            out[key] = _pooled(values)
        elif isinstance(first, list):
            out[key] = [_pooled(rows) for rows in zip(*values, strict=True)]
        elif key in {"target", "mode", "quantile"}:
            out[key] = first
        elif key == "verdict":
            out["refused"] = sum(value == "refused" for value in values)
            out["global"] = sum(value == "global" for value in values)
        else:
            out[key] = sum(values)
    return out


# The page


def render(result: dict[str, Any]) -> str:
    """The section of docs/benchmarks.md."""
    parts = [
        "## Hard tasks",
        "Teachers that are subjective, noisy or wrong, one fit a target with all defaults, each fit a statement of its own at\n"
        f"delta {result['settings']['delta']:g}. Where a surrogate cannot follow its teacher, the right answer is a refusal: the table shows up to which\n"
        "target each task is certified, and whether agreement on unseen traces kept the promise.",
    ]
    for name, task in result["tasks"].items():
        parts += [f"### {_TITLES[name]}", _task_text(task), _task_table(task), _refusals(task)]
    parts += [_ceiling_text(result["ceiling"]), _intruder_text(result["intruders"]), _guard_text(result["guards"])]
    return "\n\n".join([*(part for part in parts if part), footer(result)]) + "\n"


def _task_text(task: dict[str, Any]) -> str:
    n = task["n_test"]
    groups = f" in {task['n_groups']:,} groups" if task["n_groups"] else ""
    text = (
        f"{task['n_train']:,} traces{groups}, {task['n_labels']} labels, {n:,} test traces. The most frequent label alone "
        f"agrees with the teacher on {share(task['constant']['n_agreed'], n)} of them."
    )
    if task["teacher_right"] is not None:
        text += f" The teacher itself is right on {share(task['teacher_right'], n)}."
    if task["n_groups"]:
        text += (
            " One trace a group certifies, so the shadow room counts groups, and the claim counts each group alike: its"
            " column is *by group*. The intervals take rows as independent, which rows of one group are not."
        )
    return text


def _task_table(task: dict[str, Any]) -> str:
    grouped, truth = bool(task["n_groups"]), task["teacher_right"] is not None
    head = ["target", "verdict", "shadow", "coverage, test", "agreement, test (95% interval)"]
    head += ["by group"] * grouped + ["accuracy, end to end"] * truth + ["agreement at full coverage"]
    return table(head, (_task_row(row, grouped, truth) for row in task["rows"]))


def _task_row(row: dict[str, Any], grouped: bool, truth: bool) -> list[object]:
    full = share(row["full"]["n_agreed"], row["full"]["n"]) if row["full"] else "-"
    start: list[object] = [f"{row['target']:.2f}"]
    if row["verdict"] == "refused":
        return [*start, "refused", f"{row['n_shadow']:,}", "0", "-", *["-"] * (grouped + truth), full]
    test = row["test"]
    cells: list[object] = [*start, row["policy"], f"{row['n_shadow']:,}", share(test["n_handled"], test["n"])]
    cells.append(interval(test["n_agreed"], test["n_handled"]))
    if grouped:
        cells.append("-" if row["by_group"] is None else f"{row['by_group']:.3f}")
    if truth:
        cells.append(share(test["n_right"], test["n"]))
    return [*cells, full]


def _refusals(task: dict[str, Any]) -> str:
    """What the lowest refused target says; the results file has the others."""
    refused = [row for row in task["rows"] if row["verdict"] == "refused"]
    return f"The refusal at {refused[0]['target']:.2f}: {refused[0]['statement']}" if refused else ""


def _ceiling_text(found: dict[str, Any]) -> str:
    rows = []
    for name, title in (("all", "all rows asked twice"), ("test", "those of them in the test file")):
        n, same = found[name]["n"], found[name]["n_same"]
        rows.append([title, f"{n:,}", interval(same, n), f"{same / n:.4f} to {sqrt(same / n):.4f}" if n else "-"])
    n = found["test"]["n"]
    surrogates = [
        [
            f"{row['name']} (chosen for {row['target']:g})",
            interval(row["test"]["n_agreed"], row["test"]["n"]),
            share(row["first"], n),
            share(row["again"], n),
        ]
        for row in found["surrogates"]
    ]
    return "\n\n".join(
        [
            "### The teacher asked twice",
            "CLINC150's teacher answered the same texts twice. With p(y | x) its answers, it agrees with itself at the rate\n"
            "A = E[sum of p^2], and the best any surrogate can reach against a fresh answer, E[max of p], lies between A and\n"
            "the root of A (Jensen).",
            table(["rows", "n", "self-agreement A (95% interval)", "best possible agreement, A to root of A"], rows),
            f"Surrogates fitted on {found['n_train']:,} traces that answer everything, on the test file: with the teacher's\n"
            f"answers, and on the {n:,} rows asked twice with the first answer and with the second.",
            table(["surrogate", "all test traces (95% interval)", "first answer", "second answer"], surrogates),
        ]
    )


_FEATURES = {"auto": "lexical and dense", "lexical": "lexical"}


def _intruder_text(found: dict[str, Any]) -> str:
    def rows(traffic: str, cell: Callable[[dict[str, Any]], str]) -> list[list[str]]:
        return [
            [_FEATURES[fit["features"]], fit["novelty"], *(f"{_verdict(row)}{cell(row)}" for row in fit["rows"])]
            for fit in found["fits"]
            if fit["traffic"] == traffic
        ]

    head = ["features", "novelty", *(f"target {target:g}" for target in _INTRUDER_TARGETS)]
    return "\n\n".join(
        [
            "### Out-of-scope inputs",
            f"CLINC150, {found['n_train']:,} traces without any out-of-scope text, then its out-of-scope test texts. Each one\n"
            "handled is wrong by definition, and no certificate speaks of them: they are traffic unlike the traces. Trained\n"
            "once a row of settings; each target is a statement of its own. Cells: coverage / agreement in scope / share of\n"
            "intruders handled. Guard `rank` moves unfamiliar inputs to the end of the chain: where the whole chain is certified\n"
            "it bars none. The test file is harder than the training file, so agreement in scope may miss the target.",
            table(head, rows("clean", _cell)),
            f"The same traffic with {found['n_seen']:,} of the out-of-scope texts among the traces, which the teacher labels\n"
            f"`{OUT_OF_SCOPE}`, so that the certificate pays for them; the other texts are the intruders. Cells: coverage /\n"
            "agreement in scope / share of intruders answered with another label / with that label.",
            table(head, rows("mixed", lambda row: f"{_cell(row)} / {_recognised(row)}")),
        ]
    )


def _verdict(row: dict[str, Any]) -> str:
    return f"{row['verdict']}, "


def _cell(row: dict[str, Any]) -> str:
    inside, outside = row["inside"], row["outside"]
    return " / ".join(
        [
            share(inside["n_handled"], inside["n"]),
            share(inside["n_agreed"], inside["n_handled"]),
            share(outside["n_wrong"], outside["n"]),
        ]
    )


def _recognised(row: dict[str, Any]) -> str:
    return share(row["outside"]["n_recognised"], row["outside"]["n"])


def _guard_text(found: dict[str, Any]) -> str:
    signals = [
        [
            _SIGNALS[name],
            share(signal["auc"]["above"], signal["auc"]["pairs"]),
            *(
                f"{share(bar['in_deferred'], bar['n_in'])} / {share(bar['out_through'], bar['n_out'])}"
                for bar in signal["bars"].values()
            ),
        ]
        for name, signal in found["pooled"]["signals"].items()
    ]
    guarded = [
        [
            guard["mode"] if guard["mode"] == "off" else f"{guard['mode']}, {guard['quantile']:g}",
            *(_cell(row) + (f" ({row['refused']} refused)" if row["refused"] else "") for row in guard["rows"]),
        ]
        for guard in found["pooled"]["guards"]
    ]
    return "\n\n".join(
        [
            "### The novelty guard",
            "CLINC150's training file alone: a fifth of the labels, drawn at random, stays out of training and plays the\n"
            f"intruders; draws: {len(found['seeds'])}, their counts added up. First each signal by itself, for the surrogate\n"
            "that reads both views: the share of pairs of an in-scope input and an intruder that it orders rightly, and,\n"
            "barred below an out-of-fold quantile, the share of in-scope inputs deferred / of intruders let through.",
            table(["signal", "pairs in order", *(f"quantile {q:g}" for q in _QUANTILES)], signals),
            "Then the guard as it is, on the largest logit, at several quantiles in a whole fit without cascades. Cells:\n"
            "coverage / agreement in scope / share of intruders handled.",
            table(["guard, quantile", *(f"target {target:g}" for target in _INTRUDER_TARGETS)], guarded),
        ]
    )


def main() -> None:
    """Measure all of it and write the results file."""
    given = arguments(__doc__ or "")
    quick, folder = given.quick, given.data
    targets = (0.70, 0.85) if quick else _TARGETS
    limit = QUICK_ROWS // 2 if quick else None
    loaders: dict[str, Callable[[], Task]] = {
        "onet_exposure": lambda: load_onet(folder, limit),
        "annolexical": lambda: load_task(folder, "annolexical", limit=limit),
        "nli": lambda: load_task(folder, "nli", group_by=premise, limit=limit),
    }
    cells = Cells("hard_tasks", "stamps in keys", revision=_REVISION, quick=quick)
    tasks = {name: hard_task(load(), targets, cells) for name, load in loaders.items()}
    part = load_part(folder / "clinc150" / "train.jsonl", limit=QUICK_ROWS if quick else None)
    clinc = load_task(folder, "clinc150", limit=QUICK_ROWS if quick else None)
    train = draw(clinc.train, 2000 if quick else len(clinc.train), 0)
    seeds = [1] if quick else [1, 2, 3]
    n_rows = 4000 if quick else None
    runs = [
        cells.get(f"guards {part.digest[:16]} {seed}", partial(guards, part, seed, n_rows=n_rows)) for seed in seeds
    ]
    content = {
        "digest": clinc.digest,
        "settings": {
            "targets": targets,
            "delta": FitConfig().delta,
            "order_seed": 0,
            "held_out_occupations_seed": 0,
            "intruder_targets": _INTRUDER_TARGETS,
            "intruder_split_seed": 0,
            "mix_seed": 1,
        },
        "tasks": tasks,
        "ceiling": cells.get(f"ceilings {clinc.digest}", partial(ceiling, folder, clinc, train)),
        "intruders": intruders(folder, clinc, train, cells, quick=quick),
        "guards": {"seeds": seeds, "pooled": _pooled(runs)},
    }
    write_result("hard_tasks", content, quick=quick)


if __name__ == "__main__":
    main()
