"""Asking again: which traces, resuming, crashes, and teachers that are commands and misbehave."""

from __future__ import annotations

import json
import shlex
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tracer.errors import ConfigError, RouteError, TraceError
from tracer.explanations.asking import AskedTwice, CommandTeacher, about, ask_twice, read_asked
from tracer.types import Dataset

HOSTILE = ["<script>alert(1)</script>", "🔥 خصم", "a\u202eb", "line\nbreak", "x" * 100_000]


def log(n: int = 20) -> Dataset:
    texts = [HOSTILE[i] if i < len(HOSTILE) else f"text {i}" for i in range(n)]
    origins = ["deferred" if i == n - 1 else "bootstrap" for i in range(n)]
    return Dataset.from_columns(["x", "y"] * (n // 2), texts=texts, ids=[f"t{i}" for i in range(n)], origins=origins)  # type: ignore[arg-type]


def python(code: str) -> str:
    return shlex.join([sys.executable, "-c", code])


def test_traces_are_drawn_by_seed_and_kept_on_file(tmp_path: Path) -> None:
    path, asked = tmp_path / "home" / "asked.jsonl", []

    def teacher(text: str) -> str:
        asked.append(text)
        return "x"

    first = ask_twice(log(), teacher, 6, path, seed=1)
    assert (len(first.answers), first.n_new, first.failures) == (6, 6, ())
    assert read_asked(path) == first.answers
    assert [json.loads(line)["id"] for line in path.read_text().splitlines()] == [a.id for a in first.answers]
    more = ask_twice(log(), teacher, 9, path, seed=1)
    assert more.answers[:6] == first.answers
    assert (more.n_new, len(asked)) == (3, 9)
    again = ask_twice(log(), teacher, 9, path, seed=1)
    assert (again.n_new, len(asked)) == (0, 9)
    everything = ask_twice(log(), teacher, 1000, path, seed=1)
    assert len(everything.answers) == 19  # the deferred one is no plain sample of traffic
    assert "t19" not in {answer.id for answer in everything.answers}
    for answer in everything.answers:
        assert answer.label == log().labels[int(answer.id[1:])]
    other = ask_twice(log(), teacher, 6, tmp_path / "other.jsonl", seed=2)
    assert {a.id for a in other.answers} != {a.id for a in first.answers}


def test_an_interrupted_run_goes_on(tmp_path: Path) -> None:
    path, left = tmp_path / "asked.jsonl", [3]

    def stopped(_text: str) -> str:
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return "x"

    with pytest.raises(KeyboardInterrupt):
        ask_twice(log(), stopped, 8, path)
    assert len(read_asked(path)) == 3
    with path.open("ab") as file:
        file.write(b'{"id": "t4", "lab')  # a crash in the middle of a line
    assert len(read_asked(path)) == 3
    assert ask_twice(log(), lambda _text: "x", 8, path).n_new == 5
    assert len(read_asked(path)) == 8


def test_a_failure_belongs_to_its_input(tmp_path: Path) -> None:
    bad = log().texts or ()

    def teacher(text: str) -> str:
        if text == bad[7]:
            raise ValueError(f"secret {text}")
        return "" if text == bad[11] else "x"

    found = ask_twice(log(), teacher, 19, tmp_path / "asked.jsonl")
    assert dict(found.failures) == {"t7": "the teacher failed: ValueError", "t11": "the teacher answered no label"}
    assert found.n_new == 17


def test_failures_that_do_not_follow_each_other_do_not_stop_the_run(tmp_path: Path) -> None:
    calls: list[str] = []

    def teacher(text: str) -> str:
        calls.append(text)
        return "x" if len(calls) % 3 == 0 else ""

    found = ask_twice(log(), teacher, 19, tmp_path / "asked.jsonl")
    assert (found.n_new, len(found.failures)) == (6, 13)


def test_a_teacher_that_is_down_stops_the_run(tmp_path: Path) -> None:
    calls = []

    def teacher(text: str) -> str:
        calls.append(text)
        if len(calls) > 4:
            raise RouteError("no route to the teacher")
        return "x"

    with pytest.raises(
        RouteError, match=r"no route to the teacher; 3 times in a row, 4 new answers are kept in .*asked"
    ):
        ask_twice(log(), teacher, 19, tmp_path / "asked.jsonl")
    assert len(calls) == 7
    assert len(read_asked(tmp_path / "asked.jsonl")) == 4


@pytest.mark.parametrize(
    "line",
    [
        "{",
        "[]",
        "1",
        "",
        '{"id": "a"}',
        '{"id": "a", "label": "x", "again": 3, "text": "t"}',
        '{"id": "a", "label": "x", "again": "", "text": "t"}',
    ],
)
def test_a_damaged_file_is_named_with_its_line(tmp_path: Path, line: str) -> None:
    path = tmp_path / "asked.jsonl"
    path.write_text(f'{{"id": "t1", "label": "x", "again": "y", "text": "t"}}\n{line}\n', encoding="utf-8")
    with pytest.raises(TraceError, match=r"asked.jsonl:2: "):
        read_asked(path)
    with pytest.raises(TraceError, match=r"asked.jsonl:2: "):
        ask_twice(log(), lambda _text: "x", 3, path)


def test_what_cannot_be_asked(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="n = 0"):
        ask_twice(log(), lambda _text: "x", 0, tmp_path / "a")
    with pytest.raises(TraceError, match="embeddings alone"):
        ask_twice(Dataset.from_columns(["x"], dense=np.ones((1, 2))), lambda _text: "x", 1, tmp_path / "a")
    assert read_asked(tmp_path / "none.jsonl") == ()
    assert list(tmp_path.iterdir()) == []


def test_one_process_asks_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "asked.jsonl"

    def teacher(_text: str) -> str:
        with pytest.raises(TraceError, match="another process is asking"):
            ask_twice(log(), lambda _text: "x", 1, path)
        return "x"

    assert ask_twice(log(), teacher, 1, path).answers == (
        AskedTwice(read_asked(path)[0].id, read_asked(path)[0].label, "x", read_asked(path)[0].text),
    )


def test_answers_about_another_log_are_no_answers(tmp_path: Path) -> None:
    """Ids may be row numbers: the text and the label must be those of the trace."""
    path = tmp_path / "asked.jsonl"
    first = ask_twice(log(), lambda _text: "x", 5, path)
    other = replace(log(), texts=tuple(f"another {text}" for text in log().texts or ()))
    assert about(other, first.answers) == ()
    assert about(log(), first.answers) == first.answers
    assert ask_twice(other, lambda _text: "x", 5, path).n_new == 5
    assert len(read_asked(path)) == 10
    assert ask_twice(log(), lambda _text: "x", 5, path, seed=9).n_new == 0, "five are known, whichever were drawn"


def test_a_command_gets_the_text_as_it_is_and_no_shell_reads_it() -> None:
    length = CommandTeacher(python("import sys; print(len(sys.stdin.buffer.read().decode()))"))
    for text in HOSTILE:
        assert length(text) == str(len(text))
    echo = CommandTeacher(python("import sys; sys.stdout.write(sys.argv[1] + chr(10))") + " '$(whoami); `ls`'")
    assert echo("x") == "$(whoami); `ls`"
    assert CommandTeacher(python("print(' a label ')"))("a text that nobody reads" * 10_000) == "a label"
    assert CommandTeacher(python("import sys; print(len(sys.stdin.read()))"))("\ud800") == "1"


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("/no/such/teacher", "teacher command '/no/such/teacher' cannot be started"),
        (python("import sys; sys.exit('quota is used up')"), "exited with 1: quota is used up"),
        (python("import sys; sys.exit(3)"), "exited with 3: no message"),
        (python("pass"), "answered '', which is no label"),
        (python("print('a'); print('b')"), r"answered 'a\\nb', which is no label"),
    ],
)
def test_commands_that_misbehave(command: str, message: str) -> None:
    with pytest.raises(RouteError, match=message):
        CommandTeacher(command)("a text")


def test_a_command_that_hangs_is_ended_with_all_it_started() -> None:
    child = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time; time.sleep(60)'])"
    began = time.perf_counter()
    with pytest.raises(RouteError, match=r"took longer than 0.3 s"):
        CommandTeacher(python(child), timeout=0.3)("a text")
    assert time.perf_counter() - began < 20


@pytest.mark.parametrize(
    ("command", "timeout"), [("", 1.0), ("  ", 1.0), ("'open", 1.0), ("a", 0.0), ("a", float("nan"))]
)
def test_commands_that_cannot_be(command: str, timeout: float) -> None:
    with pytest.raises(ConfigError):
        CommandTeacher(command, timeout=timeout)
