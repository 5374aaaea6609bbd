"""Exported encoders, on a network small enough to compute by hand: a table of vectors, one a word."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from tracer.errors import ConfigError, EmbedderError, MissingExtraError
from tracer.features.cache import CachedEmbedder
from tracer.features.dense import checked
from tracer.features.onnx import (
    MANIFEST,
    MIN_COSINE_FLOOR,
    MODEL,
    PARITY_TOLERANCE,
    TOKENIZER,
    Manifest,
    OnnxEmbedder,
    Parity,
    Steps,
    export_encoder,
)
from tracer.features.sources import embedder_from_name
from tracer.types import Float32

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "card", "lost", "refund", "please"]
TABLE = np.random.default_rng(0).normal(size=(len(WORDS), 3)).astype(np.float32)
MAX_LENGTH = 8
STEPS = Steps("float32", 3, "mean", True, MAX_LENGTH)
TEXTS = (
    "please refund",
    "",
    "lost card lost card lost card lost card lost card",
    "card",
    "unheard please card",
    "card",
)

Export = Callable[..., Path]


def tokenizer() -> bytes:
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    words.enable_padding(length=20)  # as some models leave it in their file; it must not count
    text: str = words.to_str()
    return text.encode()


def network(*, neighbours: bool = False, inputs: Sequence[str] = ("input_ids", "attention_mask")) -> bytes:
    """Token ids to rows of the table; with ``neighbours`` each row also gains the largest number of the batch."""
    looked_up = "rows" if neighbours else "token_embeddings"
    nodes = [helper.make_node("Gather", ["table", inputs[0]], [looked_up])]
    if neighbours:
        nodes.append(helper.make_node("ReduceMax", ["rows"], ["largest"], keepdims=0))
        nodes.append(helper.make_node("Add", ["rows", "largest"], ["token_embeddings"]))
    graph = helper.make_graph(
        nodes,
        "table",
        [helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "sequence"]) for name in inputs],
        [helper.make_tensor_value_info("token_embeddings", TensorProto.FLOAT, ["batch", "sequence", 3])],
        [numpy_helper.from_array(TABLE, "table")],
    )
    content: bytes = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9
    ).SerializeToString()
    return content


@pytest.fixture
def export(tmp_path: Path) -> Export:
    """Writes an export as `export_encoder` does, by default of the table."""

    def written(model: bytes | None = None, *, name: str = "encoder", **steps: Any) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        files = {MODEL: network() if model is None else model, TOKENIZER: tokenizer()}
        for file, content in files.items():
            (folder / file).write_bytes(content)
        hashes = {file: hashlib.sha256(content).hexdigest() for file, content in files.items()}
        manifest = Manifest("table", "table-1", replace(STEPS, **steps), Parity(1, 0.0, 1.0, 1.0), hashes)
        (folder / MANIFEST).write_bytes(manifest.dump())
        return folder

    return written


def expected(text: str, pooling: str = "mean") -> Float32:
    """The vector of a text, worked out without the runtime: not of norm 1."""
    known = [WORDS.index(word) if word in WORDS else 1 for word in text.split()]
    states = TABLE[[2, *known[: MAX_LENGTH - 2], 3]]
    return np.asarray(states.mean(axis=0) if pooling == "mean" else states[0], dtype=np.float32)


@pytest.mark.parametrize("batch_size", [1, 2, 16])
def test_a_vector_is_the_mean_of_its_tokens_whatever_its_batch(export: Export, batch_size: int) -> None:
    """Texts of several lengths, an empty one, one beyond the cut, one with an unknown word, one twice."""
    vectors = checked(OnnxEmbedder(export(), batch_size=batch_size), TEXTS)
    raw = np.stack([expected(text) for text in TEXTS])
    assert vectors == pytest.approx(raw / np.linalg.norm(raw, axis=1, keepdims=True), abs=1e-6)


def test_the_manifest_says_how_to_pool_and_whether_to_normalize(export: Export) -> None:
    mean = OnnxEmbedder(export(normalize=False)).embed(TEXTS)
    assert mean == pytest.approx(np.stack([expected(text) for text in TEXTS]), abs=1e-6)
    first = OnnxEmbedder(export(name="cls", normalize=False, pooling="cls")).embed(TEXTS)
    assert first == pytest.approx(np.stack([expected(text, "cls") for text in TEXTS]), abs=1e-6)


def test_no_texts_give_no_vectors(export: Export) -> None:
    assert OnnxEmbedder(export()).embed([]).shape == (0, 3)


def test_one_instance_serves_several_threads(export: Export) -> None:
    embedder = OnnxEmbedder(export(), threads=1)
    alone = embedder.embed(TEXTS)
    with ThreadPoolExecutor(4) as pool:
        assert all(np.array_equal(alone, vectors) for vectors in pool.map(embedder.embed, [TEXTS] * 32))


def test_int8_vectors_do_not_depend_on_the_texts_beside_them(export: Export) -> None:
    """A quantized network scales by the largest number of its batch, as this one adds it."""
    model = network(neighbours=True)
    batched, one_by_one = OnnxEmbedder(export(model)), OnnxEmbedder(export(model, name="int8", precision="int8"))
    assert not np.allclose(batched.embed(TEXTS)[3], batched.embed(["card"])[0])
    assert np.array_equal(one_by_one.embed(TEXTS)[3], one_by_one.embed(["card"])[0])


def test_who_an_export_is(export: Export) -> None:
    """float32: its source. int8: its files and its answers, since another processor's answers may be others."""
    folder = export()
    identity = OnnxEmbedder(folder).identity
    assert (identity.name, identity.dimension, identity.digest) == (f"onnx:{folder}", 3, "table-1")
    small = OnnxEmbedder(export(name="int8", precision="int8"))
    assert small.identity.digest != "table-1"
    assert OnnxEmbedder(export(name="again", precision="int8")).identity.digest == small.identity.digest
    other = OnnxEmbedder(export(network(neighbours=True), name="other", precision="int8"))
    assert other.identity.digest != small.identity.digest
    assert repr(small) == f"OnnxEmbedder({str(small.identity.name.removeprefix('onnx:'))!r}, precision='int8')"


def test_an_export_has_a_name(export: Export, tmp_path: Path) -> None:
    folder = export()
    assert isinstance(embedder_from_name(f"onnx:{folder}"), OnnxEmbedder)
    cached = embedder_from_name(f"onnx:{folder}", cache=tmp_path / "cache")
    assert isinstance(cached, CachedEmbedder)
    assert np.array_equal(cached.embed(TEXTS), cached.embed(TEXTS))


@pytest.mark.parametrize("file", [MODEL, TOKENIZER])
def test_a_damaged_file_is_refused_by_name(export: Export, file: str) -> None:
    path = export() / file
    content = path.read_bytes()
    for damaged in (content[:-1], content[:-1] + bytes([content[-1] ^ 1])):
        path.write_bytes(damaged)
        with pytest.raises(EmbedderError, match=rf"{file}: was changed or cut short.*sha256"):
            OnnxEmbedder(path.parent)
    path.unlink()
    with pytest.raises(EmbedderError, match=rf"{file}: cannot be read \(No such file"):
        OnnxEmbedder(path.parent)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content.update(digest="another"), r"was changed after it was written \(checksum"),
        (lambda content: content["steps"].update(max_length=4), r"was changed after it was written \(checksum"),
        (lambda content: content.pop("checksum"), r"was changed after it was written \(checksum"),
        (lambda content: content.update(format="tracer-policy"), "this is no manifest of an exported encoder"),
        (lambda content: content.update(schema=2), "schema is not 1"),
    ],
)
def test_an_edited_manifest_is_refused(export: Export, change: Callable[[Any], object], message: str) -> None:
    path = export() / MANIFEST
    content = json.loads(path.read_bytes())
    change(content)
    path.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(EmbedderError, match=rf"{MANIFEST}: {message}"):
        OnnxEmbedder(path.parent)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("steps", replace(STEPS, pooling="max"), "pooling = 'max': must be one of mean, cls"),  # type: ignore[arg-type]
        ("steps", replace(STEPS, precision="int4"), "precision = 'int4': must be one of"),  # type: ignore[arg-type]
        ("steps", replace(STEPS, dimension=0), "dimension = 0: must be a positive integer"),
        ("steps", replace(STEPS, max_length="8"), "max_length = '8': must be"),  # type: ignore[arg-type]
        ("files", {MODEL: "0"}, r"files = \['model.onnx'\]: must be model.onnx and tokenizer.json"),
        ("files", [MODEL, TOKENIZER], "does not describe an encoder"),
    ],
)
def test_a_manifest_that_describes_no_encoder_is_refused(export: Export, field: str, value: Any, message: str) -> None:
    """Whole, with its checksum, and still wrong."""
    path = export() / MANIFEST
    path.write_bytes(replace(Manifest.read(path), **{field: value}).dump())
    with pytest.raises(EmbedderError, match=message):
        OnnxEmbedder(path.parent)


def test_what_is_no_export_is_refused(export: Export, tmp_path: Path) -> None:
    with pytest.raises(EmbedderError, match=r"encoder.json: cannot be read .* `tracer export-encoder` wrote"):
        OnnxEmbedder(tmp_path / "nothing")
    (export() / MANIFEST).write_bytes(b"{")
    with pytest.raises(EmbedderError, match=r"encoder.json: is not JSON"):
        OnnxEmbedder(tmp_path / "encoder")
    with pytest.raises(EmbedderError, match="cannot be loaded"):
        OnnxEmbedder(export(b"no model", name="garbage"))
    with pytest.raises(EmbedderError, match="reads words, mask and gives token_embeddings, not input_ids"):
        OnnxEmbedder(export(network(inputs=("words", "mask")), name="foreign"))
    with pytest.raises(EmbedderError, match="failed on 1 texts"):
        OnnxEmbedder(export(name="wide", dimension=4)).embed(["card"])


def test_a_text_that_cannot_be_read_fails_by_name(export: Export) -> None:
    with pytest.raises(EmbedderError, match=r"onnx:.* failed on 2 texts"):
        OnnxEmbedder(export()).embed(["card", "half a \ud800 character"])


@pytest.mark.parametrize("options", [{"batch_size": 0}, {"threads": 0}])
def test_impossible_settings(export: Export, options: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="must be positive"):
        OnnxEmbedder(export(), **options)


@pytest.mark.parametrize("package", ["onnxruntime", "tokenizers"])
def test_without_the_packages_the_message_says_what_to_install(
    export: Export, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = export()
    monkeypatch.setitem(sys.modules, package, None)
    expected = r"needs onnxruntime and tokenizers: pip install 'tracer-router\[onnx\]'"
    with pytest.raises(MissingExtraError, match=expected):
        embedder_from_name(f"onnx:{folder}")


def test_parity_is_a_matter_of_precision() -> None:
    theirs = np.array([[1, 0], [0, 1]], dtype=np.float32)
    same = Parity.between(theirs, theirs)
    assert same == Parity(2, 0.0, 1.0, 1.0)
    near = Parity.between(np.array([[1, 0.1], [0, 1]], dtype=np.float32), theirs)
    assert near.worst_difference == pytest.approx(0.1)
    assert near.min_cosine == pytest.approx(1 / np.sqrt(1.01))
    assert near.mean_cosine == pytest.approx((1 + near.min_cosine) / 2)
    same.check("float32", "table")
    near.check("int8", "table")
    with pytest.raises(EmbedderError, match=r"'table' is refused: on 2 texts .* up to 0.1, 1e-05 is allowed"):
        near.check("float32", "table")
    with pytest.raises(EmbedderError, match=r"int8 export of 'table' is refused: .* 0.9900 on average and 0.9400"):
        replace(same, mean_cosine=0.99, min_cosine=0.94).check("int8", "table")
    for precision in ("float32", "int8"):
        with pytest.raises(EmbedderError, match="is refused"):
            Parity(2, float("nan"), float("nan"), float("nan")).check(precision, "table")
    assert PARITY_TOLERANCE < 1e-3, "the router compares vectors of fixed texts more loosely"
    assert MIN_COSINE_FLOOR < 1


def test_only_local_models_are_exported_and_only_to_new_folders(tmp_path: Path) -> None:
    with pytest.raises(EmbedderError, match="is no local model: download it"):
        export_encoder("sentence-transformers/all-MiniLM-L6-v2", tmp_path / "new")
    with pytest.raises(EmbedderError, match="there is no such folder"):
        export_encoder("./missing", tmp_path / "new")
    with pytest.raises(EmbedderError, match="exists already"):
        export_encoder(str(tmp_path), tmp_path)


def test_exporting_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'tracer-router\[onnx-export\]'"):
        export_encoder(str(tmp_path), tmp_path / "new")
    assert not (tmp_path / "new").exists()
