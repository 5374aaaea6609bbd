"""The gateway from an empty store to a drift that demotes its policy: Banking77, the labels of a real LLM replayed.

``tracer serve`` as a process before a stand-in that answers as the LLM did; the official SDK as the client; ``tracer fit``
and ``tracer flywheel run`` on the task's home. Observe, fit, shadow, live; then the teacher takes a third of its labels
for others, under the same prompt, until an alarm demotes the policy. Each message is asked once.

python -m benchmarks.gateway_replay --data FOLDER [--shots FOLDER] [--quick]
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from decimal import Decimal
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from benchmarks import load_servers as servers
from benchmarks import replay_shots
from benchmarks.common import arguments, footer, interval, share, table, write_result
from benchmarks.gateway_memory import metrics, recorded
from benchmarks.load_servers import Server
from benchmarks.load_tasks import DATA, SEED, instructions, texts_of, versions
from benchmarks.replay_client import AT_ONCE, Call, asked
from benchmarks.replay_standin import tokens
from tracer.cost import call_usd, price_of
from tracer.policies.history import Event
from tracer.policies.registry import PolicyRegistry
from tracer.traces.store import TraceStore
from tracer.types import Trace, Usage

T = TypeVar("T")

TASK, TEACHER = "bank-intents", "gpt-4o-mini"
TARGET, DELTA, AUDIT_RATE = 0.9, 0.05, 0.1
DRIFTED = 1 / 3
"""Share of the labels that the teacher takes for others, in a circle, once it has drifted."""
EVERY_S = 1.0
"""Seconds between looks of the flywheel: traffic is as fast as a day's in minutes."""
MEDIAN_S, SPREAD = 0.02, 0.4
PHASES = ("observe", "shadow", "live", "drift", "after")
_SETTLE_S = 60.0


@dataclass(frozen=True, slots=True)
class Plan:
    """Calls of each phase, and how many a second at most; what is left of the texts comes after the drift."""

    observe: int
    shadow: int
    live: int
    drifted: int
    live_per_s: float
    drift_per_s: float


WHOLE = Plan(5000, 500, 5000, 2500, 40.0, 40.0)
QUICK = Plan(2000, 100, 600, 2000, 100.0, 40.0)


def main() -> None:
    """Serve, live through all phases, count, write."""
    given = arguments(__doc__ or "", _add)
    plan = QUICK if given.quick else WHOLE
    train, test, digest = texts_of(given.data, None)
    labels = dict(zip((*(train.texts or ()), *(test.texts or ())), (*train.labels, *test.labels), strict=True))
    names = sorted(set(labels.values()))
    rng = np.random.default_rng(SEED)
    texts = [text for text, _ in sorted(labels.items())]
    texts = [texts[i] for i in rng.permutation(len(texts))]
    drift = circle([names[i] for i in rng.permutation(len(names))[: round(DRIFTED * len(names))]])
    with tempfile.TemporaryDirectory() as scratch:
        story = Story(Path(scratch), plan, labels, drift, instructions(names), given.shots)
        content = story.told(texts)
    write_result("gateway_replay", {"digest": digest, **content}, quick=given.quick)


def _add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--shots", type=Path, default=None, help="folder for pictures of the live page")


def circle(labels: Sequence[str]) -> dict[str, str]:
    """Each label to the next one, the last to the first."""
    return dict(zip(labels, [*labels[1:], *labels[:1]], strict=True))


@dataclass(slots=True, eq=False)
class Story:
    """All that happens, in a folder."""

    folder: Path
    plan: Plan
    labels: Mapping[str, str]
    drift: Mapping[str, str]
    prompt: str
    shots: Path | None

    @property
    def home(self) -> Path:
        """The task's home folder."""
        return self.folder / "home" / "tasks" / TASK

    @property
    def config(self) -> Path:
        """The gateway's settings."""
        return self.folder / "tracer.yaml"

    def told(self, texts: Sequence[str]) -> dict[str, Any]:
        """Live through the phases; what was counted."""
        plan, turns = self.plan, iter(texts)
        calls: list[Call] = []
        facts: dict[str, Any] = {}
        with ExitStack() as stack:
            teacher = stack.enter_context(self._teacher())
            self._configure(teacher.port, "observe")
            gateway = stack.enter_context(servers.gateway("gateway", self.config, None, self.folder / "gateway.log"))
            url = f"http://{servers.HOST}:{gateway.port}"

            def phase(n: int, per_s: float | None, *, drifted: bool = False) -> list[Call]:
                chosen = [text for text, _ in zip(turns, range(n), strict=False)]
                truth = [self._truth(text, drifted=drifted) for text in chosen]
                found = asked(url, TASK, self.prompt, chosen, truth, per_s)
                calls.extend(found)
                n_asked = sum(not call.handled for call in calls)
                _until(lambda: recorded(self.home) >= n_asked, "all traces are written")
                print(f"{len(found):,} calls, {sum(call.handled for call in found):,} handled", flush=True)
                return found

            observed = phase(plan.observe, None)
            fit = self._fit()
            self._configure(teacher.port, "shadow")
            _until(lambda: self._mode(gateway) == "shadow", "the gateway has read its settings again")
            shadowed = phase(plan.shadow, None)
            self._tracer("mode", "live", "--home", str(self.home))
            _until(lambda: self._mode(gateway) == "live", "the policy is live")
            with self._flywheel():
                alive = phase(plan.live, plan.live_per_s)
                facts["status"] = self._status()
                self._shoot(url, "live")
                teacher.post("{}", "/drift")
                turned = time.time()
                later = phase(plan.drifted, plan.drift_per_s, drifted=True)
                demoted = _until(lambda: self._demotion(turned), "an alarm demotes the policy")
                self._shoot(url, "demoted")
            told = metrics(gateway)
            facts["stand_in"] = json.loads(teacher.get("/stats"))["n"]
        with TraceStore.open(self.home) as store:
            traces = {trace.id: trace for _, trace in store.traces()}
        assert demoted.time is not None
        at = demoted.time.timestamp()
        parts = {
            "observe": observed, "shadow": shadowed, "live": alive,
            "drift": [call for call in later if call.begun < at], "after": [call for call in later if call.begun >= at],
        }  # fmt: skip
        return facts | {
            "data": DATA, "seed": SEED, "target": TARGET, "delta": DELTA, "audit_rate": AUDIT_RATE, "teacher": TEACHER,
            "n_labels": len(set(self.labels.values())), "n_drifted": len(self.drift), "every_s": EVERY_S,
            "live_per_s": plan.live_per_s, "drift_per_s": plan.drift_per_s, "at_once": AT_ONCE, "median_s": MEDIAN_S,
            "versions": versions() | {"openai": version("openai")},
            "fit": fit,
            "phases": {name: self._counted(found, traces) for name, found in parts.items()},
            "shadow": would_be(shadowed, traces),
            "alarm": self._alarm(parts["drift"], parts["after"], traces, demoted, turned),
            "money": self._money(calls, told),
            "store": kept(calls, traces, told),
            "history": [told_of(event, turned) for event in PolicyRegistry(self.home).history()],
        }  # fmt: skip

    # --- processes

    def _teacher(self) -> Any:
        file = self.folder / "teacher.json"
        file.write_text(json.dumps({"labels": dict(self.labels), "drift": dict(self.drift)}), encoding="utf-8")
        port = servers.free_port()
        script = str(servers.HERE / "replay_standin.py")
        command = [sys.executable, script, str(port), str(file), str(MEDIAN_S), str(SPREAD), str(SEED)]
        return servers.started("stand-in", command, port, None, ready="/stats")

    def _configure(self, upstream: int, mode: str) -> None:
        self.config.write_text(
            f"""home: {self.folder / "home"}
reload: true
log_level: warning
upstreams:
  llm: {{base_url: "http://{servers.HOST}:{upstream}/v1"}}
tasks:
  {TASK}:
    match: {{models: [{TASK}]}}
    teacher: {TEACHER}
    target: {TARGET}
    delta: {DELTA}
    audit_rate: {AUDIT_RATE}
    mode: {mode}
""",
            encoding="utf-8",
        )

    def _tracer(self, *command: str) -> str:
        """What a command of the CLI prints. Raises CalledProcessError."""
        run = [sys.executable, "-m", "tracer.cli", *command]
        done = subprocess.run(run, env=_environment(), capture_output=True, text=True, check=True, timeout=600)
        return done.stdout

    def _status(self) -> dict[str, Any]:
        """What `tracer status` says of the policy in force."""
        told = json.loads(self._tracer("status", "--json", "--home", str(self.home)))
        monitor = told["monitor"]
        named = ("status", "detector", "agreement", "interval", "n_audits", "n_handled", "n_agreed")
        return {"policy": told["policy"], "warnings": told["warnings"]} | {name: monitor[name] for name in named}

    def _fit(self) -> dict[str, Any]:
        begun = time.perf_counter()
        told = json.loads(self._tracer("fit", "--features", "lexical", "--json", "--home", str(self.home)))
        certificate = PolicyRegistry(self.home).load().certificate
        print(f"fitted: {told['verdict']}", flush=True)
        return {
            "s": round(time.perf_counter() - begun, 1), "n_shadow": certificate.n_shadow,
            "n_handled": certificate.n_handled, "n_agreed": certificate.n_agreed,
        }  # fmt: skip

    @contextmanager
    def _flywheel(self) -> Iterator[None]:
        command = [
            sys.executable,
            "-m",
            "tracer.cli",
            "flywheel",
            "run",
            "--home",
            str(self.home),
            "--every",
            str(EVERY_S),
        ]
        with (self.folder / "flywheel.log").open("wb") as log:
            process = subprocess.Popen(command, env=_environment(), stdout=log, stderr=log)
            try:
                yield
                assert process.poll() is None, "the flywheel ended by itself"
            finally:
                process.terminate()
                process.wait(60)

    @staticmethod
    def _mode(gateway: Server) -> str:
        return " ".join(
            re.findall(r'^tracer_policy_info\{mode="(\w+)"', gateway.get("/metrics").decode(), re.MULTILINE)
        )

    def _demotion(self, since: float) -> Event | None:
        events = PolicyRegistry(self.home).history()
        found = (e for e in events if e.event == "demote" and e.time is not None and e.time.timestamp() >= since)
        return next(found, None)

    def _shoot(self, url: str, moment: str) -> None:
        if self.shots is not None:
            time.sleep(4.0)  # what the page shows is kept for three seconds
            replay_shots.shoot(url, TASK, self.shots, moment)

    # --- counting

    def _truth(self, text: str, *, drifted: bool) -> str:
        label = self.labels[text]
        return self.drift.get(label, label) if drifted else label

    def _usd(self, call: Call) -> Decimal:
        """What the teacher asks for a call, whether it was made or not."""
        price = price_of(TEACHER)
        assert price is not None
        return call_usd(price, Usage(*tokens(self.prompt, call.text, call.truth)))

    def _counted(self, calls: Sequence[Call], traces: Mapping[str, Trace]) -> dict[str, Any]:
        handled = [call for call in calls if call.handled]
        spent = sum((self._usd(call) for call in calls if not call.handled), Decimal(0))
        return {
            "n": len(calls),
            "n_handled": len(handled),
            "n_agreed": sum(call.agreed for call in handled),
            "n_audits": sum(call.decision == "audit" for call in calls),
            "n_audits_handled": len(audited(calls, traces)),
            "n_audits_agreed": sum(seen for _, seen in audited(calls, traces)),
            "n_right": sum(call.agreed for call in calls),
            "saved_usd": float(sum((call.saved for call in handled), Decimal(0))),
            "spent_usd": float(spent),
            "reasons": dict(Counter(call.reason for call in calls)),
            "policies": {
                name: [sum(c.policy == name for c in handled), sum(c.policy == name and c.agreed for c in handled)]
                for name in sorted({call.policy for call in handled})
            },
        }

    def _alarm(
        self, before: Sequence[Call], after: Sequence[Call], traces: Mapping[str, Trace], event: Event, turned: float
    ) -> dict[str, Any]:
        """From the drift to the demotion, and what the demoted policy still answered then."""
        wrong = [call for call in before if call.handled and not call.agreed]
        late = [call for call in after if call.handled and call.policy == event.before]
        assert event.time is not None
        return {
            "demoted": event.before, "to": event.after, "note": event.note,
            "s": round(event.time.timestamp() - turned, 1),
            "n_calls": len(before), "n_audits": sum(call.decision == "audit" for call in before),
            "n_audits_handled": len(audited(before, traces)), "n_handled": sum(call.handled for call in before),
            "n_wrong": len(wrong), "n_late": len(late), "n_late_wrong": sum(not call.agreed for call in late),
        }  # fmt: skip

    def _money(self, calls: Sequence[Call], told: Mapping[str, float]) -> dict[str, float]:
        """Saved as the headers say, as ``/metrics`` says, and as the stand-in would have asked for those very calls."""
        handled = [call for call in calls if call.handled]
        return {
            "headers_usd": float(sum((call.saved for call in handled), Decimal(0))),
            "metrics_usd": round(told["tracer_saved_usd_total"], 8),
            "true_usd": float(sum((self._usd(call) for call in handled), Decimal(0))),
            "all_usd": float(sum((self._usd(call) for call in calls), Decimal(0))),
        }


def _environment() -> dict[str, str]:
    path = os.pathsep.join(part for part in sys.path if part)
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


def _until(what: Callable[[], T | None], wanted: str) -> T:
    """What comes, once it is true. Raises RuntimeError where it does not come."""
    end = time.monotonic() + _SETTLE_S
    while not (found := what()):
        if time.monotonic() > end:
            raise RuntimeError(f"not within {_SETTLE_S:.0f} seconds: {wanted}")
        time.sleep(0.1)
    return found


def audited(calls: Sequence[Call], traces: Mapping[str, Trace]) -> list[tuple[Call, bool]]:
    """The audits that the policy in force would have answered, and whether the teacher said the same."""
    found = [(call, traces[call.id]) for call in calls if call.decision == "audit" and call.id in traces]
    return [(call, trace.seen.label == trace.label) for call, trace in found if trace.seen and trace.seen.handled]


def would_be(calls: Sequence[Call], traces: Mapping[str, Trace]) -> dict[str, int]:
    """What the policy would have done in ``shadow``, as the traces tell."""
    seen = [(traces[call.id].seen, traces[call.id].label) for call in calls]
    handled = [(one.label, label) for one, label in seen if one is not None and one.handled]
    return {"n": len(calls), "n_handled": len(handled), "n_agreed": sum(a == b for a, b in handled)}


def kept(calls: Sequence[Call], traces: Mapping[str, Trace], told: Mapping[str, float]) -> dict[str, int]:
    """Whether each call that went to the teacher has its trace, with the teacher's label and the right origin."""
    asked_for = [call for call in calls if not call.handled]
    audits = [call for call in asked_for if call.decision == "audit"]
    return {
        "n_asked": len(asked_for),
        "n_kept": sum(call.id in traces and traces[call.id].label == call.truth for call in asked_for),
        "n_audits": len(audits),
        "n_audits_kept": sum(call.id in traces and traces[call.id].origin == "audit" for call in audits),
        "n_traces": len(traces),
        "n_dropped": int(told["tracer_traces_dropped"]),
    }


def told_of(event: Event, turned: float) -> dict[str, Any]:
    """An event of the history, JSON-ready; seconds from the drift."""
    at = None if event.time is None else round(event.time.timestamp() - turned, 1)
    return {"s": at, "event": event.event, "from": event.before, "to": event.after, "note": event.note}


# The page


def render(result: dict[str, Any]) -> str:
    """The section of docs/benchmarks.md."""
    rows = []
    for name, found in result["phases"].items():
        n, handled = found["n"], found["n_handled"]
        spent, saved = found["spent_usd"], found["saved_usd"]
        rows.append([
            name, f"{n:,}", share(handled, n) if handled else "-", interval(found["n_agreed"], handled),
            f"{found['n_audits_agreed']} of {found['n_audits_handled']}" if found["n_audits_handled"] else "-",
            share(found["n_right"], n), f"${saved:.4f}", f"${spent:.4f}",
            f"{saved / (saved + spent):.1%}",
        ])  # fmt: skip
    head = ["phase", "calls", "coverage", "agreement of what was handled", "audits of it that agreed",
            "answers as the teacher's", "saved", "spent", "share saved"]  # fmt: skip
    shown = ((name, *cell) for name, found in result["phases"].items() for cell in found["policies"].items())
    answers = table(
        ("phase", "answered by", "answers", "agreement"),
        ((phase, version, f"{n:,}", interval(agreed, n)) for phase, version, (n, agreed) in shown),
    )
    return "\n\n".join([_head(result), table(head, rows), answers, _text(result), footer(result)]) + "\n"


def _head(result: Mapping[str, Any]) -> str:
    first = result["phases"]["observe"]["n"]
    return f"""## The gateway, end to end

`tracer serve` from an empty store, one process; the official `openai` SDK ({result["at_once"]} calls at once) asks for {TITLE}, {result["n_labels"]} labels, each
message once; a stand-in answers what a real LLM had said, after {result["median_s"] * 1e3:.0f} ms. After {first:,} calls in `observe`, `tracer fit` on text alone, target
{result["target"]:g}, delta {result["delta"]:g}; then `shadow`, then `live` with {result["audit_rate"]:.0%} audits and `tracer flywheel run` (a look every {result["every_s"]:g} s;
{result["live_per_s"]:g} calls/s, {result["drift_per_s"]:g} after the drift). *Drift*: the teacher takes {result["n_drifted"]} of its labels for others, under the same prompt;
the phase ends where an alarm demotes the policy. Whether an answer is what the teacher would have said is known from the
stand-in, also for calls that never reached it."""


TITLE = "Banking77"


def _text(result: Mapping[str, Any]) -> str:
    fit, shadow, alarm, money, store = (result[key] for key in ("fit", "shadow", "alarm", "money", "store"))
    status = result["status"]
    low, high = status["interval"]
    packages = ", ".join(f"{name} {number}" for name, number in result["versions"].items())
    told = f"{status['n_agreed']} of {status['n_handled']} agreed, {low:.3f} to {high:.3f} at any time"
    events = ", ".join(
        f"{event['event']} {event['to'] or 'the teacher'}" if event["to"] or event["from"] else event["event"]
        for event in result["history"]
    )
    return f"""Certified on {fit["n_shadow"]:,} traces: {fit["n_handled"]:,} handled, {fit["n_agreed"]:,} agreed ({fit["s"]:.0f} s). In `shadow` it would have handled {share(shadow["n_handled"], shadow["n"])},
of which {interval(shadow["n_agreed"], shadow["n_handled"])} agreed. Audits of {status["policy"]}
at the end of `live`: {told if status["n_handled"] else "none yet"}.

The alarm demoted {alarm["demoted"]} {alarm["n_calls"]:,} calls ({alarm["s"]:.0f} s) after the drift, on {alarm["n_audits_handled"]} audits of what it handles, to {alarm["to"] or "the teacher"}; until
then {alarm["n_wrong"]:,} of {alarm["n_handled"]:,} handled calls were answered other than the teacher would have. Until the gateway had taken that up,
the demoted policy answered {alarm["n_late"]:,} calls more, {alarm["n_late_wrong"]:,} of them wrong. History: {events}.

Saved: ${money["headers_usd"]:.4f} by the headers of the answers, ${money["metrics_usd"]:.4f} by `/metrics`; those very calls would have cost ${money["true_usd"]:.4f}, all
calls ${money["all_usd"]:.4f}. Of {store["n_asked"]:,} calls that the teacher answered {store["n_kept"]:,} are in the store with its label, among them {store["n_audits_kept"]:,} of
{store["n_audits"]:,} audits; {store["n_dropped"]} traces were dropped. Seed {result["seed"]}; {packages}."""


if __name__ == "__main__":
    main()
