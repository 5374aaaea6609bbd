"""Classification tasks found in traffic: real messages with a language model's labels, among chats."""

from __future__ import annotations

import gc
import json
import sys
from decimal import Decimal
from pathlib import Path
from types import FunctionType, ModuleType

import numpy as np
import pytest

from tests.gateway.calling import SYSTEM, call
from tracer.data import northlight, northlight_order
from tracer.errors import TracerError
from tracer.gateway.calls import Call, Slot
from tracer.gateway.config import parse
from tracer.gateway.discovery import DISCOVERED, Discovery, stored
from tracer.gateway.proposals import Proposal
from tracer.gateway.tasks import TaskSet
from tracer.gateway.watching import Watched, WatchQueue
from tracer.types import Usage

UP = "upstreams: {openai: {base_url: 'https://api.openai.com/v1'}}\n"
DESKS = {"accounts", "billing", "office", "orders", "returns", "sales", "technical"}
USAGE = Usage(800, 15)


def pairs(n: int, seed: int = 0) -> list[tuple[str, str]]:
    data = northlight()
    assert data.texts is not None
    order = northlight_order(len(data.labels), seed)[:n]
    return [(data.texts[i], data.labels[i]) for i in order]


def matched(proposal: Proposal, text: str, **more: str) -> str | None:
    tasks = TaskSet(parse(UP + "tasks:\n" + _indented(proposal), {}).tasks)
    found = tasks.match(call(text, **more), {}, lambda _: ())  # type: ignore[arg-type]
    return None if found is None else found.text


def _indented(proposal: Proposal) -> str:
    return "".join(f"  {line}\n" for line in proposal.yaml().splitlines())


def test_a_task_among_chats_is_found_and_can_be_pasted() -> None:
    rng, found = np.random.default_rng(1), Discovery()
    for i, (text, label) in enumerate(pairs(1000)):
        found.observe(call(text), label, at=60.0 * i, usage=USAGE)
        chat = f"Well, {' '.join(rng.choice(['it', 'may', 'be', 'so', 'that', 'we', 'go'], 30))}"
        found.observe(call(text, system="You are a helpful assistant."), chat, at=60.0 * i)
        found.observe(call(text, system=f"Session {i}. Chat."), label, at=60.0 * i)
    (proposal,) = found.proposals()
    assert (proposal.evidence, proposal.n_calls, proposal.template) == ("repeats", 1000, None)
    assert {label for label, _ in proposal.labels} == DESKS
    assert proposal.calls_per_day == pytest.approx(1440, rel=0.01)
    assert proposal.call_usd == (800 * Decimal("0.15") + 15 * Decimal("0.6")) / 1_000_000
    saved = proposal.saved_year()
    assert saved is not None
    assert Decimal(0) < saved[0] < saved[1]
    assert "would save $" in proposal.yaml()
    assert matched(proposal, "a new message") == "a new message"
    assert matched(proposal, "a new message", system=SYSTEM + " Really.") is None


def test_an_enum_is_enough() -> None:
    found = Discovery()
    for i, (text, label) in enumerate(pairs(25)):
        found.observe(call(text, options=tuple(sorted(DESKS))), label, at=float(i))
        found.observe(call(text, options=("only",)), "only", at=float(i))
        found.observe(call(text, options=("a", "b"), unanswerable="n > 1"), None, at=float(i))
    (proposal,) = found.proposals()
    assert (proposal.evidence, proposal.declared, proposal.name[:5]) == ("enum", True, "desk-")
    assert [label for label, _ in proposal.labels] == sorted(DESKS)


@pytest.mark.parametrize("system", ["", "You are a helpful assistant."])
def test_a_prompt_that_embeds_the_text_is_a_template(system: str) -> None:
    found = Discovery()
    for i, (text, label) in enumerate(pairs(900)):
        said = f"Which desk should answer this (see the list)?\n<message>{text}</message>\nDesk:"
        found.observe(call(said, system=system), label, at=float(i))
        if i % 2:
            found.observe(call(f"{text} Tell me more.", system=system), text[::-1], at=float(i))
    (proposal,) = found.proposals()
    assert proposal.n_calls == 900
    assert proposal.template == ("Which desk should answer this (see the list)?\n<message>", "</message>\nDesk:")
    new = "Which desk should answer this (see the list)?\n<message>my own\ntext</message>\nDesk:"
    assert matched(proposal, new, system=system) == "my own\ntext"


def test_free_text_is_rarely_proposed() -> None:
    """Zipfian short answers of which 5% or more are always new: at most one in a thousand may pass, here none."""
    rng, found = np.random.default_rng(7), Discovery()
    for prompt in range(40):
        for i in range(801):
            fresh = rng.random() < 0.06
            answer = f"new {i}" if fresh else f"old {rng.integers(0, 12)}"
            found.observe(call(f"question {i}", system=f"prompt {prompt}"), answer, at=float(i))
    assert found.proposals() == ()


@pytest.mark.parametrize(
    "stream",
    [
        [(f"question {i}", "ok") for i in range(900)],  # one label says nothing
        [("ping", "a" if i % 2 else "b") for i in range(900)],  # one input
        [(f"question {i}", None) for i in range(900)],
        [(f"question {i}", f"{'long ' * 30}{i % 2}") for i in range(900)],
        [(f"question {i}", "ab"[i % 2]) for i in range(399)],  # before the first test
    ],
)
def test_what_is_no_classification(stream: list[tuple[str, str | None]]) -> None:
    found = Discovery()
    for i, (text, output) in enumerate(stream):
        found.observe(call(text), output, at=float(i))
    assert found.proposals() == ()


def test_memory_is_bounded_and_the_frequent_stay() -> None:
    found = Discovery(capacity=20)
    for i, (text, label) in enumerate(pairs(1200)):
        found.observe(call(text), label, at=float(i))
        for j in range(4):
            found.observe(call(f"{text} {j}", system=f"chat {i} {j}"), f"answer {i} {j}", at=float(i))
    assert [len(table) for table in found._tables] == [20, 20]
    (proposal,) = found.proposals()
    assert {label for label, _ in proposal.labels} == DESKS


def kept_bytes(found: Discovery) -> int:
    """Of all that the tables hold, each object once."""
    seen: dict[int, object] = {}
    todo: list[object] = [found._tables]
    while todo:
        one = todo.pop()
        if id(one) not in seen and not isinstance(one, type | ModuleType | FunctionType):
            seen[id(one)] = one
            todo += gc.get_referents(one)
    return sum(map(sys.getsizeof, seen.values()))


def hostile(i: int) -> list[Call]:
    """Requests of one prompt each that are large where a prompt rarely is."""
    many = [("user", ""), *[("user", f"{i}")] * 20_000, ("user", "text")]
    long = tuple(f"{i} {j}" + "x" * 1000 for j in range(1000))
    return [
        call(many),
        call([("r" * 1_000_000 + str(i), "x"), ("user", "text")]),
        call("text", options=long, schema=json.dumps(long)),
        call("text", options=("a", "b"), system=str(i), slot=Slot("json", (), ("f" * 1_000_000,))),
        call(f"{i} " + "y" * 1_000_000),
    ]


def test_no_prompt_takes_much_room() -> None:
    found = Discovery(capacity=200)
    for i in range(3):
        for one in hostile(i):
            found.observe(one, "a", at=float(i))
    assert kept_bytes(found) < 1_000_000
    other = Discovery(capacity=1)
    for i in range(6000):
        other.observe(call(f"question {i}"), f"{i % 1000} {'z' * 70}", at=float(i))
    assert kept_bytes(other) < 200_000


def test_calls_that_wait_for_discovery_are_bounded_in_bytes() -> None:
    waiting = WatchQueue(most=50, most_bytes=1_000_000)
    text = call("x" * 300_000)
    assert [waiting.put(Watched(text, "a", 0.0, None)) for _ in range(5)] == [True] * 3 + [False] * 2
    assert len(list(waiting.drain())) == 3
    assert [waiting.put(Watched(call(f"{i}"), "a", 0.0, None)) for i in range(60)] == [True] * 50 + [False] * 10
    assert len(list(waiting.drain())) == 50
    assert not any(waiting.put(Watched(one, "a", 0.0, None)) for one in hostile(0)[:3]), "never looked at"
    assert waiting.put(Watched(text, "a", 0.0, None))


def test_no_text_but_labels_and_templates_is_kept(tmp_path: Path) -> None:
    found = Discovery()
    messages = pairs(900)
    for i, (text, label) in enumerate(messages):
        found.observe(call(text), label if i % 100 else f"rare {text[:20]}", at=float(i))
    found.save(tmp_path)
    written = (tmp_path / DISCOVERED).read_text(encoding="utf-8")
    assert "technical" in written
    assert "rare" not in written
    assert SYSTEM not in written
    assert not any(text in written for text, _ in messages if len(text) > 20)


def test_processes_add_up(tmp_path: Path) -> None:
    first, second = Discovery(), Discovery()
    messages = pairs(1600)
    for i, (text, label) in enumerate(messages):
        (first if i % 2 else second).observe(call(text), label, at=60.0 * i, usage=USAGE)
        if i in (1000, 1300):
            first.save(tmp_path)
            second.save(tmp_path)
    first.save(tmp_path)
    (proposal,) = second.save(tmp_path)
    assert stored(tmp_path) == (proposal,)
    assert (proposal.n_calls, proposal.n_usage, proposal.input_tokens) == (1600, 1600, 1600 * 800)
    assert (proposal.first, proposal.last) == (0.0, 60.0 * 1599)
    truth = {name: sum(label == name for _, label in messages) for name in DESKS}
    assert dict(proposal.labels) == truth
    assert first.save(tmp_path) == (proposal,), "saving twice adds nothing"
    assert Proposal.from_dict(json.loads(json.dumps(proposal.as_dict()))) == proposal


@pytest.mark.parametrize("content", ["", "{}x", "[1]", '[{"labels": 3}]', '[{"labels": [], "template": null}]', "7"])
def test_a_damaged_file_is_named_and_left_alone(tmp_path: Path, content: str) -> None:
    (tmp_path / DISCOVERED).write_text(content, encoding="utf-8")
    with pytest.raises(TracerError, match=r"discovered\.json: cannot be read"):
        Discovery().save(tmp_path)
    assert (tmp_path / DISCOVERED).read_text(encoding="utf-8") == content


def test_hostile_labels_are_quoted() -> None:
    found = Discovery()
    options = ("yes", "a: {b", "x\ny", "${HOME}", "# no")
    for i in range(30):
        found.observe(call(f"question {i}", options=options, model="m\nevil: 1"), "yes", at=float(i))
    (proposal,) = found.proposals()
    assert "\nevil" not in proposal.yaml()
    pasted = UP + "tasks:\n" + _indented(proposal)
    assert parse(pasted.replace("${HOME}", "HOME"), {}).tasks[0].labels == (*options[:3], "HOME", "# no")
