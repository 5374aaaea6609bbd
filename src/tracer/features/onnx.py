"""Sentence encoders run by ONNX Runtime: exported from local weights, parity checked, served without PyTorch.

An export is a folder of ``model.onnx`` (token ids to token states), ``tokenizer.json`` and the manifest
``encoder.json``. Pooling happens here, so that the manifest says all that lies between text and vector.
"""

from __future__ import annotations

import hashlib
import json
import logging
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Self, get_args

import numpy as np

from tracer import storage
from tracer.errors import ConfigError, EmbedderError, MissingExtraError
from tracer.features.dense import PROBE_TEXTS, as_vectors, failure, vectors_digest
from tracer.features.local import SentenceTransformerEmbedder, model_folder, quiet
from tracer.types import EmbedderIdentity, Float32

Precision = Literal["float32", "int8"]
PoolingMode = Literal["mean", "cls"]

MANIFEST, MODEL, TOKENIZER = "encoder.json", "model.onnx", "tokenizer.json"
SCHEMA = 1
BATCH_SIZE = 16
"""Texts a batch: larger batches were no faster on two cores (``benchmarks/speed_encoder.py``)."""

PARITY_TEXTS: tuple[str, ...] = (
    *PROBE_TEXTS,
    "",
    " \n\t",
    "?",
    "My card still hasn't arrived, can you check where it is?",
    "see https://example.com/a?b=c&d=1#e or write to someone@example.com, +49 (0)30 1234-567",
    "naïve café, Ångström, œuvre, e\u0301 in two characters",
    "Где моя карта? Я жду уже неделю.",
    "我的银行卡什么时候能到",
    "カードが届きません。",
    "أين بطاقتي؟",
    "मेरा कार्ड कहाँ है?",
    "카드를 잃어버렸어요",
    "😀 👩\u200d👩\u200d👧 🇩🇪",
    "x" * 300,
    "the transfer that I made yesterday has not arrived yet " * 6,
    "one two three four five six seven eight nine ten " * 60,
)
"""Texts on which an export is compared with its source: short, empty, long beyond the cut, and of many scripts."""

PARITY_TOLERANCE = 1e-5
"""Most that a coordinate of a float32 export may differ from its source's."""
MEAN_COSINE_FLOOR, MIN_COSINE_FLOOR = 0.98, 0.95
"""Least cosine of an int8 export's vectors to its source's: on average, and on the worst text."""

_FORMAT = "tracer-encoder"
_INPUTS, _STATES = ("input_ids", "attention_mask"), "token_embeddings"


@dataclass(frozen=True, slots=True)
class Parity:
    """How near the vectors of an export are to its source's, over ``n_texts`` texts.

    ``worst_difference`` is the largest of any coordinate.
    """

    n_texts: int
    worst_difference: float
    mean_cosine: float
    min_cosine: float

    @classmethod
    def between(cls, ours: Float32, theirs: Float32) -> Self:
        """Compare vectors (n, d) row by row."""
        a, b = ours.astype(np.float64), theirs.astype(np.float64)
        cosines = (a * b).sum(axis=1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))
        return cls(len(a), float(np.abs(a - b).max()), float(cosines.mean()), float(cosines.min()))

    def check(self, precision: Precision, source: str) -> None:
        """Raise EmbedderError where the vectors are too far from the source's for this precision."""
        if precision == "float32" and not self.worst_difference <= PARITY_TOLERANCE:
            raise EmbedderError(
                f"the export of {source!r} is refused: on {self.n_texts} texts its vectors differ from the source's "
                f"by up to {self.worst_difference:.3g}, {PARITY_TOLERANCE:g} is allowed"
            )
        if precision == "int8" and not (self.mean_cosine >= MEAN_COSINE_FLOOR and self.min_cosine >= MIN_COSINE_FLOOR):
            raise EmbedderError(
                f"the int8 export of {source!r} is refused: on {self.n_texts} texts the cosine to the source's vectors "
                f"is {self.mean_cosine:.4f} on average and {self.min_cosine:.4f} at worst; at least "
                f"{MEAN_COSINE_FLOOR:g} and {MIN_COSINE_FLOOR:g} are needed"
            )


@dataclass(frozen=True, slots=True)
class Steps:
    """What lies between a text and its vector, beside the files. ``max_length`` counts tokens, special ones too."""

    precision: Precision
    dimension: int
    pooling: PoolingMode
    normalize: bool
    max_length: int

    def check(self) -> None:
        """Raise ValueError naming the step that cannot be."""
        for name, known in (("precision", get_args(Precision)), ("pooling", get_args(PoolingMode))):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} = {getattr(self, name)!r}: must be one of {', '.join(known)}")
        for name in ("dimension", "max_length"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} = {value!r}: must be a positive integer")


@dataclass(frozen=True, slots=True)
class Manifest:
    """What ``encoder.json`` says: whose weights, the steps from text to vector, and how true the export is.

    ``digest`` is the embedder's: a float32 export carries its source's, since it gives the same vectors; an int8
    export has one of its own. ``files`` maps the names of the other files to their sha256.
    """

    source: str
    digest: str
    steps: Steps
    parity: Parity
    files: Mapping[str, str]

    def dump(self) -> bytes:
        """The file's content, with a checksum of itself."""
        content = {"format": _FORMAT, "schema": SCHEMA, **asdict(self)}
        return json.dumps(content | {"checksum": _checksum(content)}, indent=1, ensure_ascii=False).encode()

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read ``encoder.json``. Raises EmbedderError that names the file and what is wrong with it."""
        try:
            content = json.loads(path.read_bytes())
        except OSError as error:
            problem = f"cannot be read ({error.strerror}): name a folder that `tracer export-encoder` wrote"
            raise EmbedderError(f"{path}: {problem}") from error
        except ValueError as error:
            raise EmbedderError(f"{path}: is not JSON: {error}") from error
        if not isinstance(content, dict) or content.get("format") != _FORMAT:
            raise EmbedderError(f"{path}: this is no manifest of an exported encoder")
        if content.pop("schema", None) != SCHEMA:
            raise EmbedderError(f"{path}: schema is not {SCHEMA}, which this version of Tracer reads")
        checksum = content.pop("checksum", None)
        if checksum != _checksum(content | {"schema": SCHEMA}):
            raise EmbedderError(f"{path}: was changed after it was written (checksum mismatch)")
        del content["format"]
        try:
            parts = {"steps": Steps(**content["steps"]), "parity": Parity(**content["parity"])}
            manifest = cls(**content | parts | {"files": dict(content["files"])})
            manifest.steps.check()
            if set(manifest.files) != {MODEL, TOKENIZER}:
                raise ValueError(f"files = {sorted(manifest.files)}: must be {MODEL} and {TOKENIZER}")
        except (KeyError, TypeError, ValueError) as error:
            raise EmbedderError(f"{path}: does not describe an encoder: {error}") from error
        return manifest


class OnnxEmbedder:
    """An exported encoder: a folder that `export_encoder` wrote, run by ONNX Runtime on the processor.

    Texts run in batches of ``batch_size`` of like length, so that little is computed on padding. An int8 export
    runs them one by one whatever ``batch_size`` says: it scales numbers by the largest of the whole batch, and
    a vector must not depend on the texts beside it. ``threads``: of one call; None leaves it to the runtime.
    One instance may serve several threads.

    The digest of a float32 export is its source's. In eight bits the last digit of a float can move a number by a
    whole step, and with it the vector by hundredths: an int8 export is another embedder under another version of
    the runtime or on another processor. So its digest covers its files and what it answers to fixed texts here.

    Raises MissingExtraError without onnxruntime and tokenizers, ConfigError for an impossible setting, and
    EmbedderError where a file is missing, damaged or not what the manifest says.
    """

    def __init__(self, folder: str | Path, *, batch_size: int = BATCH_SIZE, threads: int | None = None) -> None:
        if batch_size < 1 or (threads is not None and threads < 1):
            raise ConfigError(f"batch_size {batch_size} and threads {threads} must be positive")
        self._name = f"onnx:{folder}"
        path = Path(folder).expanduser()
        self.manifest = Manifest.read(path / MANIFEST)
        files = {name: _verified(path / name, sha256) for name, sha256 in self.manifest.files.items()}
        self._network = _Network(self._name, self.manifest.steps, files, batch_size, threads)
        digest = self.manifest.digest
        if self.manifest.steps.precision == "int8":
            digest = hashlib.sha256(f"{digest}\n{vectors_digest(self._vectors(PROBE_TEXTS))}".encode()).hexdigest()
        self._identity = EmbedderIdentity(self._name, self.manifest.steps.dimension, digest)

    @property
    def identity(self) -> EmbedderIdentity:
        """The folder as it was named, the dimension, and the digest."""
        return self._identity

    def embed(self, texts: Sequence[str]) -> Float32:
        """Vectors (n, d), of norm 1 where the source's are. Raises EmbedderError."""
        if not len(texts):
            return np.zeros((0, self._identity.dimension), np.float32)
        return self._vectors(texts)

    def _vectors(self, texts: Sequence[str]) -> Float32:
        try:
            vectors = self._network.vectors(texts)
        except Exception as error:
            raise failure(self._name, len(texts), error) from error
        return as_vectors(vectors, self._name, len(texts), self.manifest.steps.dimension)

    def __repr__(self) -> str:
        return f"OnnxEmbedder({self._name.removeprefix('onnx:')!r}, precision={self.manifest.steps.precision!r})"


def export_encoder(source: str, folder: str | Path, *, int8: bool = False, normalize: bool = True) -> Manifest:
    """Export a local sentence-transformers model to a new folder for `OnnxEmbedder`, and say how true it is.

    ``source`` is a folder or an installed package that carries one, as in `SentenceTransformerEmbedder`, whose
    vectors with this ``normalize`` the export must give: all within `PARITY_TOLERANCE`, or it is refused. It then
    is the same embedder, and has its digest. ``int8`` makes weights and activations eight bits wide: another
    embedder, with a digest of its own, refused below `MEAN_COSINE_FLOOR` and `MIN_COSINE_FLOOR`.

    Raises MissingExtraError where a package is missing, and EmbedderError where the folder exists, the source is
    not local or not of this kind, or the vectors are too far from the source's.
    """
    path = Path(folder).expanduser()
    if path.exists():
        raise EmbedderError(f"{path}: exists already; give a new folder to export to")
    if model_folder(source) is None:
        raise EmbedderError(f"embedder {source!r} is no local model: download it, and give its folder")
    _need_packages()
    reference = SentenceTransformerEmbedder(source, normalize=normalize, device="cpu")
    name, identity, n = f"onnx:{source}", reference.identity, len(PARITY_TEXTS)
    steps = _steps(source, reference.model, identity.dimension, normalize, "int8" if int8 else "float32")
    theirs = reference.embed(PARITY_TEXTS)
    files = {
        MODEL: _network_bytes(source, reference.model, steps.precision),
        TOKENIZER: reference.model.tokenizer.backend_tokenizer.to_str().encode(),
    }
    ours = as_vectors(_Network(name, steps, files).vectors(PARITY_TEXTS), name, n, steps.dimension)
    parity = Parity.between(ours, theirs)
    parity.check(steps.precision, source)
    hashes = {file: hashlib.sha256(content).hexdigest() for file, content in files.items()}
    manifest = Manifest(
        source=Path(source).resolve().name,  # a manifest travels; where the source lies here is nobody's business
        # an int8 export is known by all that decides its vectors, so that two of the same weights are one embedder
        digest=_checksum({"steps": asdict(steps), "files": hashes}) if int8 else identity.digest,
        steps=steps,
        parity=parity,
        files=hashes,
    )
    if not storage.write_folder(path, {**files, MANIFEST: manifest.dump()}):
        raise EmbedderError(f"{path}: was made by another process in the meantime")
    return manifest


class _Network:
    """Tokenizer, model and pooling of an export: texts to vectors."""

    def __init__(
        self,
        name: str,
        steps: Steps,
        files: Mapping[str, bytes],
        batch_size: int = BATCH_SIZE,
        threads: int | None = None,
    ) -> None:
        try:
            import onnxruntime
            from tokenizers import Tokenizer
        except ImportError as error:
            raise MissingExtraError("onnxruntime and tokenizers", "onnx", f"the encoder {name!r}") from error
        self._steps = steps
        self._batch_size = 1 if steps.precision == "int8" else batch_size
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or 0
        try:
            self._tokenizer = Tokenizer.from_str(files[TOKENIZER].decode())
            self._tokenizer.no_padding()
            self._tokenizer.enable_truncation(steps.max_length)
            self._session = onnxruntime.InferenceSession(
                files[MODEL], sess_options=options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:
            raise EmbedderError(f"embedder {name!r} cannot be loaded: {type(error).__name__}: {error}") from error
        inputs, outputs = (
            [node.name for node in nodes()] for nodes in (self._session.get_inputs, self._session.get_outputs)
        )
        if sorted(inputs) != sorted(_INPUTS) or _STATES not in outputs:
            raise EmbedderError(
                f"embedder {name!r}: {MODEL} reads {', '.join(inputs)} and gives {', '.join(outputs)}, "
                f"not {', '.join(_INPUTS)} and {_STATES}"
            )

    def vectors(self, texts: Sequence[str]) -> Float32:
        """Vectors (n, d), row i for text i."""
        tokens = [encoding.ids for encoding in self._tokenizer.encode_batch(list(texts))]
        order = np.argsort([len(ids) for ids in tokens], kind="stable")
        out = np.empty((len(tokens), self._steps.dimension), dtype=np.float32)
        for start in range(0, len(order), self._batch_size):
            rows = order[start : start + self._batch_size]
            out[rows] = self._batch([tokens[i] for i in rows])
        return out

    def _batch(self, tokens: Sequence[Sequence[int]]) -> Float32:
        ids = np.zeros((len(tokens), max(len(known) for known in tokens)), dtype=np.int64)
        mask = np.zeros_like(ids)
        for row, known in enumerate(tokens):
            ids[row, : len(known)], mask[row, : len(known)] = known, 1
        states: Float32 = self._session.run([_STATES], {"input_ids": ids, "attention_mask": mask})[0]
        if self._steps.pooling == "cls":
            pooled = states[:, 0]
        else:
            weights = mask[:, :, None].astype(np.float32)
            pooled = (states * weights).sum(axis=1) / weights.sum(axis=1)
        if self._steps.normalize:
            pooled = pooled / np.maximum(np.linalg.norm(pooled, axis=1, keepdims=True), 1e-12)
        return pooled


def _verified(path: Path, sha256: str) -> bytes:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise EmbedderError(f"{path}: cannot be read ({error.strerror})") from error
    if hashlib.sha256(content).hexdigest() != sha256:
        raise EmbedderError(f"{path}: was changed or cut short after it was written (sha256 mismatch)")
    return content


def _checksum(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _need_packages() -> None:
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401 - what torch.onnx writes with
        import sentence_transformers  # noqa: F401
        import tokenizers  # noqa: F401
    except ImportError as error:
        packages = "sentence-transformers, onnx, onnxscript, onnxruntime and tokenizers"
        raise MissingExtraError(packages, "onnx-export", "exporting an encoder") from error


def _steps(source: str, model: Any, dimension: int, normalize: bool, precision: Precision) -> Steps:
    """The steps of a sentence-transformers model. Raises EmbedderError for one whose steps are others."""
    modules = [type(module).__name__ for module in model]
    if modules[:2] != ["Transformer", "Pooling"] or modules[2:] not in ([], ["Normalize"]):
        raise EmbedderError(
            f"embedder {source!r} is made of {', '.join(modules)}: only Transformer, Pooling, Normalize can be exported"
        )
    if getattr(model.tokenizer, "backend_tokenizer", None) is None:
        raise EmbedderError(f"embedder {source!r} has no fast tokenizer, which an export needs")
    pooling: Any = getattr(model[1], "pooling_mode", None)
    steps = Steps(precision, dimension, pooling, normalize or "Normalize" in modules, model.max_seq_length)
    try:
        steps.check()
    except ValueError as error:
        raise EmbedderError(f"embedder {source!r} cannot be exported: {error}") from error
    return steps


def _network_bytes(source: str, model: Any, precision: Precision) -> bytes:
    """The transformer as an ONNX model. Raises EmbedderError where the exporter fails."""
    try:
        with quiet(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the exporter warns of its own insides
            exported = _exported(model[0].auto_model)
            return _quantized(exported) if precision == "int8" else exported
    except Exception as error:
        raise EmbedderError(f"embedder {source!r} cannot be exported: {type(error).__name__}: {error}") from error


def _exported(network: Any) -> bytes:
    """Token ids and mask (b, s) to token states (b, s, d), with b and s free."""
    import torch
    from onnx.utils import Extractor

    # The inputs differ, and no length is 1: the exporter takes equal inputs for one, and 1 for a constant.
    ids = torch.arange(14).reshape(2, 7)
    axes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("sequence")}
    program = torch.onnx.export(
        network,
        kwargs=dict(zip(_INPUTS, (ids, torch.ones_like(ids)), strict=True)),
        dynamic_shapes=dict.fromkeys(_INPUTS, axes),
        input_names=list(_INPUTS),
        output_names=[_STATES],
        dynamo=True,
        verbose=False,
    )
    # Only what leads to the states: BERT pools for itself too.
    exported = Extractor(program.model_proto).extract_model(list(_INPUTS), [_STATES])
    graph = exported.graph
    for part in (*graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        part.ClearField("metadata_props")  # stack traces, with the folders of the machine that exported
        part.ClearField("doc_string")
    content: bytes = exported.SerializeToString()
    return content


def _quantized(model: bytes) -> bytes:
    """The model with weights and activations of eight bits.

    One scale a column: one for a whole matrix is coarser. Unsigned weights: sums of signed products overflow on
    x86 processors without VNNI.
    """
    from onnxruntime.quantization import QuantType, quant_pre_process, quantize_dynamic

    with tempfile.TemporaryDirectory() as scratch, _root_logger_kept():
        given, prepared, done = (Path(scratch) / f"{name}.onnx" for name in ("given", "prepared", "done"))
        given.write_bytes(model)
        # Its symbolic shapes fail on graphs of this exporter, and quantizing needs none.
        quant_pre_process(given, prepared, skip_symbolic_shape=True)
        quantize_dynamic(prepared, done, per_channel=True, weight_type=QuantType.QUInt8)
        return done.read_bytes()


@contextmanager
def _root_logger_kept() -> Iterator[None]:
    """The quantizer logs on the root logger, to which that adds a handler for good where it has none."""
    root, nothing = logging.getLogger(), logging.NullHandler()
    root.addHandler(nothing)
    try:
        yield
    finally:
        root.removeHandler(nothing)
