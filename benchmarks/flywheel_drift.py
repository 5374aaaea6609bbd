"""Drift from day 10: new classes, another mix, a teacher whose prompt changes, with and without saying so.

How long until a warning and until the alarm, in audits and in requests, how many wrong answers were served until then,
and what happened after. Then the monitor alone: false alarms over stationary lives, and delays in audits by the size of
the change.

python -m benchmarks.flywheel_drift --data FOLDER [--lives N] [--quick]
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import QUICK_ROWS, Cells, arguments, footer, interval, table, write_result
from benchmarks.flywheel_loop import SETS, TITLES, config_for
from benchmarks.traffic import Arm, Pool, Stream, live, load_pool
from tracer.monitoring.alarms import Monitor, MonitorConfig
from tracer.monitoring.observations import Observation

_REVISION = 1
_SEED = 20261125
DAYS, CHANGE, LOG = 30, 10, 2000
"""The change comes at the start of day ``CHANGE``."""
SCENARIOS = ("new classes", "another mix", "another prompt, unsaid", "another prompt, said")
ARMS = (
    Arm("ours, 2% audited"),
    Arm("ours, 10% audited", audit_rate=0.10),
    Arm("calibrated on what came back", pooled=True),
)
_NEW_CLASSES, _MERGED = 0.15, 0.20
_RATES = (0.05, 0.04, 0.03, 0.02)
_AFTER = (0.08, 0.10, 0.15, 0.20, 0.30, 0.50)
_STATIONARY, _AUDITS, _BEFORE = 200, 5000, 500


def scenario(pool: Pool, name: str, seed: int, n_truth: int, a_day: int, log: int, days: int, change: int) -> Stream:
    """A life whose traffic, or whose teacher, changes at the start of day ``change``."""
    rng = np.random.default_rng([_SEED, seed, SCENARIOS.index(name)])
    y, labels = pool.traces.y, pool.traces.labels
    k = len(pool.traces.space)
    rows = rng.permutation(len(y))
    truth, rest = rows[:n_truth], rows[n_truth:]
    n_before = log + (change - 1) * a_day
    n_after = (days - change + 1) * a_day
    relabelled: Sequence[str] = labels
    early = np.ones(len(y), dtype=bool)
    late = np.ones(len(y))
    if name == "new classes":
        new = rng.permutation(k)[: round(_NEW_CLASSES * k)]
        early = ~np.isin(y, new)
    elif name == "another mix":
        # Weights of labels spread over a factor of 16: the frequent half becomes rare and the reverse.
        late = 4.0 ** rng.permutation(np.linspace(-1.0, 1.0, k))[y]
    else:
        # A prompt that no longer tells some labels from others: a fifth of them goes into the one before.
        order = rng.permutation(k)
        merged = {order[i]: order[i + 1] for i in range(0, max(round(_MERGED * k), 1) * 2, 2) if i + 1 < k}
        names = pool.traces.space.names
        relabelled = [names[merged.get(code, code)] for code in y.tolist()]
    first = rest[early[rest]][:n_before]
    left = rest[~np.isin(rest, first)]
    second = _weighted(rng, left, late, n_after)
    requests = (*np.split(first[log:], change - 1), *np.array_split(second, days - change + 1))
    truth_after = _weighted(rng, truth, late, len(truth) // 2) if name == "another mix" else truth
    return Stream(
        first[:log], requests, {0: truth[early[truth]], change: truth_after}, {0: labels, change: relabelled},
        {0: "1", change: "2" if name == "another prompt, said" else "1"},
    )  # fmt: skip


def _weighted(rng: np.random.Generator, rows: Any, weights: Any, n: int) -> Any:
    """Up to ``n`` of these rows without replacement, by their weights (Efraimidis and Spirakis 2006)."""
    keys = rng.exponential(size=len(rows)) / weights[rows]
    return rng.permutation(rows[np.argsort(keys)[:n]])


def drifting(folder: Path, cells: Cells, n_lives: int, *, quick: bool) -> dict[str, Any]:
    """Every scenario on both intent sets."""
    out: dict[str, Any] = {}
    pools = {}
    for name in ("banking77", "clinc150"):
        files, target, _, a_day = SETS[name]
        pools[name] = load_pool(folder, name, files, QUICK_ROWS if quick else None)
        out[name] = {
            "target": target,
            "a_day": 60 if quick else a_day,
            "change": 4 if quick else CHANGE,
            "scenarios": {},
        }
    for seed in range(n_lives):
        for name, pool in pools.items():
            target, a_day, change = (out[name][key] for key in ("target", "a_day", "change"))
            n_truth, log, days = (500, 1000, 12) if quick else (SETS[name][2], LOG, DAYS)
            for what in SCENARIOS:
                stream = scenario(pool, what, seed, n_truth, a_day, log, days, change)
                for arm in ARMS:
                    key = f"{pool.digest} {name} {what} {arm.name} {seed}"
                    found = cells.get(key, lambda: live(pool, stream, arm, config_for(target), seed))  # noqa: B023
                    out[name]["scenarios"].setdefault(what, {}).setdefault(arm.name, []).append(found)
            print(f"{name}: life {seed}", flush=True)
    return out


# The monitor alone


def _audits(disagree: Any) -> list[Observation]:
    return [Observation(i + 1, "v", "label", not wrong, True) for i, wrong in enumerate(disagree)]


def stationary(cells: Cells, *, quick: bool) -> dict[str, Any]:
    """Share of lives with a false alarm, at rates of disagreement that the target allows."""
    n_lives, n = (10, 1000) if quick else (_STATIONARY, _AUDITS)
    config = MonitorConfig()
    # One label: the watch over classes judges each of them alone, and never demotes.
    monitor = Monitor(target=0.95, policy="v", n_classes=1, config=config)
    out = []
    for rate in _RATES:

        def count(rate: float = rate) -> dict[str, Any]:
            rang, warned = [], 0
            for seed in range(n_lives):
                rng = np.random.default_rng([_SEED, round(1000 * rate), seed])
                state = monitor.over(_audits(rng.random(n) < rate))
                warned += state.warned is not None
                if state.rang is not None:
                    rang.append(state.rang.index)
            return {"rate": rate, "n_alarms": len(rang), "n_warned": warned, "alarms": rang}

        out.append(cells.get(f"stationary {rate} {n_lives} {n}", count))
        print(f"stationary, {rate}: {out[-1]['n_alarms']} alarms", flush=True)
    return {"n_lives": n_lives, "n": n, "arl": config.arl, "rollback_delta": config.rollback_delta, "cells": out}


def delays(cells: Cells, *, quick: bool) -> dict[str, Any]:
    """Handled audits from a change to the warning and to the alarm; 3% disagree before it."""
    n_lives, n = (10, 1000) if quick else (_STATIONARY, 3000)
    monitor = Monitor(target=0.95, policy="v", n_classes=1)
    out = []
    for rate in _AFTER:

        def count(rate: float = rate) -> dict[str, Any]:
            warned, rang = [], []
            for seed in range(n_lives):
                rng = np.random.default_rng([_SEED, 7, round(1000 * rate), seed])
                state = monitor.over(_audits(rng.random(_BEFORE) < 0.03))
                early = state.rang is not None
                later = rng.random(n) < rate
                after = state.fold(
                    Observation(_BEFORE + i + 1, "v", "label", not wrong, True) for i, wrong in enumerate(later)
                )
                if not early:
                    rang.append(n if after.rang is None else after.rang.number - _BEFORE)
                if state.warned is None:
                    warned.append(n if after.warned is None else after.warned.number - _BEFORE)
            quantiles = [0.1, 0.5, 0.9]
            return {
                "rate": rate, "warned": np.quantile(warned, quantiles).tolist(),
                "rang": np.quantile(rang, quantiles).tolist(), "n_never": sum(x == n for x in rang), "n": len(rang),
            }  # fmt: skip

        out.append(cells.get(f"delay {rate} {n_lives} {n}", count))
        print(f"delay, {rate}: {out[-1]}", flush=True)
    return {"n_lives": n_lives, "cells": out}


# What became of a life


def story(life: Mapping[str, Any], change: int, target: float) -> dict[str, Any]:
    """Delays from the change on, and what followed. Counts are those of the whole life up to an event."""
    days = life["days"]
    before = {key: sum(days[key][: change - 1]) for key in ("asked", "served", "wrong", "audited")}
    requests = before["asked"] + before["served"]

    def first(*kinds: str) -> dict[str, int] | None:
        for day, kind, _, n_requests, n_wrong, n_audits, *_ in life["events"]:
            if day >= change and kind.startswith(kinds):
                return {
                    "day": day, "requests": n_requests - requests, "wrong": n_wrong - before["wrong"],
                    "audits": n_audits - before["audited"],
                }  # fmt: skip
        return None

    alarm = first("alarm")
    # The day after the change from which on the policy in force keeps its promise on the new truth until the end.
    fine = [h > 0 and k >= target * h for h, k in zip(days["n_handled"], days["n_agreed"], strict=True)]
    stays = next((d for d in range(change - 1, len(fine)) if all(fine[d:])), None)
    return {
        "warned": first("warning", "drift"), "alarm": alarm, "acted": first("alarm", "update", "line"),
        "restored": None if stays is None else stays + 1 - change + 1,
        "wrong": sum(days["wrong"]) - before["wrong"], "served": sum(days["served"]) - before["served"],
        "below": sum(h > 0 and k < target * h for h, k in
                     zip(days["n_handled"][change - 1:], days["n_agreed"][change - 1:], strict=True)),
        "teacher": sum(h == 0 for h in days["n_handled"][change - 1 :]),
    }  # fmt: skip


# The page

_HEAD = """## Drift, false alarms and delays

The lives of the section before ({log:,} traces, then {days} days), and something changes at the start of day {change}: a share
of 0.15 of the labels appears for the first time (*new classes*); labels are reweighted over a factor of 16 (*another mix*);
the teacher no longer tells a fifth of the labels from another one, its traces saying nothing of it (*unsaid*) or carrying
another `prompt` (*said*). The home is watched twice a day. Delays are counted from the change: medians over lives, and
in brackets how many lives had the event. *Days below*: after the change, on which the policy in force agreed on less than
the target of the new truth, as counted; *restored*: first day from which on some policy is in force and keeps it."""


def render(result: Mapping[str, Any]) -> str:
    """The section of docs/benchmarks.md."""
    first = next(iter(result["drift"].values()))
    parts = [_HEAD.format(log=LOG, days=DAYS, change=first["change"])]
    for name, found in result["drift"].items():
        parts += [f"### {TITLES[name]}, target {found['target']:g}, {found['a_day']} requests a day", _table(found)]
    if "again" in result:
        parts += ["### After an alarm, since an alarm voids what came before it", _again(result["again"])]
    parts += ["### False alarms of the monitor", _stationary(result["stationary"])]
    parts += ["### Delay by the size of the change", _delays(result["delays"]), footer(dict(result))]
    return "\n\n".join(parts) + "\n"


def _again(found: Mapping[str, Any]) -> str:
    """Lives measured again, with later sources than the tables above."""
    rows = [
        "The tables above were measured while a refit after an alarm could still certify on traces from before it (see",
        "[decisions.md](decisions.md), 66 and 67). The same lives, 2% audited, with the present rules:",
        "",
        "| data | change | alarm: requests / audits | wrong answers until then | days below | days with the teacher alone | restored, day |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for life in found["lives"]:
        alarm = life["alarm"]
        told = f"{alarm['requests']} / {alarm['audits']} | {alarm['wrong']}" if alarm else "- | -"
        restored = "-" if life["restored"] is None else life["restored"]
        rows.append(
            f"| {TITLES[life['data']]} | {life['change']} | {told} | {life['below']} | {life['teacher']} | {restored} |"
        )
    return "\n".join(rows) + f"\n\nTracer sources `{found['environment']['sources']}`."


def _median(stories: Sequence[Mapping[str, Any]], event: str, *keys: str) -> str:
    found = [s[event] for s in stories if s[event] is not None]
    if not found:
        return f"- (0 of {len(stories)})"
    values = " / ".join(f"{np.median([f[key] for f in found]):.0f}" for key in keys)
    return f"{values} ({len(found)})"


def _table(found: Mapping[str, Any]) -> str:
    rows = []
    change, target = found["change"], found["target"]
    for what, arms in found["scenarios"].items():
        for arm, runs in arms.items():
            stories = [story(life, change, target) for life in runs]
            last = [life["days"]["n_handled"][-1] / life["days"]["n_truth"][-1] for life in runs]
            n, k = (sum(life["days"][key][-1] for life in runs) for key in ("n_handled", "n_agreed"))
            served, wrong = (sum(s[key] for s in stories) for key in ("served", "wrong"))
            restored = [s["restored"] for s in stories if s["restored"] is not None]
            rows.append([
                what, arm, len(runs), _median(stories, "warned", "requests", "audits"),
                _median(stories, "alarm", "requests", "audits"), _median(stories, "alarm", "wrong"),
                f"{np.mean([s['below'] for s in stories]):.1f}", f"{np.mean([s['teacher'] for s in stories]):.1f}",
                f"{np.median(restored):.0f} ({len(restored)})" if restored else "- (0)",
                f"{1 - wrong / served:.3f}" if served else "-", f"{np.mean(last):.3f}", f"{k / n:.3f}" if n else "-",
            ])  # fmt: skip
    head = ["change", "labels", "lives", "first warning: requests / audits", "alarm: requests / audits",
            "wrong answers until then", "days below", "days with the teacher alone", "restored, day", "agreement served since",
            "coverage at the end", "agreement at the end"]  # fmt: skip
    return table(head, rows)


def _stationary(found: Mapping[str, Any]) -> str:
    bound = found["n"] / found["arl"] + found["rollback_delta"]
    rows = [
        [f"{cell['rate']:.2f}", f"{cell['n_alarms']} of {found['n_lives']}", interval(cell["n_alarms"], found["n_lives"]),
         f"{bound:.2f}", f"{cell['n_warned']} of {found['n_lives']}"] for cell in found["cells"]
    ]  # fmt: skip
    text = (
        f"{found['n_lives']} stationary lives of {found['n']:,} handled audits each, target 0.95. The detector may ring in at "
        f"most n / ARL = {found['n'] / found['arl']:.2f} of them (ARL {found['arl']:,.0f}), the evidence since the policy's "
        f"start in {found['rollback_delta']:g}. A warning has a twentieth of the ARL: it is meant to come now and then."
    )
    head = ["true disagreement", "lives with an alarm", "share", "at most", "lives with a warning"]
    return text + "\n\n" + table(head, rows)


def _delays(found: Mapping[str, Any]) -> str:
    def shown(values: Sequence[float]) -> str:
        low, middle, high = values
        return f"{middle:.0f} ({low:.0f} to {high:.0f})"

    rows = [
        [f"{cell['rate']:.2f}", shown(cell["warned"]), shown(cell["rang"]), f"{cell['n_never']} of {cell['n']}"]
        for cell in found["cells"]
    ]
    text = (
        f"Handled audits until warning and alarm, median and 10% to 90% of {found['n_lives']} lives; target 0.95, {_BEFORE} "
        "audits with a disagreement of 0.03 come first. A day's traffic divided by its handled audits turns them into time."
    )
    return text + "\n\n" + table(["disagreement after", "warning", "alarm", "none within 3,000"], rows)


def _add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--lives", type=int, default=3, help="lives a scenario")


def main() -> None:
    """Measure, and write the results file."""
    given = arguments(__doc__ or "", _add)
    cells = Cells("flywheel_drift", "stamps in keys", revision=_REVISION, quick=given.quick)
    content = {
        "stationary": stationary(cells, quick=given.quick),
        "delays": delays(cells, quick=given.quick),
        "drift": drifting(given.data, cells, 1 if given.quick else given.lives, quick=given.quick),
    }
    write_result("flywheel_drift", content, quick=given.quick)


if __name__ == "__main__":
    main()
