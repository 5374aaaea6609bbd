"""Thirty days of traffic with real feedback: labels come back for what was deferred or audited, and for nothing else.

Ours, beside "calibrate on what came back" (every returned label counts as a plain sample) and beside full labels (the
teacher is asked for everything). Requests and truth are drawn from the same traces, so that the promise is exactly what
is counted. Then the same in worlds whose truth is known in closed form, where lives are cheap.

python -m benchmarks.flywheel_loop --data FOLDER [--lives N] [--quick]
"""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import special

from benchmarks import lives
from benchmarks.common import QUICK_ROWS, Cells, Part, arguments, footer, table, write_result
from benchmarks.hard_tasks import load_onet
from benchmarks.traffic import Arm, Pool, Stream, live, load_pool, pool_of
from tracer.config import FitConfig

_REVISION = 1
_SEED = 20261124
DAYS = 30
ARMS = (
    Arm("ours, 2% audited"),
    Arm("ours, audited as advised", advise_days=DAYS),
    Arm("calibrated on what came back", pooled=True),
    Arm("full labels", mode="shadow"),
)
SETS: dict[str, tuple[tuple[str, ...], float, int, int]] = {
    "banking77": (("train", "test"), 0.95, 3000, 250),
    "clinc150": (("train", "test"), 0.95, 4000, 500),
    "onet_exposure": (("traces",), 0.85, 4000, 400),
}
"""Files, target, rows of the truth, requests a day."""
TITLES = {"banking77": "Banking77", "clinc150": "CLINC150", "onet_exposure": "O*NET exposure"}
LOG = 2000
FRESH = (3.0, 5.0, 10.0, 20.0, 1e6)
_SHOWN = (0, 4, 9, 19, 29)
_DRAWS = 10_000


def stream(pool: Pool, seed: int, n_truth: int, a_day: int, log: int, days: int) -> Stream:
    """A life drawn from a pool, without replacement."""
    rows = np.random.default_rng([_SEED, seed]).permutation(len(pool.traces))
    first = n_truth + log
    requests = np.split(rows[first : first + days * a_day], days)
    return Stream(rows[n_truth:first], tuple(requests), {0: rows[:n_truth]}, {0: pool.traces.labels})


def config_for(target: float) -> FitConfig:
    """All defaults, on embeddings alone: a refit takes one to two seconds."""
    return FitConfig(targets=(target,), features="dense")


def real(folder: Path, cells: Cells, n_lives: int, *, quick: bool) -> dict[str, Any]:
    """Every data set and arm, the lives in turn."""
    out: dict[str, Any] = {}
    pools = {}
    for name, (files, target, n_truth, a_day) in SETS.items():
        pools[name] = load_pool(folder, name, files, QUICK_ROWS if quick else None)
        out[name] = {"target": target, "a_day": a_day, "n_truth": n_truth, "n_pool": len(pools[name].traces),
                     "digest": pools[name].digest, "arms": {}}  # fmt: skip
    for seed in range(n_lives):
        for name, (_, target, n_truth, a_day) in SETS.items():
            shape = (1000, 50, 1000, 10) if quick else (n_truth, a_day, LOG, DAYS)
            life = stream(pools[name], seed, *shape)
            for arm in ARMS:
                key = f"{pools[name].digest} {name} {arm.name} {seed}"
                found = cells.get(key, lambda: live(pools[name], life, arm, config_for(target), seed))  # noqa: B023
                out[name]["arms"].setdefault(arm.name, []).append(found)
            print(f"{name}: life {seed}", flush=True)
    return out


def fresh_enough(folder: Path, cells: Cells, n_lives: int, *, quick: bool) -> dict[str, Any]:
    """How many fresh traces certify alone: other values of ``updating.FRESH_ENOUGH``, on training rows alone.

    O*NET, of the occupations that `hard_tasks` trains on: at the other targets a month brings too few.
    """
    onet = load_onet(folder, QUICK_ROWS if quick else None)
    name, pool = "onet_exposure", pool_of("onet_exposure", [Part(onet.train, onet.encodings, onet.digest)])
    out: dict[str, Any] = {}
    for seed in range(n_lives):
        shape = (500, 50, 1000, 10) if quick else (1500, 300, LOG, DAYS)
        life = stream(pool, seed, *shape)
        for arm in (ARMS[3], ARMS[1]):
            for fresh in FRESH:
                key = f"{pool.digest} fresh {name} {arm.name} {fresh} {seed}"
                config = config_for(SETS[name][1])
                found = cells.get(key, lambda: live(pool, life, arm, config, seed, fresh=fresh))  # noqa: B023
                out.setdefault(name, {}).setdefault(arm.name, {}).setdefault(str(fresh), []).append(found)
        print(f"fresh, {name}: life {seed}", flush=True)
    return out


# Counting


def below(versions: Mapping[str, Sequence[int]], target: float) -> tuple[bool, bool]:
    """Whether any version of a life agreed less than ``target`` on the truth: as counted, and beyond chance (5%)."""
    found = [(n, k) for _, n, k in versions.values() if n]
    point = any(k < target * n for n, k in found)
    return point, any(special.bdtr(k, n, target) <= 0.05 for n, k in found)


def mean_interval(values: Sequence[float]) -> str:
    """Mean over lives with its 95% bootstrap interval."""
    x = np.asarray(values, dtype=np.float64)
    if len(x) < 2:
        return f"{x.mean():.3f}"
    draws = x[np.random.default_rng(0).integers(0, len(x), (_DRAWS, len(x)))].mean(axis=1)
    low, high = np.quantile(draws, (0.025, 0.975))
    return f"{x.mean():.3f} ({low:.3f} to {high:.3f})"


def coverage(life: Mapping[str, Any], day: int) -> float:
    """Share of the truth that the policy in force handles."""
    return float(life["days"]["n_handled"][day] / life["days"]["n_truth"][day])


def pooled_agreement(found: Sequence[Mapping[str, Any]], day: int) -> str:
    """Agreement on what is handled, counts of all lives together."""
    n = sum(life["days"]["n_handled"][day] for life in found)
    return f"{sum(life['days']['n_agreed'][day] for life in found) / n:.3f}" if n else "-"


# The page


def render(result: dict[str, Any]) -> str:
    """The section of docs/benchmarks.md."""
    parts = [_HEAD.format(days=DAYS, log=f"{LOG:,}"), "![Coverage by day](figures/flywheel.svg)"]
    for name, found in result["real"].items():
        parts += [
            f"### {TITLES[name]}, target {found['target']:g}",
            _set_text(found),
            _set_table(found),
            _life_table(found),
        ]
    parts += ["### Fresh traces that certify alone", _FRESH_TEXT, _fresh_table(result["fresh"])]
    parts += [lives.render(result["simulated"]), footer(result)]
    return "\n\n".join(parts) + "\n"


_HEAD = """## Thirty days of the flywheel

A log of {log} traces is fitted; then requests come for {days} days through the real router, store, watch and update, the
clock apart. Labels come back for deferred and audited requests only. Log, requests and the rows of the truth are drawn at
random from the same traces (one a text, without replacement), so the truth is that of the traffic; features are embeddings
alone. *Calibrated on what came back* counts every returned label as a plain sample of traffic; *full labels* asks the
teacher for everything and is the upper line. *As advised*: the audit rate that `tracer status --days 30` names after the
first fit, 20% at most. Coverage is a mean over lives with its bootstrap interval; agreement adds up the counts of all lives,
both on the truth, for the policy in force at the end of the day (nothing is handled without one)."""

_FRESH_TEXT = """On O*NET's training rows alone, 300 requests a day, target 0.85: elsewhere a month brings too few. An attempt is made on
fresh shadow traces alone where there are at least so many times the fewest that could pass; those that certified before then train. Otherwise older ones certify again."""


def _set_text(found: Mapping[str, Any]) -> str:
    n_lives = len(next(iter(found["arms"].values())))
    return (
        f"{n_lives} lives of {found['a_day']} requests a day, {found['n_truth']:,} rows of truth each, from "
        f"{found['n_pool']:,} traces."
    )


def _set_table(found: Mapping[str, Any]) -> str:
    rows = []
    for name, arm in found["arms"].items():
        shown = [day for day in _SHOWN if day < len(arm[0]["days"]["asked"])]
        cells = [mean_interval([coverage(life, day) for life in arm]) for day in shown]
        agreements = [pooled_agreement(arm, day) for day in shown]
        rows.append([name, *(f"{c}; {a}" for c, a in zip(cells, agreements, strict=True))])
    days = [f"day {day + 1}: coverage; agreement" for day in shown]
    return table(["labels", *days], rows)


def _life_table(found: Mapping[str, Any]) -> str:
    rows = []
    for name, arm in found["arms"].items():
        flags = [below(life["versions"], found["target"]) for life in arm]
        asked = [np.mean(life["days"]["asked"]) for life in arm]
        audited = [np.mean(life["days"]["audited"]) for life in arm]
        served = sum(sum(life["days"]["served"]) for life in arm)
        wrong = sum(sum(life["days"]["wrong"]) for life in arm)
        rows.append([
            name,
            f"{np.mean([life['audit_rate'] for life in arm]):.3f}",
            f"{np.mean(asked):.0f} of {found['a_day']}",
            f"{np.mean(audited):.1f}",
            f"{1 - wrong / served:.4f}" if served else "-",
            f"{np.mean([len(life['versions']) for life in arm]):.1f}",
            f"{sum(point for point, _ in flags)} of {len(arm)}",
            f"{sum(sure for _, sure in flags)} of {len(arm)}",
            f"{sum(any(e[1] == 'alarm' for e in life['events']) for life in arm)} of {len(arm)}",
        ])  # fmt: skip
    head = ["labels", "audit rate", "teacher calls a day", "audits among them", "agreement served", "policies in force",
            "lives with one below target", "beyond chance (5%)", "lives with an alarm"]  # fmt: skip
    return table(head, rows)


def _fresh_table(found: Mapping[str, Any]) -> str:
    rows = []
    for name, arms in found.items():
        for arm, values in arms.items():
            for fresh, runs in values.items():
                last = len(runs[0]["days"]["asked"]) - 1
                flags = [below(life["versions"], SETS[name][1]) for life in runs]
                rows.append([
                    TITLES[name], arm, f"{float(fresh):g}" if float(fresh) < FRESH[-1] else "never", len(runs),
                    f"{np.mean([life.get('n_released', 0) for life in runs]):.1f}",
                    f"{np.mean([sum(e[1].startswith('update') for e in life['events']) for life in runs]):.1f}",
                    mean_interval([float(np.mean([coverage(life, d) for d in range(last + 1)])) for life in runs]),
                    mean_interval([coverage(life, last) for life in runs]),
                    pooled_agreement(runs, last),
                    f"{sum(point for point, _ in flags)}, {sum(sure for _, sure in flags)}",
                ])  # fmt: skip
    head = ["data", "labels", "times the fewest", "lives", "on fresh ones alone", "attempts", "mean coverage",
            "coverage at the end", "agreement at the end", "lives below target, beyond chance"]  # fmt: skip
    return table(head, rows)


def _add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--lives", type=int, default=5, help="lives a data set")


def main() -> None:
    """Measure, and write the results file."""
    given = arguments(__doc__ or "", _add)
    cells = Cells("flywheel_loop", "stamps in keys", revision=_REVISION, quick=given.quick)
    found = real(given.data, cells, 1 if given.quick else given.lives, quick=given.quick)
    content = {
        "digest": hashlib.sha256("".join(part["digest"] for part in found.values()).encode()).hexdigest()[:16],
        "real": found,
        "fresh": fresh_enough(given.data, cells, 1 if given.quick else 3, quick=given.quick),
        "simulated": lives.measure(cells, quick=given.quick),
    }
    write_result("flywheel_loop", content, quick=given.quick)


if __name__ == "__main__":
    main()
