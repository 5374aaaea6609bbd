"""Ask the teacher again about traces drawn at random, and keep its answers.

The file is one JSON object a line, ``{"id", "label", "again", "text"}``: the trace, what the teacher said then, what it
says now, and a digest of the text, so that an answer about another log's trace of the same id is never taken for one. A
line is written whole and synced before the next question, so what was paid for is never lost.
"""

from __future__ import annotations

import fcntl
import json
import os
import shlex
import signal
import subprocess
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from hashlib import blake2b
from pathlib import Path

from tracer.errors import ConfigError, RouteError, TraceError
from tracer.types import Dataset

ASKED_TWICE = "asked-twice.jsonl"
"""File in a home folder with the teacher's second answers."""
PLAIN = ("bootstrap", "audit")
"""Origins that are plain samples of traffic."""

_FAILURES = 3
"""Failures in a row after which the teacher is taken to be down."""
_SHOWN = 200

Ask = Callable[[str], str]


@dataclass(frozen=True, slots=True)
class AskedTwice:
    """A trace's id, the label that its log holds, the teacher's answer when asked again, and a digest of the text."""

    id: str
    label: str
    again: str
    text: str


@dataclass(frozen=True, slots=True)
class Asked:
    """All second answers on file, how many of them are new, and inputs on which the teacher failed, with the reason."""

    answers: tuple[AskedTwice, ...]
    n_new: int
    failures: tuple[tuple[str, str], ...]


def ask_twice(
    dataset: Dataset,
    teacher: Ask,
    n: int,
    path: Path,
    *,
    seed: int = 0,
    progress: Callable[[str, int, int], None] = lambda _what, _done, _total: None,
) -> Asked:
    """Ask ``teacher`` again about ``n`` traces drawn at random, those of these traces on file included.

    Plain samples of traffic alone are drawn, ordered by a hash of ``seed`` and id: the same call goes on where it was
    interrupted, and a larger ``n`` only adds. An input on which the teacher fails is left out and told; after three
    failures in a row RouteError is raised, and the answers so far stay on file. Raises TraceError where the traces hold
    no texts or the file at ``path`` is damaged.
    """
    if n < 1:
        raise ConfigError(f"n = {n}: ask about at least one trace")
    if dataset.texts is None:
        raise TraceError("these traces hold embeddings alone, and a teacher reads text")
    rows = [i for i, origin in enumerate(dataset.origins) if origin in PLAIN]
    rows.sort(key=lambda i: _drawn(seed, dataset.ids[i]))
    failures: list[tuple[str, str]] = []
    in_a_row = 0
    with _appending(path) as write:
        answers = list(about(dataset, read_asked(path)))
        known, before = {answer.id for answer in answers}, len(answers)
        left = [row for row in rows if dataset.ids[row] not in known][: max(n - before, 0)]
        for done, row in enumerate(left):
            progress("asking the teacher again", done, len(left))
            try:
                again = teacher(dataset.texts[row])
                if not isinstance(again, str) or not again:
                    raise RouteError("the teacher answered no label")
            except Exception as error:  # the caller's function: its failure belongs to one input
                reason = str(error) if isinstance(error, RouteError) else f"the teacher failed: {type(error).__name__}"
                failures.append((dataset.ids[row], reason))
                in_a_row += 1
                if in_a_row == _FAILURES:
                    kept = f"{len(answers) - before:,} new answers are kept in {path}"
                    raise RouteError(f"{reason}; {_FAILURES} times in a row, {kept}") from error
                continue
            in_a_row = 0
            answers.append(AskedTwice(dataset.ids[row], dataset.labels[row], again, _digest(dataset.texts[row])))
            write(answers[-1])
    return Asked(tuple(answers), len(answers) - before, tuple(failures))


def about(dataset: Dataset, answers: Iterable[AskedTwice]) -> tuple[AskedTwice, ...]:
    """The answers that are about these traces: id, label and text are theirs."""
    texts = dataset.texts or ()
    known = {(key, label, _digest(text)) for key, label, text in zip(dataset.ids, dataset.labels, texts, strict=False)}
    return tuple(answer for answer in answers if (answer.id, answer.label, answer.text) in known)


def read_asked(path: Path) -> tuple[AskedTwice, ...]:
    """The second answers on file; none where there is no file. A last line that a crash cut short is no answer.

    Raises TraceError with file and line where another line is damaged.
    """
    try:
        lines = path.read_bytes().split(b"\n")[:-1]
    except FileNotFoundError:
        return ()
    out = []
    for number, line in enumerate(lines, 1):
        try:
            fields = json.loads(line)
            answer = AskedTwice(**fields)
        except (ValueError, TypeError) as error:
            raise TraceError(f"{path}:{number}: is no record of id, label, again and text") from error
        if not all(isinstance(value, str) and value for value in fields.values()):
            raise TraceError(f"{path}:{number}: id, label, again and text must be strings, not empty")
        out.append(answer)
    return tuple(out)


class CommandTeacher:
    """A teacher that is a command: the text on its standard input, the label on its standard output.

    The command line is split into words as a shell would, and no shell reads it. ``timeout`` is in seconds a call.
    """

    def __init__(self, command: str, *, timeout: float = 60.0) -> None:
        try:
            self._words = shlex.split(command)
        except ValueError as error:
            raise ConfigError(f"the teacher command cannot be read: {error}") from error  # it may hold a key
        if not self._words:
            raise ConfigError("the teacher command is empty")
        if not timeout > 0.0:
            raise ConfigError(f"timeout = {timeout}: must be positive seconds")
        self._timeout = timeout

    def __call__(self, text: str) -> str:
        """The label. Raises RouteError where the command cannot be started, fails, hangs or answers no label."""
        name = self._words[0]
        pipe = subprocess.PIPE
        try:
            # A session of its own, so that a timeout ends what the command has started too.
            process = subprocess.Popen(self._words, stdin=pipe, stdout=pipe, stderr=pipe, start_new_session=True)
        except (OSError, ValueError) as error:
            raise RouteError(f"teacher command {name!r} cannot be started: {error}") from error
        answered = None
        with process:
            try:
                answered, complained = process.communicate(text.encode("utf-8", "replace"), self._timeout)
            except subprocess.TimeoutExpired as error:
                raise RouteError(f"teacher command {name!r} took longer than {self._timeout:g} s") from error
            finally:
                if answered is None:
                    with suppress(ProcessLookupError):
                        os.killpg(process.pid, signal.SIGKILL)
        if process.returncode:
            last = complained.decode("utf-8", "replace").strip().splitlines()[-1:] or ["no message"]
            raise RouteError(f"teacher command {name!r} exited with {process.returncode}: {last[0][:_SHOWN]}")
        label = answered.decode("utf-8", "replace").strip()
        if not label or "\n" in label:
            raise RouteError(f"teacher command {name!r} answered {label[:_SHOWN]!r}, which is no label")
        return label


def _digest(text: str) -> str:
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def _drawn(seed: int, key: str) -> bytes:
    return blake2b(f"tracer-twice-{seed}\0{key}".encode("utf-8", "surrogatepass"), digest_size=16).digest()


@contextmanager
def _appending(path: Path) -> Iterator[Callable[[AskedTwice], None]]:
    """A function that appends one record, whole and synced. One process at a time; a line cut short is removed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b", buffering=0) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise TraceError(f"{path}: another process is asking; try again when it is done") from error
        file.seek(0)
        content = file.read()
        file.truncate(content.rfind(b"\n") + 1)

        def write(answer: AskedTwice) -> None:
            file.write(json.dumps(asdict(answer)).encode() + b"\n")
            os.fsync(file.fileno())

        yield write
