"""Shared data and policies, fitted once a session on the messages that ship with Tracer."""

from __future__ import annotations

import os
import shutil
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from tests import postgres as postgresql
from tracer import data, flywheel
from tracer.config import FitConfig
from tracer.features.dense import CallableEmbedder
from tracer.features.lexical import LexicalFeatures
from tracer.learning.acceptors import Acceptor, Reliability, feature_names
from tracer.learning.candidates import Candidate, NoveltyGuard, Rules
from tracer.learning.heads import LinearHead
from tracer.learning.surrogates import Part, Surrogate
from tracer.pipeline import Certified
from tracer.pipeline.certifying import BLANK, draft, reloaded
from tracer.pipeline.training import Contender, Workshop, train
from tracer.policies.policy import Policy
from tracer.policies.serving_settings import ServingSettings
from tracer.types import Dataset, LabelSpace

os.environ["COLUMNS"] = "200"  # tables of the command line are as wide everywhere

NOW = datetime(2026, 4, 14, 12, tzinfo=UTC)
LEXICAL = FitConfig(targets=(0.8,), features="lexical")


@pytest.fixture(scope="session")
def now() -> datetime:
    return NOW


@pytest.fixture(scope="session")
def messages() -> Dataset:
    """All 2,650 messages with embeddings, in a seeded order."""
    everything = data.northlight()
    return everything.take(data.northlight_order(len(everything), 0))


@pytest.fixture(scope="session")
def small(messages: Dataset) -> Dataset:
    """600 messages with embeddings."""
    return messages.take(np.arange(600))


@pytest.fixture(scope="session")
def small_texts(small: Dataset) -> Dataset:
    """The same 600 messages without embeddings."""
    return replace(small, dense=None, embedder=None)


@pytest.fixture(scope="session")
def shop(small: Dataset) -> Workshop:
    """What training on the 600 messages leaves: every contender, lexical, dense, both and cascade."""
    return train(small, FitConfig(targets=(0.8,)))


@pytest.fixture(scope="session")
def policies(shop: Workshop) -> dict[str, Policy]:
    """A policy of each kind that handles about half of its training traffic: lexical, dense, both, cascade."""

    def made(fits: Callable[[Contender], bool]) -> Policy:
        contender = next(c for c in shop.contenders if fits(c))
        threshold = float(np.quantile(contender.scored.scores, 0.5))
        if contender.first is not None:
            threshold = float(np.quantile(contender.scored.scores[contender.scored.scores < 1.0], 0.4))
        certificate = replace(BLANK, threshold=threshold, n_shadow=100, n_handled=50, n_agreed=49)
        return reloaded(replace(draft(shop, contender, NOW.isoformat(), None), certificate=certificate))

    return {
        "lexical": made(lambda c: c.name == "lexical logistic"),
        "dense": made(lambda c: c.name == "dense kernel"),
        "both": made(lambda c: c.name == "dense logistic + lexical logistic"),
        "cascade": made(lambda c: c.first is not None),
    }


@pytest.fixture(scope="session")
def tiny_policy() -> Policy:
    """A hand-made lexical policy of a few kilobytes: refund or delivery; it handles all it scores above 0.5."""
    texts = ["refund my money", "i want a refund", "where is my parcel", "delivery of the parcel is late"]
    lexical = LexicalFeatures.fit(texts)
    block = lexical.transform(texts).toarray()
    y = np.array([0, 0, 1, 1])
    weights = np.stack([block[y == code].sum(axis=0) - block[y != code].sum(axis=0) for code in (0, 1)], axis=1)
    head = LinearHead((4.0 * weights).astype(np.float32), np.zeros(2, dtype=np.float32))
    names = feature_names(1)
    coefficients = np.zeros(len(names))
    coefficients[names.index("margin")] = 4.0
    reliability = Reliability(np.full(2, 0.9), np.log1p(np.full(2, 10.0)))
    acceptor = Acceptor(names, np.zeros(len(names)), np.ones(len(names)), coefficients, -1.0, reliability)
    candidate = Candidate(
        Surrogate((Part("logistic", "lexical", head, 1.0),)), acceptor, NoveltyGuard("rank", 0.1), Rules()
    )
    certificate = replace(BLANK, target=0.9, threshold=0.5, n_shadow=100, n_handled=80, n_agreed=79)
    space = LabelSpace(("refund", "delivery"))
    return Policy(space, "l2d", candidate, certificate, lexical, created=NOW.isoformat(), report={"note": "hand-made"})


@pytest.fixture(scope="session")
def embedder(messages: Dataset) -> CallableEmbedder:
    """Looks up the shipped embedding of a message; other texts get a vector drawn from their checksum."""
    assert messages.texts is not None
    assert messages.dense is not None
    table = dict(zip(messages.texts, messages.dense, strict=True))
    d = messages.dense.shape[1]

    def vector(text: str) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
        drawn = np.random.default_rng(zlib.crc32(text.encode())).normal(size=d)
        return np.asarray(table.get(text, drawn / np.linalg.norm(drawn)), dtype=np.float32)

    def embed(texts: list[str]) -> object:
        return np.stack([vector(text) for text in texts])

    return CallableEmbedder(embed, "table", digest="table-1")


@pytest.fixture(scope="session")
def fitted(tmp_path_factory: pytest.TempPathFactory, small_texts: Dataset) -> tuple[Path, Certified]:
    """A home folder with one certified lexical policy, and its verdict. Do not write to it: see ``home``.

    Nothing is audited in it, so that a test sees the policy's own decisions.
    """
    folder = tmp_path_factory.mktemp("fitted") / "home"
    verdict = flywheel.fit(small_texts, home=folder, config=LEXICAL, now=NOW)
    assert isinstance(verdict, Certified)
    ServingSettings(audit_rate=0.0).write(folder)
    return folder, verdict


@pytest.fixture
def home(fitted: tuple[Path, Certified], tmp_path: Path) -> Path:
    """A copy of the fitted home folder, to write to."""
    return Path(shutil.copytree(fitted[0], tmp_path / "home"))


@pytest.fixture(scope="session")
def contents() -> Callable[[Path], dict[str, bytes]]:
    """Reads a folder: relative file name to bytes, without the cache of embeddings."""

    def read(folder: Path) -> dict[str, bytes]:
        files = [p for p in sorted(folder.rglob("*")) if p.is_file()]
        return {str(p.relative_to(folder)): p.read_bytes() for p in files if p.relative_to(folder).parts[0] != "cache"}

    return read


@pytest.fixture(scope="session")
def live_texts(messages: Dataset) -> Sequence[str]:
    """2,050 messages that no fixture was trained on."""
    assert messages.texts is not None
    return messages.texts[600:]


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """The URL of a real PostgreSQL that is the tests' own; without its programs the tests fail, and say what to do."""
    try:
        postgresql.programs()
    except RuntimeError as error:
        pytest.fail(str(error), pytrace=False)
    with postgresql.cluster() as url:
        yield url


@pytest.fixture
def postgres(postgres_url: str) -> Iterator[str]:
    """The URL of a fresh database."""
    with postgresql.database(postgres_url) as url:
        yield url
