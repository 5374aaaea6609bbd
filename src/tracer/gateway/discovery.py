"""Finding classification tasks in traffic that nobody declared, in bounded memory.

Calls are grouped by prompt. Of each group Tracer keeps counts and digests, and the text of an output only once that
same short output came five times. A group is proposed for one of two reasons:

- ``enum``: the request itself lists two labels or more, and 20 calls did;
- ``repeats``: the outputs repeat. All outputs seen by call n = 200, 400, 800, ... are a fixed set; of the n calls after
  that, those with an output outside of the set are counted, and a one-sided exact binomial test asks whether less than
  5% of the traffic lies outside. Look j spends 6 / (pi^2 j^2) of 0.001. So a prompt of whose independent outputs at
  least 5% are unseen at every look is proposed with probability at most 0.001, however long it runs. Besides, at least
  two outputs must have come five times, each label 10 times on average, and half of the inputs must differ.

A call of more than 64 messages, or of very long labels, is left out: a group keeps a digest of each message. Groups
compete for room as in Space-Saving (Metwally, Agrawal, El Abbadi 2005): whatever makes up more than
1 / ``capacity`` of the calls is there in the end.
"""

from __future__ import annotations

import hashlib
import heapq
import json
import math
import re
import threading
from collections import Counter
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path

from tracer import storage
from tracer.errors import TracerError
from tracer.gateway.calls import Call
from tracer.gateway.proposals import Evidence, Proposal, common_start
from tracer.gateway.selecting import Selection, digest_of, fingerprint, select, template
from tracer.gateway.settings import InputSelector
from tracer.types import Usage

DISCOVERED = "discovered.json"
FIRST_LOOK = 200
UNSEEN = 0.05
LEVEL = 0.001
REPEATED = 5
MOST_LABELS = 255
_ENUM_CALLS = 20
_LONGEST = 80
_FEWEST_DISTINCT = 30
_SKETCH = 64
_TEMPLATE_LEAST = 12
_TEMPLATE_MOST = 4000
_HEAD = 32
_MODELS = 8
_MOST_TURNS = 64
_MOST_BYTES = 32 * 1024
"""Of roles and labels: what a group keeps of its first request."""
_WHOLE = InputSelector()
_NAMED = 64
_SLUG = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,40}")


@dataclass(slots=True)
class _Group:
    """What is kept of one prompt."""

    selection: Selection
    weight: int
    options: tuple[str, ...] | None
    label_field: str
    prefix: str
    suffix: str
    first: float
    last: float
    n: int = 0
    n_answerable: int = 0
    n_usage: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    shortest: int = 1 << 60
    outputs: Counter[int] = field(default_factory=Counter)
    names: dict[int, str] = field(default_factory=dict)
    models: Counter[str] = field(default_factory=Counter)
    known: frozenset[int] = frozenset()
    look: int = 0
    n_outside: int = 0
    free: bool = False
    passed: bool = False
    sketch: list[int] = field(default_factory=list)

    def add(self, call: Call, selection: Selection, output: str | None, at: float, usage: Usage | None) -> None:
        text = selection.text
        self.n, self.weight = self.n + 1, self.weight + 1
        self.n_answerable += not call.unanswerable
        self.first, self.last = min(self.first, at), max(self.last, at)
        if len(self.models) < _MODELS or call.model[:100] in self.models:
            self.models[call.model[:100]] += 1
        if usage is not None:
            self.n_usage += 1
            self.input_tokens += usage.input_tokens
            self.output_tokens += usage.output_tokens
        self.prefix = common_start(self.prefix, text)
        self.suffix = common_start(self.suffix[::-1], text[: -_TEMPLATE_MOST - 1 : -1])[::-1]
        self.shortest = min(self.shortest, len(text))
        self._count_input(_number(text))
        self._count_output(output)

    def distinct(self) -> float:
        """About how many inputs differ: the k smallest digests (Bar-Yossef et al. 2002), within some 13%."""
        if len(self.sketch) < _SKETCH:
            return float(len(self.sketch))
        return (_SKETCH - 1) / (-self.sketch[0] / 2.0**64)

    def _count_input(self, digest: int) -> None:
        if -digest in self.sketch:
            return
        if len(self.sketch) < _SKETCH:
            heapq.heappush(self.sketch, -digest)
        else:
            heapq.heappushpop(self.sketch, -digest)

    def _count_output(self, output: str | None) -> None:
        if self.free:
            return
        short = output is not None and 0 < len(output) <= _LONGEST and "\n" not in output
        digest = _number(output) if output is not None and short else -1
        self.n_outside += digest not in self.known
        if digest >= 0:
            self.outputs[digest] += 1
            if self.outputs[digest] == REPEATED and output is not None:
                self.names[digest] = output
        if len(self.outputs) > 4 * MOST_LABELS or len(self.names) > MOST_LABELS:
            self.free = True
            self.outputs.clear()
            self.names.clear()
        elif self.n == FIRST_LOOK * 2**self.look:
            self._look()

    def _look(self) -> None:
        """Test the calls since the last look, and begin anew with all outputs seen by now."""
        if self.look:
            from tracer.stats import binomial  # with scipy, which no start need wait for

            level = LEVEL * 6 / (math.pi * self.look) ** 2
            p = float(binomial.p_value(self.n_outside, self.n // 2, 1 - UNSEEN))
            self.passed = p <= level
        self.known, self.n_outside, self.look = frozenset(self.outputs), 0, self.look + 1

    def evidence(self) -> Evidence | None:
        """Why it is a task; None where nothing shows it."""
        if self.options is not None:
            return "enum" if len(self.options) > 1 and self.n_answerable >= _ENUM_CALLS else None
        many = self.distinct() >= max(_FEWEST_DISTINCT, 0.5 * min(self.n, 400))
        labels = len(self.names)
        repeated = 2 <= labels <= MOST_LABELS and self.n >= 10 * len(self.outputs)
        return "repeats" if self.passed and not self.free and many and repeated else None

    def template(self) -> tuple[str, str] | None:
        """What stands around the text in all messages, cut back to a boundary of words."""
        if self.distinct() < _FEWEST_DISTINCT:
            return None
        before = self.prefix[: max((m.end() for m in re.finditer(r"[\s:>\"`]", self.prefix)), default=0)]
        found = re.search(r"[\s<\"`]", self.suffix)
        after = self.suffix[found.start() :] if found else ""
        if len(before) + len(after) < _TEMPLATE_LEAST or len(before) + len(after) > self.shortest:
            return None
        return before, after


class Discovery:
    """Watches calls and proposes tasks. Safe to use from several threads.

    At most ``capacity`` prompts are kept by all that surrounds the last user message, and as many by how that message
    begins, for prompts that stand in it.
    """

    def __init__(self, capacity: int = 200) -> None:
        self._capacity = capacity
        self._tables: tuple[dict[str, _Group], dict[str, _Group]] = ({}, {})
        self._saved: dict[str, Proposal] = {}
        self._lock = threading.Lock()

    def observe(self, call: Call, output: str | None, *, at: float, usage: Usage | None = None) -> None:
        """Count a call with its output as the codec read it, None where it is no label; ``at`` in epoch seconds."""
        selection = select(call, _WHOLE) if is_watchable(call) else None
        if selection is None:
            return
        whole = fingerprint(selection)
        with self._lock:
            self._add(self._tables[0], whole, call, selection, output, at, usage)
            if call.options is None and len(selection.text) > _HEAD:
                begins = f"{whole}{digest_of(selection.text[:_HEAD])}"
                self._add(self._tables[1], begins, call, selection, output, at, usage)

    def proposals(self) -> tuple[Proposal, ...]:
        """What looks like a task, most calls first."""
        with self._lock:
            whole = {key: found for key, g in self._tables[0].items() if (found := _proposal(g, needs_template=False))}
            headed: dict[str, list[Proposal]] = {}
            for key, group in self._tables[1].items():
                if (found := _proposal(group, needs_template=True)) is not None:
                    headed.setdefault(key[:32], []).append(found)
        for key, parts in headed.items():
            # Several templates under one system prompt are several tasks, not one with all their labels.
            if key in whole and (whole[key].template or 2 * sum(p.n_calls for p in parts) < whole[key].n_calls):
                headed[key] = []
            else:
                whole.pop(key, None)
        out = {found.fingerprint: found for found in (*whole.values(), *chain.from_iterable(headed.values()))}
        return tuple(sorted(out.values(), key=lambda p: (-p.n_calls, p.fingerprint)))

    def save(self, home: str | Path) -> tuple[Proposal, ...]:
        """Add what is new since the last `save` to ``home/discovered.json``, with those of other processes; all of it.

        Raises TracerError where the file cannot be read: it is left as it is.
        """
        found = self.proposals()
        folder = Path(home)
        with storage.locked(folder, ".discovered.lock", what="saving discovered tasks", wait_s=5.0):
            known = {p.fingerprint: p for p in stored(folder)}
            for proposal in found:
                earlier = self._saved.get(proposal.fingerprint)
                grown = earlier is not None and earlier.n_calls <= proposal.n_calls
                new = proposal.since(earlier) if earlier is not None and grown else proposal
                there = known.get(proposal.fingerprint)
                known[proposal.fingerprint] = new if there is None else replace(there.merged(new), name=there.name)
            out = tuple(sorted(known.values(), key=lambda p: (-p.n_calls, p.fingerprint)))
            content = json.dumps([p.as_dict() for p in out], indent=1)
            storage.write_atomic(folder / DISCOVERED, (content + "\n").encode("utf-8", "backslashreplace"))
        self._saved = {p.fingerprint: p for p in found}
        return out

    def _add(
        self, table: dict[str, _Group], key: str, call: Call, selection: Selection,
        output: str | None, at: float, usage: Usage | None,
    ) -> None:  # fmt: skip
        group = table.get(key)
        if group is None:
            weight = 0
            if len(table) >= self._capacity:
                least = min(table, key=lambda k: table[k].weight)
                weight = table.pop(least).weight
            text, named = selection.text, (*call.slot.path, *call.slot.fields)
            group = table[key] = _Group(
                replace(selection, text=""), weight, call.options, named[-1][:_NAMED] if named else "",
                text[:_TEMPLATE_MOST], text[-_TEMPLATE_MOST:], at, at,
            )  # fmt: skip
        group.add(call, selection, output, at, usage)


def is_watchable(call: Call) -> bool:
    """Whether a call is short enough, but for its texts, to be kept as a group."""
    if len(call.messages) > _MOST_TURNS:
        return False
    kept = (*(turn.role for turn in call.messages), *(call.options or ()))
    return sum(map(len, kept)) <= _MOST_BYTES


def _number(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest())


def stored(home: str | Path) -> tuple[Proposal, ...]:
    """The proposals in ``home/discovered.json``; none where there is no such file. Raises TracerError."""
    path = Path(home) / DISCOVERED
    try:
        return tuple(Proposal.from_dict(values) for values in json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return ()
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError) as error:
        raise TracerError(f"{path}: cannot be read: {type(error).__name__}: {error}") from error


def _proposal(group: _Group, *, needs_template: bool) -> Proposal | None:
    evidence = group.evidence()
    found = group.template() if evidence else None
    if evidence is None or (needs_template and found is None):
        return None
    selection = group.selection
    if found is not None:
        role = selection.turns[selection.at][0]
        turn = (role, digest_of(template(*found)))
        turns = (*selection.turns[: selection.at], turn, *selection.turns[selection.at + 1 :])
        selection = replace(selection, turns=turns)
    digest = fingerprint(selection)
    counts = {name: group.outputs[key] for key, name in group.names.items()}
    if group.options is not None:
        labels = [(name, counts.get(name, 0)) for name in group.options]
    else:
        labels = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    stem = group.label_field if _SLUG.fullmatch(group.label_field) else "task"
    return Proposal(
        digest, f"{stem}-{digest[:8]}", evidence, group.models.most_common(1)[0][0], group.n, tuple(labels),
        group.options is not None, group.n_usage, group.input_tokens, group.output_tokens,
        group.first, group.last, found,
    )  # fmt: skip
