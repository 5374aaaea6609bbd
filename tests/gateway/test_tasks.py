"""Which task a call is, where its text stands, and when its prompt has changed."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.gateway.calling import SYSTEM, call
from tracer.gateway import patterns
from tracer.gateway.calls import Call
from tracer.gateway.selecting import Selection, fingerprint, select
from tracer.gateway.settings import InputSelector, TaskConfig
from tracer.gateway.tasks import TaskSet

WHOLE = InputSelector()
TEMPLATE = InputSelector(regex=r"(?s)\AMessage: (.*)\nDesk:\z")
SCHEMA = '{"type":"object","properties":{"desk":{"enum":["a","b"]}}}'


def chosen(asked: Call, selector: InputSelector = WHOLE) -> Selection:
    found = select(asked, selector)
    assert found is not None
    return found


def printed(asked: Call, selector: InputSelector = WHOLE) -> str:
    return fingerprint(chosen(asked, selector))


def task(name: str, **settings: Any) -> TaskConfig:
    return TaskConfig(name, "openai", **settings)


def nothing(_: str) -> tuple[()]:
    return ()


def test_alias_then_header_then_fingerprint() -> None:
    asked = call(model="alias")
    tasks = TaskSet([task("a", models=("alias",)), task("b"), task("c", fingerprints=(printed(asked),))])

    def name(given: Call, **headers: str) -> str | None:
        found = tasks.match(given, {k.replace("_", "-"): v for k, v in headers.items()}, nothing)
        return None if found is None else found.task.name

    other = replace(asked, model="gpt-4o")
    assert name(asked, x_tracer_task="b") == "a"
    assert name(other, x_tracer_task="b") == "b"
    assert name(other) == "c"
    assert name(replace(other, system="Write a poem.")) is None
    assert name(other, x_tracer_task="unknown") is None


def test_other_labels_are_another_task() -> None:
    tasks = TaskSet([task("a", models=("alias",), labels=("x", "y"))])
    for options, found in ((("y", "x"), True), (None, True), (("x",), False), (("x", "y", "z"), False)):
        assert (tasks.match(call(model="alias", options=options), {}, nothing) is not None) is found


def test_a_policy_knows_its_prompt_and_teacher() -> None:
    asked = call(model="alias")
    tasks = TaskSet([task("a", models=("alias",), teacher="gpt-4o")])
    first = tasks.match(asked, {}, nothing)
    assert first is not None
    assert (first.text, first.teacher, first.known_prompt) == ("where is my parcel?", "gpt-4o", False)
    accepted = {"a": [("gpt-4o", first.prompt)]}

    def known(given: Call, pairs: Any = accepted) -> bool:
        found = tasks.match(given, {}, lambda task: pairs.get(task, ()))
        assert found is not None
        return found.known_prompt

    assert known(asked)
    assert known(call("another text", model="alias"))
    assert not known(replace(asked, system=SYSTEM + " Be strict."))
    assert not known(asked, {"a": [("gpt-5", first.prompt)]})
    assert known(asked, {"a": [(None, None)]}), "a log that names no prompt contradicts none"
    assert not known(asked, {"a": [("gpt-5", None), (None, "other")]})
    assert not known(asked, {"b": [("gpt-4o", first.prompt)]})
    mixed = {"a": [("gpt-4o", first.prompt), ("gpt-4o", None), (None, None)]}
    assert known(asked, mixed)
    other = replace(asked, system=SYSTEM + " Be strict.")
    assert not known(other, mixed), "a label without a prompt lets no other prompt in"
    assert not known(asked, {"a": [("gpt-5", first.prompt), (None, first.prompt)]}), "nor one without a teacher another"
    assert known(asked, {"a": [("gpt-4o", None), (None, None)]})


def test_layout_is_no_change_and_words_are() -> None:
    asked = call(system="One of:\n  a, b", schema=SCHEMA)
    same = [
        replace(asked, system="  One of: a,\r\n b\n"),
        replace(asked, schema='{"properties": {"desk": {"enum": ["a", "b"]}}, "type": "object"}'),
        replace(asked, messages=call("quite another text").messages),
        replace(asked, wire="anthropic.messages", model="other", stream=True),
    ]
    assert {printed(one) for one in same} == {printed(asked)}
    other = [
        replace(asked, system="One of: A, b"),
        replace(asked, system="One of: a,b"),
        replace(asked, schema=SCHEMA.replace('"a","b"', '"b","a"')),
        replace(asked, schema=SCHEMA.replace('"a","b"', '"a","b","c"')),
        replace(asked, schema=""),
        replace(asked, options=("a", "b")),
        call([("user", "example"), ("assistant", "a"), ("user", "text")], system=asked.system, schema=SCHEMA),
        call([("user", "text"), ("assistant", "{")], system=asked.system, schema=SCHEMA),
    ]
    assert len({printed(one) for one in (asked, *other)}) == len(other) + 1


@given(st.text(min_size=1), st.text(min_size=1), st.text())
def test_the_variable_text_is_no_part_of_the_prompt(a: str, b: str, system: str) -> None:
    if a.strip() and b.strip():
        assert printed(call(a, system=system)) == printed(call(b, system=system))
        assert chosen(call(a)).text == a


def test_a_caller_cannot_pass_a_text_for_a_cut() -> None:
    nul = call("Message: x\nDesk:", system="a\x00")
    assert printed(nul) != printed(replace(nul, system="a\x01\x02"))
    assert printed(call([("user", "\x00"), ("user", "x")])) != printed(call([("user", "\x01\x02"), ("user", "x")]))


def test_a_template_is_part_of_the_prompt() -> None:
    a, b = call("Message: hello\nthere\nDesk:"), call("Message: x\nDesk:")
    assert chosen(a, TEMPLATE).text == "hello\nthere"
    assert printed(a, TEMPLATE) == printed(b, TEMPLATE) != printed(b)
    assert select(call("Text: x\nDesk:"), TEMPLATE) is None
    assert select(call("Message: \nDesk:"), TEMPLATE) is None
    loose = InputSelector(regex=r"(?s)id (\d+)(?: or so)?: (?P<text>.*)", group="text")
    assert printed(call("id 1: a"), loose) == printed(call("id 22: b"), loose)
    assert printed(call("id 1 or so: a"), loose) != printed(call("id 1: a"), loose)


def test_a_system_prompt_may_hold_the_text() -> None:
    selector = InputSelector("system", r"(?s)<mail>(.*)</mail>")
    a, b = (call("Which desk?", system=f"Sort.\n<mail>{mail}</mail>") for mail in ("one", "two\nlines"))
    assert chosen(b, selector).text == "two\nlines"
    assert printed(a, selector) == printed(b, selector)
    assert printed(a, selector) != printed(replace(a, messages=call("Which?").messages), selector)
    assert chosen(replace(a, messages=()), selector).text == "one"


def test_a_path_into_a_json_message() -> None:
    selector = InputSelector(json=("ticket", "0", "body"), ignore=(("id",),))

    def said(body: object, number: int = 1, tone: str = "calm") -> Call:
        return call(json.dumps({"tone": tone, "ticket": [{"body": body}], "id": number}))

    assert chosen(said("hi"), selector).text == "hi"
    assert printed(said("hi"), selector) == printed(said("ho", 2), selector) != printed(said("hi", tone="x"), selector)
    for bad in (said(3), said(None), call("no json"), call("[]"), call('{"ticket": {"0": "x"}}'), call("{" * 9)):
        assert select(bad, selector) is None


def test_earlier_messages_count_unless_they_are_ignored() -> None:
    a, b = (call([("user", said), ("assistant", "ok"), ("user", "text")]) for said in ("one", "two"))
    assert printed(a) != printed(b)
    ignored = InputSelector(history="ignore")
    assert printed(a, ignored) == printed(b, ignored) == printed(call("x"), ignored)


def test_hostile_texts_cost_little() -> None:
    deep = '{"a":' * 200_000
    slow = InputSelector(regex=r"(?s)(a+)+(.*x)*(.*y)*$!")
    begin = time.perf_counter()
    assert select(call(deep), InputSelector(json=("a", "b"))) is None
    assert select(call("[" * 500_000), InputSelector(json=("0",))) is None
    assert select(call("a" * 300_000 + "!"), slow) is None
    assert select(call("\ud800 a"), InputSelector(regex="(a)")) is None
    assert printed(call("x", schema="[" * 100_000))
    assert time.perf_counter() - begin < 5.0


def test_redaction() -> None:
    assert patterns.masked("order NL-655402, jo@x.de", (r"NL-\d+", r"\S+@\S+")) == "order [redacted], [redacted]"
    assert patterns.masked("order \ud800", (r"NL-\d+",)) == "[redacted]"


@pytest.mark.parametrize("messages", [[], [("assistant", "x")], [("user", "  \n")]])
def test_no_text_is_no_task(messages: list[tuple[str, str]]) -> None:
    assert TaskSet([task("a", models=("m",))]).match(call(messages, model="m"), {}, nothing) is None
