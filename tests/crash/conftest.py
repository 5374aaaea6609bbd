"""Homes to crash in, made once a session and copied; processes that run the jobs; what the parent finds afterwards."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests import postgres as postgresql
from tracer import flywheel
from tracer.flywheel.homes import DATABASE_URL, locked, store_of
from tracer.flywheel.settings import Challenger
from tracer.policies import archive
from tracer.policies.registry import PolicyRegistry
from tracer.policies.serving_settings import ServingSettings
from tracer.serving.router import Router
from tracer.types import Dataset, Seen, Trace

BACKENDS = ("sqlite", "postgresql")
PERSON = "zebra.quagga@example.org"
"""What a person asks to have forgotten; no message of the data holds it."""


class Driver:
    """A process that runs jobs (see ``driver.py``)."""

    def __init__(self) -> None:
        root = Path(__file__).parents[2]
        env = dict(os.environ) | {"PYTHONPATH": str(root / "src"), "OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("driver.py"))],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env,
        )  # fmt: skip

    def start(self, do: str, where: Where, **job: Any) -> Path:
        """Start a job; gives the file of its answer."""
        where.home.parent.mkdir(parents=True, exist_ok=True)
        answer = where.home.parent / f"answer-{secrets.token_hex(4)}.json"
        content = {"do": do, "home": str(where.home), "url": where.url, "answer": str(answer), **job}
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(content) + "\n")
        self._process.stdin.flush()
        return answer

    def wait(self, answer: Path) -> dict[str, Any]:
        """What the job returned or raised; ``killed`` where it was killed."""
        assert self._process.stdout is not None
        signal = json.loads(self._process.stdout.readline())["signal"]
        return {"killed": signal} if signal else dict(json.loads(answer.read_text()))

    def run(self, do: str, where: Where, **job: Any) -> dict[str, Any]:
        """Start and wait; again while a killed process' lock on a PostgreSQL server is not yet free."""
        for _ in range(200):
            done = self.wait(self.start(do, where, **job))
            if "another process is fitting here" not in done.get("told", ""):
                break
            time.sleep(0.02)
        return done

    def close(self) -> None:
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()
        self._process.wait(60)


@dataclass(frozen=True, slots=True)
class Where:
    """A home folder, and the URL of its database, empty for SQLite."""

    home: Path
    url: str

    @property
    def backend(self) -> str:
        return "postgresql" if self.url else "sqlite"


@pytest.fixture(scope="session")
def driver() -> Iterator[Driver]:
    process = Driver()
    yield process
    process.close()


@pytest.fixture(scope="session")
def second() -> Iterator[Driver]:
    """Another one, to run beside the first."""
    process = Driver()
    yield process
    process.close()


def log_of(path: Path, traces: Sequence[Trace]) -> str:
    """A log that holds these traces."""
    lines = []
    for t in traces:
        model = t.teacher or "the-teacher"
        lines.append(json.dumps({"id": t.id, "input": t.text, "teacher": t.label, "origin": t.origin, "model": model}))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(path)


def traces_of(dataset: Dataset, prefix: str = "", **facts: Any) -> list[Trace]:
    assert dataset.texts is not None
    columns = zip(dataset.ids, dataset.texts, dataset.labels, strict=True)
    return [Trace(f"{prefix}{i}", text, label, **facts) for i, text, label in columns]


def mislabelled(traces: Sequence[Trace]) -> list[Trace]:
    """The same traces with labels that mean nothing."""
    labels = np.random.default_rng(0).permutation(np.array([t.label for t in traces], dtype=object)).tolist()
    return [replace(t, label=label) for t, label in zip(traces, labels, strict=True)]


@dataclass(frozen=True, slots=True)
class Bases:
    """Base homes by name and backend, with databases to copy; logs by name."""

    folder: Path
    cluster: str
    made: dict[tuple[str, str], tuple[Path, str]]

    @contextmanager
    def copy(self, name: str, backend: str, tmp_path: Path, sub: str = "home") -> Iterator[Where]:
        """A copy of a base home to crash in, with a database of its own; ``fresh`` is an empty one."""
        home, template = self.made.get((name, backend), (None, ""))
        target = tmp_path / sub
        if home is not None:
            shutil.copytree(home, target)
        if backend == "sqlite":
            yield Where(target, "")
            return
        with database(self.cluster, template) as url:
            yield Where(target, url)

    def log(self, name: str) -> str:
        return str(self.folder / f"{name}.jsonl")


@contextmanager
def database(url: str, template: str = "") -> Iterator[str]:
    """A database of the cluster, a copy of another one."""
    import psycopg

    name = f"crash{secrets.token_hex(6)}"
    with psycopg.connect(url, autocommit=True) as connection:
        of = f" TEMPLATE {template} STRATEGY FILE_COPY" if template else ""
        connection.execute(f"CREATE DATABASE {name}{of}".encode())
        try:
            yield f"{url.rpartition('/')[0]}/{name}"
        finally:
            connection.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())


@pytest.fixture(scope="session")
def server() -> Iterator[str]:
    """The URL of a PostgreSQL of these tests' own, of which databases are copied fast."""
    with postgresql.cluster(durable=False) as url:
        yield url


@pytest.fixture(scope="session")
def bases(tmp_path_factory: pytest.TempPathFactory, server: str, messages: Dataset, driver: Driver) -> Iterator[Bases]:
    folder = tmp_path_factory.mktemp("crash")
    texts = replace(messages, dense=None, embedder=None)

    def rows(first: int, last: int) -> Dataset:
        return texts.take(np.arange(first, last))

    person = [Trace(f"person-{i}", f"{t.text} {PERSON}", t.label) for i, t in enumerate(traces_of(rows(2300, 2306)))]
    past = traces_of(rows(0, 500))
    logs = {
        "past": past[:250] + person[:3] + past[250:],
        "more": traces_of(rows(500, 900)) + person[3:],
        "few": mislabelled(traces_of(rows(500, 800), "x", origin="deferred"))
        + traces_of(rows(800, 806), origin="audit"),
        "bad": mislabelled(traces_of(rows(500, 800), "x", origin="deferred"))
        + traces_of(rows(800, 1300), origin="audit"),
        "broken": mislabelled(traces_of(rows(500, 700), origin="audit")),
        "other": traces_of(rows(500, 900), teacher="another-teacher"),
    }
    for name, traces in logs.items():
        log_of(folder / f"{name}.jsonl", traces)
    made: dict[tuple[str, str], tuple[Path, str]] = {}
    bases = Bases(folder, server, made)
    import psycopg

    with psycopg.connect(server, autocommit=True) as connection, pytest.MonkeyPatch.context() as patch:

        def base(name: str, backend: str, of: str | None) -> Where:
            home = folder / backend / name
            if of is not None:
                shutil.copytree(folder / backend / of, home)
            if backend == "sqlite":
                patch.delenv(DATABASE_URL, raising=False)
                made[name, backend] = (home, "")
                return Where(home, "")
            database = f"base_{name}"
            template = f" TEMPLATE base_{of} STRATEGY FILE_COPY" if of else ""
            connection.execute(f"CREATE DATABASE {database}{template}".encode())
            made[name, backend] = (home, database)
            url = f"{server.rpartition('/')[0]}/{database}"
            patch.setenv(DATABASE_URL, url)
            return Where(home, url)

        for backend in BACKENDS:
            one = base("one", backend, None)
            done = driver.run("fit", one, log=bases.log("past"))
            assert done["value"] == "Certified", done
            ServingSettings(audit_rate=0.0).write(one.home)
            _alarmed(base("alarmed", backend, "one"), rows(800, 900))
            _challenged(base("challenged", backend, "one"), rows(800, 2300))
            two = base("two", backend, "one")
            done = driver.run("update", two, log=bases.log("more"))
            assert done["value"]["action"] == "promote", done
        patch.undo()  # other tests of the session know nothing of it
        yield bases


def _alarmed(where: Where, audits: Dataset) -> None:
    """Audits that all contradict the policy in force came in."""
    policy = PolicyRegistry(where.home).load()
    decided, barely = policy.decide(audits.texts, None, None), policy.threshold
    wrong = [
        replace(t, label=next(n for n in audits.space.names if n != label), seen=Seen("v0001", label, True, barely))
        for t, label in zip(traces_of(audits, origin="audit"), decided.labels, strict=True)
    ]
    with store_of(where.home, flywheel.Settings.read(where.home)) as store:
        store.append(wrong)


def _challenged(where: Where, audits: Dataset) -> None:
    """The teacher is alone, a version waits for audits, and audits came in that certify it."""
    settings = flywheel.Settings.read(where.home)
    assert settings is not None
    with locked(where.home), store_of(where.home, settings) as store:
        PolicyRegistry(where.home).activate(None)
        challenger = Challenger("v0001", settings.attempts + 1, 0.02, store.through())
        line = replace(settings.line, attempts=settings.attempts + 1)
        replace(settings.with_line(line), challenger=challenger).write(where.home)
        store.append(traces_of(audits, origin="audit"))


@dataclass(frozen=True, slots=True)
class State:
    """What a home comes to, whatever the numbers of its versions are."""

    active: dict[str, Any] | None
    line: tuple[int, ...]
    lines: int
    refit: str
    challenger: tuple[Any, ...] | None
    n_tainted: int
    traces: tuple[tuple[str, str, str], ...]
    rate: float


def weights(home: Path, version: str) -> dict[str, Any]:
    """What makes two versions decide alike, and with the same right."""
    policy = PolicyRegistry(home).load(version)
    certificate = policy.certificate
    return {
        "arrays": storage_digest(archive.dump(policy)[archive.ARRAYS]),
        "threshold": certificate.threshold,
        "counts": (certificate.n_shadow, certificate.n_handled, certificate.n_agreed),
        "level": certificate.level,
    }


def storage_digest(content: bytes) -> str:
    import hashlib

    return hashlib.sha256(content).hexdigest()


def stored(where: Where, patch: pytest.MonkeyPatch) -> list[tuple[int, Trace]]:
    """All stored traces with their numbers; none where nothing was fitted."""
    _environment(where, patch)
    settings = flywheel.Settings.read(where.home)
    if not where.home.exists():
        return []
    with store_of(where.home, settings) as store:
        return list(store.traces())


def state_of(where: Where, patch: pytest.MonkeyPatch) -> State:
    settings = flywheel.Settings.read(where.home)
    assert settings is not None
    assert settings.pending is None
    active = PolicyRegistry(where.home).active_version()
    line, challenger = settings.line, settings.challenger
    return State(
        None if active is None else weights(where.home, active),
        (line.number, line.attempts, line.decided, line.released, line.watched), len(settings.lines), settings.refit,
        None if challenger is None else (challenger.attempt, challenger.level, challenger.since),
        len(settings.tainted), tuple((t.id, t.text, t.label) for _, t in stored(where, patch)),
        ServingSettings.read(where.home).audit_rate,
    )  # fmt: skip


def check_sound(where: Where, texts: Sequence[str]) -> tuple[str, ...] | None:
    """What must hold after any crash; the decisions on some texts, None where the teacher answers."""
    registry = PolicyRegistry(where.home)
    for version in registry.versions():
        assert registry.load(version).version == version
    flywheel.Settings.read(where.home)
    ServingSettings.read(where.home)
    active, current = registry.active_version(), None
    for event in registry.history():
        if event.moved:
            assert event.before == current, "no gap but those that say so"
            current = event.after
    assert current == active, "the history ends where the pointer points"
    if active is None:
        return None
    policy = Router.load(where.home).policy
    assert policy is not None
    decisions = policy.decide(list(texts), None, None)
    return tuple(f"{label}:{handled}" for label, handled in zip(decisions.labels, decisions.handled, strict=True))


def _environment(where: Where, patch: pytest.MonkeyPatch) -> None:
    if where.url:
        patch.setenv(DATABASE_URL, where.url)
    else:
        patch.delenv(DATABASE_URL, raising=False)


def no_bytes_of(where: Where, secret: str) -> None:
    """Nothing in the home folder, hidden files too, holds these bytes; nor does a table."""
    found = [str(p) for p in sorted(where.home.rglob("*")) if p.is_file() and secret.encode() in p.read_bytes()]
    assert found == []
