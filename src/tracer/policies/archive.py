"""The archive of a policy: ``manifest.json``, ``arrays.safetensors``, and one ``.onnx`` a tree surrogate.

Nothing is pickled, and loading runs no code from the archive. The manifest carries the sha256 of each file and
its own digest; a truncated, edited or foreign archive is refused.
"""

from __future__ import annotations

import hashlib
import json
import math
import mmap
import re
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from tracer.certification.certificate import Certificate
from tracer.config import Novelty
from tracer.errors import ArchiveError, TracerError
from tracer.features.lexical import LexicalFeatures
from tracer.learning.acceptors import PAPER_FEATURES, Acceptor, Reliability, feature_names
from tracer.learning.candidates import Candidate, NoveltyGuard, Rules
from tracer.learning.heads import LinearHead, head_from_arrays
from tracer.learning.neighbours import Prototypes
from tracer.learning.single import SingleScorer
from tracer.learning.surrogates import Part, Surrogate
from tracer.policies.policy import Family, FirstStage, Policy
from tracer.policies.tensors import arrays_of, mapped
from tracer.types import EmbedderIdentity, LabelSpace

SCHEMA = 1
MANIFEST, ARRAYS = "manifest.json", "arrays.safetensors"
_FORMAT = "tracer-policy"
_FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")

Content = bytes | mmap.mmap
Files = dict[str, bytes]
Given = Mapping[str, Content]
"""Files as ``load`` takes them: bytes, or mapped into memory."""
_Arrays = dict[str, NDArray[Any]]


def dump(policy: Policy) -> Files:
    """The files of the archive, name to bytes; the same policy gives the same bytes."""
    from safetensors.numpy import save as save_arrays  # writing only: reading needs no library

    arrays: _Arrays = {}
    models: Files = {}
    candidate = _dump_candidate(policy.candidate, "candidate", arrays, models)
    first = None
    if policy.first_stage is not None:
        first = _dump_candidate(policy.first_stage.candidate, "first", arrays, models)
        first["cut"] = policy.first_stage.cut
    if policy.lexical is not None:
        arrays["lexical.hashes"], arrays["lexical.idf"] = policy.lexical.hashes, policy.lexical.idf
    if policy.probes is not None:
        arrays["probes"] = policy.probes
    contiguous = {name: np.ascontiguousarray(array) for name, array in sorted(arrays.items())}
    files: Files = {ARRAYS: save_arrays(contiguous), **models}
    manifest = {
        "format": _FORMAT,
        "schema": SCHEMA,
        "version": policy.version,
        "parent": policy.parent,
        "created": policy.created,
        "family": policy.family,
        "labels": list(policy.space.names),
        "labels_declared": policy.space.declared,
        "embedder": asdict(policy.embedder) if policy.embedder else None,
        "candidate": candidate,
        "first_stage": first,
        "certificate": policy.certificate.as_dict(),
        "task": dict(policy.task),
        "report": dict(policy.report),
        "files": {name: hashlib.sha256(content).hexdigest() for name, content in sorted(files.items())},
    }
    manifest["digest"] = _digest(manifest)
    text = json.dumps(manifest, indent=1, sort_keys=True, allow_nan=False)
    return {MANIFEST: text.encode(), **files}


def load(files: Given, where: str = "archive") -> Policy:
    """Rebuild a policy from its files. Raises ArchiveError that says what is wrong.

    Its arrays are read-only views of the file that holds them.
    """
    manifest = _checked_manifest(files, where)
    try:
        return _rebuild(manifest, arrays_of(files[ARRAYS]), files)
    except TracerError as error:
        raise ArchiveError(f"{where}: {error}") from error
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, RecursionError) as error:
        raise ArchiveError(f"{where}: the manifest does not describe a policy: {error!r}") from error


def read_files(folder: Path) -> dict[str, Content]:
    """The files that a folder's manifest names; the arrays are mapped into memory, and shared with other processes."""
    path = folder / MANIFEST
    try:
        manifest_bytes = path.read_bytes()
    except OSError as error:
        raise ArchiveError(f"{folder}: no policy archive here ({error.strerror}: {path.name})") from error
    files: dict[str, Content] = {MANIFEST: manifest_bytes}
    listed = _parse(manifest_bytes, str(folder)).get("files")
    if not isinstance(listed, dict):
        raise ArchiveError(f"{folder}: the manifest lists no files")
    for name in listed:
        if not _FILE_NAME.fullmatch(name):
            raise ArchiveError(f"{folder}: {name!r} is no name of a file in an archive")
        try:
            files[name] = mapped(folder / name) if name == ARRAYS else (folder / name).read_bytes()
        except OSError as error:
            raise ArchiveError(f"{folder}: {name} is missing or unreadable ({error.strerror})") from error
    return files


def read_certificate(folder: Path) -> Certificate:
    """What a policy promises, by its manifest alone: to show, not to serve by. Raises ArchiveError."""
    try:
        return Certificate.from_dict(_parse((folder / MANIFEST).read_bytes(), str(folder))["certificate"])
    except OSError as error:
        raise ArchiveError(f"{folder}: no policy archive here ({error.strerror}: {MANIFEST})") from error
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ArchiveError(f"{folder}: the manifest holds no certificate: {error!r}") from error


def _parse(content: bytes, where: str) -> dict[str, Any]:
    try:
        manifest = json.loads(content, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise ArchiveError(f"{where}: {MANIFEST} is not JSON: {str(error)[:200]}") from error
    if not isinstance(manifest, dict) or manifest.get("format") != _FORMAT:
        raise ArchiveError(f"{where}: this is not a Tracer policy")
    return manifest


def _checked_manifest(files: Given, where: str) -> dict[str, Any]:
    if MANIFEST not in files:
        raise ArchiveError(f"{where}: {MANIFEST} is missing")
    manifest = _parse(bytes(files[MANIFEST]), where)
    if manifest.get("schema") != SCHEMA:
        raise ArchiveError(f"{where}: schema {manifest.get('schema')!r}; this version of Tracer reads {SCHEMA}")
    if manifest.get("digest") != _digest(manifest):
        raise ArchiveError(f"{where}: {MANIFEST} was changed after it was written (digest mismatch)")
    listed = manifest.get("files")
    if not isinstance(listed, dict):
        raise ArchiveError(f"{where}: the manifest lists no files")
    for name, expected in listed.items():
        if name not in files:
            raise ArchiveError(f"{where}: {name} is missing")
        if hashlib.sha256(files[name]).hexdigest() != expected:
            raise ArchiveError(f"{where}: {name} was changed or cut short after it was written (sha256 mismatch)")
    if ARRAYS not in listed:
        raise ArchiveError(f"{where}: {ARRAYS} is not listed")
    return manifest


def _digest(manifest: Mapping[str, Any]) -> str:
    content = {key: value for key, value in manifest.items() if key != "digest"}
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is no number")


def _dump_candidate(candidate: Candidate, prefix: str, arrays: _Arrays, models: Files) -> dict[str, Any]:
    parts = []
    for i, part in enumerate(candidate.surrogate.parts):
        for name, array in part.head.arrays().items():
            if part.head.kind == "onnx" and name == "model":
                models[f"{prefix}-{i}.onnx"] = array.tobytes()
            else:
                arrays[f"{prefix}.{i}.{name}"] = array
        parts.append({"name": part.name, "block": part.block, "kind": part.head.kind, "weight": part.weight})
    acceptor, rules = candidate.acceptor, candidate.rules
    arrays[f"{prefix}.acceptor.mean"] = acceptor.mean
    arrays[f"{prefix}.acceptor.scale"] = acceptor.scale
    arrays[f"{prefix}.acceptor.coefficients"] = acceptor.coefficients
    arrays[f"{prefix}.reliability.agreement"] = acceptor.reliability.agreement
    arrays[f"{prefix}.reliability.log_count"] = acceptor.reliability.log_count
    arrays[f"{prefix}.rules.always_defer"] = rules.always_defer
    if rules.error_ratio is not None:
        arrays[f"{prefix}.rules.error_ratio"] = rules.error_ratio
    if rules.class_floor is not None:
        arrays[f"{prefix}.rules.class_floor"] = rules.class_floor
    if acceptor.prototypes is not None:
        arrays[f"{prefix}.prototypes.vectors"] = acceptor.prototypes.vectors
        arrays[f"{prefix}.prototypes.labels"] = acceptor.prototypes.labels
    guard = candidate.guard
    return {
        "parts": parts,
        "acceptor": {"names": list(acceptor.names), "intercept": acceptor.intercept},
        "novelty": {"mode": guard.mode, "floor": guard.floor if math.isfinite(guard.floor) else None},
    }


def _rebuild(manifest: dict[str, Any], arrays: _Arrays, files: Given) -> Policy:
    first = manifest["first_stage"]
    stage = None
    if first is not None:
        stage = FirstStage(_load_candidate(first, "first", arrays, files), float(first["cut"]))
    lexical = None
    if "lexical.hashes" in arrays:
        lexical = LexicalFeatures(arrays["lexical.hashes"], arrays["lexical.idf"])
    embedder = EmbedderIdentity(**manifest["embedder"]) if manifest["embedder"] else None
    policy = Policy(
        space=LabelSpace(tuple(manifest["labels"]), bool(manifest["labels_declared"])),
        family=manifest["family"],
        candidate=_load_candidate(manifest["candidate"], "candidate", arrays, files),
        certificate=Certificate.from_dict(manifest["certificate"]),
        lexical=lexical,
        embedder=embedder,
        first_stage=stage,
        probes=arrays.get("probes"),
        version=str(manifest["version"]),
        parent=manifest["parent"],
        created=str(manifest["created"]),
        task=dict(manifest["task"]),
        report=dict(manifest["report"]),
    )
    _check_decides(policy)
    return policy


def _check_decides(policy: Policy) -> None:
    """One decision on an empty input: labels, heads, acceptors and features must fit each other."""
    if policy.family not in get_args(Family):
        raise ArchiveError(f"family {policy.family!r} is not one of {', '.join(get_args(Family))}")
    row = policy.lexical.transform_one("") if policy.lexical is not None else None
    vector = np.zeros(policy.embedder.dimension, dtype=np.float32) if policy.embedder is not None else None
    for candidate in [policy.candidate, *([policy.first_stage.candidate] if policy.first_stage else [])]:
        surrogate, acceptor = candidate.surrogate, candidate.acceptor
        if not surrogate.parts or not surrogate.blocks <= {"lexical", "dense"}:
            raise ArchiveError("a surrogate needs parts that read lexical or dense features")
        if candidate.guard.mode not in get_args(Novelty):
            raise ArchiveError(f"novelty mode {candidate.guard.mode!r} is not one of {', '.join(get_args(Novelty))}")
        _check_acceptor(acceptor, len(surrogate.parts))
        if "lexical" in surrogate.blocks and row is None:
            raise ArchiveError("a head reads lexical features and the archive has none")
        for part in surrogate.parts:
            if row is None or part.block != "lexical" or not isinstance(part.head, LinearHead):
                continue
            if part.head.weights.shape != (row.dimension, len(policy.space)):
                raise ArchiveError(f"a head of shape {part.head.weights.shape} reads {row.dimension} features")
        if "dense" in surrogate.blocks and vector is None:
            continue  # Embeddings of an embedder that was never named: their dimension is not known here.
        scorer = SingleScorer(candidate)
        if any(view.shape != (len(policy.space),) for view in scorer.views(row, vector)):
            raise ArchiveError(f"a head does not answer {len(policy.space)} labels")
        if math.isnan(scorer.score(row, vector).score):
            raise ArchiveError("a score is no number")


def _check_acceptor(acceptor: Acceptor, n_parts: int) -> None:
    known = feature_names(n_parts, neighbours=acceptor.prototypes is not None)
    if acceptor.names not in (known, PAPER_FEATURES):
        raise ArchiveError(f"an acceptor reads features that it cannot have: {', '.join(acceptor.names)}"[:300])
    sizes = {len(acceptor.names), len(acceptor.mean), len(acceptor.scale), len(acceptor.coefficients)}
    if len(sizes) != 1:
        raise ArchiveError(f"an acceptor's names and coefficients are not as many: {sorted(sizes)}")


def _load_candidate(spec: dict[str, Any], prefix: str, arrays: _Arrays, files: Given) -> Candidate:
    parts = []
    for i, part in enumerate(spec["parts"]):
        own = f"{prefix}.{i}."
        named = {name[len(own) :]: array for name, array in arrays.items() if name.startswith(own)}
        if part["kind"] == "onnx":
            named["model"] = np.frombuffer(files[f"{prefix}-{i}.onnx"], dtype=np.uint8)
        head = head_from_arrays(part["kind"], named)
        parts.append(Part(str(part["name"]), part["block"], head, float(part["weight"])))
    reliability = Reliability(arrays[f"{prefix}.reliability.agreement"], arrays[f"{prefix}.reliability.log_count"])
    prototypes = None
    if f"{prefix}.prototypes.vectors" in arrays:
        vectors, labels = arrays[f"{prefix}.prototypes.vectors"], arrays[f"{prefix}.prototypes.labels"]
        prototypes = Prototypes(vectors, labels, len(reliability.agreement))
    acceptor = Acceptor(
        names=tuple(spec["acceptor"]["names"]),
        mean=arrays[f"{prefix}.acceptor.mean"],
        scale=arrays[f"{prefix}.acceptor.scale"],
        coefficients=arrays[f"{prefix}.acceptor.coefficients"],
        intercept=float(spec["acceptor"]["intercept"]),
        reliability=reliability,
        prototypes=prototypes,
    )
    floor = spec["novelty"]["floor"]
    guard = NoveltyGuard(spec["novelty"]["mode"], float("-inf") if floor is None else float(floor))
    rules = Rules(
        always_defer=arrays[f"{prefix}.rules.always_defer"],
        error_ratio=arrays.get(f"{prefix}.rules.error_ratio"),
        class_floor=arrays.get(f"{prefix}.rules.class_floor"),
    )
    return Candidate(Surrogate(tuple(parts)), acceptor, guard, rules)
