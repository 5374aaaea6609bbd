"""The paper's protocol (arXiv 2604.14531, section 4): Tables 1 and 2, with the baselines and the peer beside them.

Traces shuffled with a stated seed, five equal daily batches, each fully labelled: ``fit`` on the first, ``update`` with
each of the others, refitted from scratch, counted on the fixed official test set.

python -m benchmarks.protocol --data FOLDER [--only banking77] [--peer PYTHON] [--quick]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import tempfile
import time
from collections.abc import Iterable, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

import tracer
from benchmarks import baselines, regimes, rules
from benchmarks.common import (
    TITLES,
    Cells,
    Task,
    add_peer,
    arguments,
    draw,
    encoder,
    footer,
    load_task,
    on_test,
    share,
    table,
    write_result,
)
from tracer.certification.proposals import ACCEPT_ALL
from tracer.policies.policy import Inputs, Policy
from tracer.stats import binomial
from tracer.types import Dataset

TARGETS = (0.80, 0.85, 0.90, 0.95)
STRICTEST = 0.95
DAYS = 5
SEED = 0

PUBLISHED: dict[str, dict[str, Any]] = {
    "banking77": {
        "teacher": 0.810,
        "tracer": {0.80: (1.0, None, 0.804), 0.85: (1.0, None, None), 0.90: (0.961, 0.912, None),
                   0.95: (0.832, 0.959, 0.816)},
        "confidence": {0.90: (0.998, None), 0.95: (0.878, 0.951)},
        "days": {1: 0.734, 3: 0.745, 4: 0.834},
    },
    "clinc150": {
        "teacher": 0.931,
        "tracer": {0.80: (1.0, None, None), 0.85: (1.0, None, None), 0.90: (1.0, None, None),
                   0.95: (1.0, 0.930, 0.924)},
        "confidence": {0.95: (None, 0.942)},
        "days": {1: 0.574, 2: 1.0},
    },
}  # fmt: skip
"""The paper's figures, coverage, teacher agreement and accuracy end to end; None where its text states none."""


def batches(task: Task) -> list[Dataset]:
    """Five equal daily batches of the shuffled traces."""
    shuffled = draw(task.train, len(task.train), SEED)
    cuts = [round(i * len(shuffled) / DAYS) for i in range(DAYS + 1)]
    return [shuffled.take(np.arange(a, b)) for a, b in pairwise(cuts)]


def flywheel(task: Task, mode: str, target: float) -> list[dict[str, Any]]:
    """``tracer.fit``, then ``tracer.update`` day by day; counts on the test traces with the policy in force."""
    out: list[dict[str, Any]] = []
    policy: Policy | None = None
    # The paper falls back to the teacher where a refit does not pass; ours keeps what it certified.
    on_refusal: Any = "teacher" if mode == "paper" else "keep"
    with tempfile.TemporaryDirectory() as home:
        for day, batch in enumerate(batches(task), 1):
            began = time.perf_counter()
            verdict = (
                tracer.fit(batch, target=target, mode=mode, home=home, embedder=encoder(), ledger="promotion")
                if day == 1
                else tracer.update(batch, home=home, embedder=encoder(), on_refusal=on_refusal)
            )
            seconds = time.perf_counter() - began
            passed = isinstance(verdict, tracer.Certified)
            if isinstance(verdict, tracer.Certified):
                policy = verdict.policy
            elif mode == "paper":
                policy = None
            out.append({"day": day, "promoted": passed, "seconds": round(seconds, 2)} | _state(policy, task.test))
    if policy is not None:
        out[-1]["ceiling"] = _ceiling(policy, task.test, target)
        out[-1]["signature"] = regimes.signature(policy, task.test)
    return out


def _state(policy: Policy | None, test: Dataset) -> dict[str, Any]:
    if policy is None:
        return {"family": None, "test": None}
    certificate = policy.certificate
    gate = {"n": certificate.n_shadow, "n_handled": certificate.n_handled, "n_agreed": certificate.n_agreed}
    return {"family": policy.family, "surrogate": policy.candidate.name, "gate": gate, "test": on_test(policy, test)}


def _ceiling(policy: Policy, test: Dataset, target: float) -> dict[str, Any]:
    """The largest test coverage that this policy's score could reach with hindsight, and at accept-all."""
    scored = policy.score(Inputs.of(test.texts, test.dense)).scored
    agree = scored.predicted == np.array([_code(policy, label) for label in test.labels])
    threshold = rules.oracle(scored.scores, agree, target, np.random.default_rng(0))
    handled = scored.scores >= (np.inf if threshold is None else threshold)
    return {
        "n": len(test), "n_handled": int(handled.sum()), "n_agreed": int((handled & agree).sum()),
        "n_agreed_at_full_coverage": int((agree & (scored.scores >= ACCEPT_ALL)).sum()),
    }  # fmt: skip


def _code(policy: Policy, label: str) -> int:
    return policy.space.names.index(label) if label in policy.space.names else -1


# --- the peer ------------------------------------------------------------------------------------------------


def run_peer(task: Task, python: Path, target: float, days: int) -> list[dict[str, Any]]:
    """``tracer-llm`` in its own environment, with the same batches and vectors."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        parts = batches(task) if days > 1 else [draw(task.train, len(task.train), SEED)]
        for day, batch in enumerate(parts, 1):
            write_traces(batch, folder / f"day{day}")
        write_traces(task.test, folder / "test")
        # An environment of its own: ours must not be found there.
        clean = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
        script = Path(__file__).with_name("peer_protocol.py")
        command = [str(python), str(script), scratch, str(target), str(days)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=clean, timeout=7200)
    if done.returncode:
        raise RuntimeError(f"tracer-llm failed:\n{done.stderr[-2000:]}")
    rows: list[dict[str, Any]] = json.loads(done.stdout.strip().splitlines()[-1])
    return rows


def write_traces(dataset: Dataset, path: Path) -> None:
    """``path.jsonl`` and ``path.npy``, as the peer reads them."""
    columns = zip(dataset.ids, dataset.texts or (), dataset.labels, dataset.truth, strict=True)
    lines = [
        json.dumps({"id": i, "input": text, "teacher": label, "ground_truth": truth}, ensure_ascii=False)
        for i, text, label, truth in columns
    ]
    path.with_suffix(".jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    assert dataset.dense is not None
    np.save(path.with_suffix(".npy"), dataset.dense)


# --- measure -------------------------------------------------------------------------------------------------


def measure(task: Task, peer: Path | None, *, quick: bool) -> dict[str, Any]:
    """Everything of one data set."""
    cells = Cells(f"protocol-{task.name}", task.digest, quick=quick)
    targets = (STRICTEST,) if quick else TARGETS
    result: dict[str, Any] = {
        "data": task.name, "digest": task.digest, "seed": SEED, "n_traces": len(task.train),
        "n_labels": len(set(task.train.labels)), "teacher": _teacher(task.test), "targets": list(targets),
    }  # fmt: skip
    for mode in ("certified", "paper"):
        result[mode] = {}
        for target in targets:
            days = cells.get(f"{mode} {target}", partial(flywheel, task, mode, target))
            result[mode][str(target)] = days
            last = days[-1]["test"] or {"n_handled": 0, "n": 1, "n_agreed": 0}
            print(
                f"{task.name} {mode} {target}: coverage {share(last['n_handled'], last['n'])}, "
                f"agreement {share(last['n_agreed'], last['n_handled'])}",
                flush=True,
            )
    others = Cells(f"protocol-{task.name}-others", task.digest, quick=quick, ours=False)
    result["baselines"] = others.get("baselines", partial(baselines.run, task.train, task.test, targets, SEED))
    if peer is None:
        print("no --peer given: tracer-llm was not measured")
        result["peer"] = None
    else:
        result["peer"] = {
            str(t): others.get(f"peer {t}", partial(run_peer, task, peer, t, DAYS if t == STRICTEST else 1))
            for t in targets
        }
    return result


def _teacher(test: Dataset) -> dict[str, int]:
    right = sum(a == b for a, b in zip(test.labels, test.truth, strict=True))
    return {"n": len(test), "n_right": right}


def main() -> None:
    """Both intent sets, a results file each."""

    def add(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--only", action="append", choices=list(TITLES), help="one data set")
        add_peer(parser)

    given = arguments(__doc__ or "", add)
    for name in given.only or (["banking77"] if given.quick else list(TITLES)):
        peer = None if given.quick else given.peer
        write_result(
            f"protocol_{name}", measure(load_task(given.data, name), peer, quick=given.quick), quick=given.quick
        )


# --- the page ------------------------------------------------------------------------------------------------


def render(result: dict[str, Any]) -> str:
    """Tables 1 and 2 of one data set."""
    name, targets = result["data"], result["targets"]
    title, published = TITLES[name], PUBLISHED[name]
    teacher = result["teacher"]
    found = list(methods(result))
    sweep = table(
        ["method", *(f"{t:g}" for t in targets)], [[label, *map(cell, targets, cells)] for label, cells in found]
    )
    accuracies = [
        [label, *(share(*_right(c, teacher)) for c in cells)]
        for label, cells in found
        if all(c is None or "n_right" in c for c in cells)
    ]
    accuracies.append(["the paper, published", *(_figure(published["tracer"].get(t, (None,) * 3)[2]) for t in targets)])
    accuracy = table(["method", *(f"{t:g}" for t in targets)], accuracies)
    strictest = f"{max(targets):g}"
    return f"""## The paper's protocol: {title}

{result["n_traces"]:,} traces, shuffled (seed {result["seed"]}), five equal daily batches; `tracer.fit` on the first, `tracer.update`
with each of the others, refitted from scratch; counted on the {teacher["n"]:,} official test traces after the last day. Each
cell is coverage / agreement with the teacher on what is handled; † marks an agreement on the test below the target, †† one
whose exact 95% interval lies below it.

{sweep}

Tracer reads texts and embeddings; all others read the embeddings alone. The certified mode keeps the policy in force where a
refit is refused, the paper mode falls back to the teacher. *Calibrated*: trained on 80% of all traces, with the best of three
penalties and the threshold of largest coverage that reaches the target both chosen on the other 20%. *Hindsight*: the
threshold of largest coverage that reaches the target on the test traces themselves, trained on all traces (this is the
paper's baseline); for Tracer, the score of the policy deployed.{_peer_text(result)}

Accuracy by ground truth, end to end (the surrogate's answers where it handles, the teacher's elsewhere). The teacher alone:
{share(teacher["n_right"], teacher["n"])} (the paper's: {published["teacher"]:.3f}).

{accuracy}

Day by day at {strictest}, coverage / agreement on the same test traces with the policy in force:

{_days(result, strictest)}

{footer(result)}
"""


def methods(result: dict[str, Any]) -> Iterable[tuple[str, list[dict[str, Any] | None]]]:
    """Each method's counts at each target; published figures as they are."""
    keys = [str(t) for t in result["targets"]]
    yield "Tracer, certified", [result["certified"][k][-1]["test"] for k in keys]
    yield "Tracer, paper mode", [result["paper"][k][-1]["test"] for k in keys]
    if result["peer"]:
        yield "tracer-llm 0.3.3", [result["peer"][k][-1]["test"] for k in keys]
    base = result["baselines"]
    yield "confidence threshold, calibrated", [c["calibrated"] for c in base["confidence"]]
    yield "semantic cache, calibrated", [c["calibrated"] for c in base["cache"]]
    yield f"semantic cache at {baselines.CACHE_DEFAULT:g}", [base["cache_default"]] * len(keys)
    yield "confidence threshold, hindsight on the test", [c["oracle"] for c in base["confidence"]]
    yield "semantic cache, hindsight on the test", [c["oracle"] for c in base["cache"]]
    yield "Tracer's own score, hindsight on the test", [result["certified"][k][-1].get("ceiling") for k in keys]
    published = PUBLISHED[result["data"]]
    yield "the paper, published", [_published(published["tracer"].get(t)) for t in result["targets"]]
    yield (
        "the paper's confidence threshold, published",
        [_published(published["confidence"].get(t)) for t in result["targets"]],
    )


def _peer_text(result: dict[str, Any]) -> str:
    if not result["peer"]:
        return " `tracer-llm` was not measured."
    return (
        " `tracer-llm` runs with its defaults but without gradient boosting, which would take hours; its cells below the\n"
        "strictest target are one fit on all traces, which its `update` would repeat."
    )


def _right(counts: dict[str, Any] | None, teacher: dict[str, int]) -> tuple[int, int]:
    """Right answers end to end; the teacher's where no policy is in force."""
    found = counts or teacher
    return found["n_right"], found["n"]


def _published(figures: Sequence[float | None] | None) -> dict[str, Any] | None:
    return {"published": figures[:2]} if figures else None


def cell(target: float, counts: dict[str, Any] | None) -> str:
    """Coverage / agreement, marked where the agreement is below the target."""
    if counts is None:
        return "-"
    if "published" in counts:
        coverage, agreement = counts["published"]
        mark = " †" if agreement is not None and agreement < target else ""
        return f"{_figure(coverage)} / {_figure(agreement)}{mark}"
    handled, agreed = counts["n_handled"], counts["n_agreed"]
    return f"{share(handled, counts['n'])} / {share(agreed, handled)}{_mark(target, agreed, handled)}"


def _mark(target: float, agreed: int, handled: int) -> str:
    if not handled or agreed >= target * handled:
        return ""
    return " ††" if binomial.agreement_interval(agreed, handled)[1] < target else " †"


def _figure(value: float | None) -> str:
    return "not available" if value is None else f"{value:.3f}"


def _days(result: dict[str, Any], target: str) -> str:
    modes = {"Tracer, certified": result["certified"][target], "Tracer, paper mode": result["paper"][target]}
    if result["peer"] and len(result["peer"][target]) == DAYS:
        modes["tracer-llm 0.3.3"] = result["peer"][target]
    published = PUBLISHED[result["data"]]["days"]
    rows = []
    for i in range(DAYS):
        n = round((i + 1) * result["n_traces"] / DAYS)
        cells = [cell(float(target), days[i]["test"]) for days in modes.values()]
        rows.append([i + 1, f"{n:,}", *cells, _figure(published.get(i + 1))])
    return table(["day", "traces", *modes, "the paper's coverage, published"], rows)


if __name__ == "__main__":
    main()
