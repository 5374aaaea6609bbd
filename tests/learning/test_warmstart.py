"""What one fit leaves to the next: sound starts, moved features, and nothing where they do not fit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from tracer import flywheel, pipeline, storage
from tracer.config import FitConfig
from tracer.errors import ArchiveError
from tracer.learning import warmstart
from tracer.learning.crossfit import WarmHeads
from tracer.learning.heads import LinearHead
from tracer.learning.warmstart import WarmStart, row_digests
from tracer.pipeline import Certified
from tracer.traces.rooms import assign_rooms
from tracer.types import Dataset, Float32

K, FOLDS = 3, 4
DENSE, LEXICAL = "dense logistic (penalty 0.02)", "lexical logistic (penalty 0.001)"


def heads(d: int, seed: int) -> WarmHeads:
    rng = np.random.default_rng(seed)

    def one() -> LinearHead:
        return LinearHead(rng.normal(size=(d, K)).astype(np.float32), rng.normal(size=K).astype(np.float32))

    return WarmHeads(tuple(one() for _ in range(FOLDS)), one())


def start(hashes: list[int] | None = None) -> WarmStart:
    known = None if hashes is None else np.array(hashes, dtype=np.uint32)
    found: dict[str, WarmHeads | None] = {DENSE: heads(5, 0), "dense kernel": None}
    if known is not None:
        found[LEXICAL] = heads(len(known), 1)
    return WarmStart(found, ("a", "b", "c"), known, "basis", np.arange(1000, dtype=np.uint64), FOLDS, 1000, 1100)


def rows(n: int, first: int = 0) -> NDArray[np.uint64]:
    """Digests of ``n`` training rows; the thousand of ``start`` are among them where they begin at 0."""
    return np.arange(first, first + n, dtype=np.uint64)


@pytest.mark.parametrize("hashes", [None, [3, 7, 9], []])
def test_a_round_trip_keeps_everything_but_digits(tmp_path: Path, hashes: list[int] | None) -> None:
    warm = start(hashes)
    path = tmp_path / "w.safetensors"
    path.write_bytes(warmstart.dump(warm))
    again = warmstart.load(str(path))
    assert (again.labels, again.basis, again.n_folds, again.n_chosen) == (("a", "b", "c"), "basis", FOLDS, 1000)
    assert list(again.heads) == list(warm.heads)
    assert (again.hashes is None) == (hashes is None)
    assert np.array_equal(again.rows, warm.rows)
    for name, before in warm.heads.items():
        after = again.heads[name]
        if before is None:
            assert after is None
            continue
        assert after is not None
        for old, new in zip((*before.folds, before.final), (*after.folds, after.final), strict=True):
            assert new.weights == pytest.approx(old.weights, rel=2e-3, abs=1e-6)
            assert np.array_equal(new.bias, old.bias)


def test_lexical_rows_move_with_their_hash() -> None:
    warm = start([3, 7, 9])
    old = warm.heads[LEXICAL]
    moved = warm.usable(("a", "b", "c"), np.array([1, 7, 9, 12], dtype=np.uint32), "basis", FOLDS, rows(1100))
    assert moved is not None
    new = moved.heads[LEXICAL]
    assert old is not None
    assert new is not None
    for before, after in zip((*old.folds, old.final), (*new.folds, new.final), strict=True):
        assert np.array_equal(after.weights[[1, 2]], before.weights[[1, 2]])
        assert not after.weights[[0, 3]].any()
        assert np.array_equal(after.bias, before.bias)
    assert moved.heads[DENSE] is warm.heads[DENSE]


@pytest.mark.parametrize(
    ("change", "fits"),
    [
        ({}, True),
        ({"labels": ("a", "b", "c", "d")}, False),
        ({"labels": ("b", "a", "c")}, False),
        ({"basis": "another"}, False),
        ({"n_folds": FOLDS + 1}, False),
        ({"rows": rows(1250)}, True),
        ({"rows": rows(1251)}, False),
        ({"rows": rows(1100, first=1)}, False),
        ({"hashes": None}, False),
    ],
)
def test_it_is_used_only_where_it_fits(change: dict[str, object], fits: bool) -> None:
    asked = {
        "labels": ("a", "b", "c"),
        "hashes": np.array([3, 7, 9], dtype=np.uint32),
        "basis": "basis",
        "n_folds": FOLDS,
        "rows": rows(1001),
    }
    assert (start([3, 7, 9]).usable(**{**asked, **change}) is not None) == fits  # type: ignore[arg-type]


@pytest.mark.parametrize(("n_rows", "kept"), [(1101, True), (1155, True), (1156, False)])
def test_folds_are_kept_while_few_rows_are_new(n_rows: int, kept: bool) -> None:
    found = start().usable(("a", "b", "c"), None, "basis", FOLDS, rows(n_rows))
    assert found is not None
    assert found.keep_folds == kept


@pytest.mark.parametrize("cut", [0, 5, 200, -1])
def test_a_damaged_file_is_an_error(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "w.safetensors"
    path.write_bytes(warmstart.dump(start([3, 7]))[:cut])
    with pytest.raises(ArchiveError, match=r"w\.safetensors"):
        warmstart.load(str(path))


def test_weights_of_any_size_survive(tmp_path: Path) -> None:
    """Half precision ends at 65,504 and near 6e-8; embeddings of odd scales ask for more."""
    for scale in (1e-9, 1e9):
        warm = start()
        given = warm.heads[DENSE]
        assert given is not None
        folds = tuple(LinearHead(h.weights * np.float32(scale), h.bias) for h in given.folds)
        path = tmp_path / "w.safetensors"
        path.write_bytes(warmstart.dump(replace(warm, heads={DENSE: replace(given, folds=folds)})))
        again = warmstart.load(str(path)).heads[DENSE]
        assert again is not None
        assert again.folds[0].weights == pytest.approx(folds[0].weights, rel=2e-3, abs=1e-3 * scale)


def test_a_row_is_known_by_id_group_and_fold() -> None:
    folds = np.array([0, 1, 1], dtype=np.int8)
    found = row_digests(["a", "b", "c"], [None, "g", "g"], folds)
    assert len(set(found.tolist())) == 3
    for ids, groups, other in (
        (["a", "b", "d"], [None, "g", "g"], folds),
        (["a", "b", "c"], [None, "g", None], folds),
        (["a", "b", "c"], [None, "g", "g"], folds[::-1]),
    ):
        assert np.isin(found, row_digests(ids, groups, other)).sum() < 3


def test_older_traces_under_a_cut_in_time_mean_training_anew(messages: Dataset) -> None:
    """Under ``recent`` they move the cut back: rows that trained would certify."""
    times = np.arange(len(messages), dtype=np.float64)
    timed = replace(messages, times=times, dense=None, embedder=None)
    config = FitConfig(targets=(0.7,), features="lexical", split="recent", shadow_share=0.3)
    newer, with_older = timed.take(np.arange(100, 1100)), timed.take(np.r_[100:1100, :100])
    before = pipeline.refit(newer, config)
    back = pipeline.refit(with_older, config, warm=before.warm)
    cold = pipeline.refit(with_older, config)
    assert back.verdict.report.n_trainings == cold.verdict.report.n_trainings
    later = pipeline.refit(timed.take(np.arange(100, 1120)), config, warm=before.warm)
    assert later.verdict.report.n_trainings < cold.verdict.report.n_trainings


def test_a_group_that_comes_to_certify_means_training_anew(messages: Dataset) -> None:
    """Its rows that trained are set aside, and the heads have seen them."""
    texts = replace(messages, dense=None, embedder=None).take(np.arange(1001))
    groups = tuple(f"g{i % 200}" for i in range(1000))
    grouped = replace(texts, groups=(*groups, "new"))
    config = FitConfig(targets=(0.7,), features="lexical", shadow_share=0.3)
    first = grouped.take(np.arange(1000))
    before = pipeline.refit(first, config)
    folded = assign_rooms(first, shadow_share=0.3, split="hash").train
    mate = groups[int(folded[0])]
    both = replace(grouped, groups=(*groups, mate), origins=("bootstrap",) * 1000 + ("audit",))
    left = set(folded.tolist()) - set(assign_rooms(both, shadow_share=0.3, split="hash").train.tolist())
    after = pipeline.refit(both, config, warm=before.warm)
    screened = pipeline.refit(both, config).verdict.report.n_trainings
    assert (after.verdict.report.n_trainings == screened) == bool(left)
    assert pipeline.refit(grouped, config, warm=before.warm).verdict.report.n_trainings < screened


@pytest.fixture(scope="module")
def grown(messages: Dataset) -> tuple[Dataset, Dataset]:
    return messages.take(np.arange(2450)), messages


def logits(verdict: pipeline.Verdict, dense: Float32) -> Float32:
    assert isinstance(verdict, Certified)
    out: Float32 = np.sum(verdict.policy.candidate.surrogate.views({"dense": dense}), axis=0)
    return out


def test_a_warm_refit_ends_where_a_cold_one_does(grown: tuple[Dataset, Dataset]) -> None:
    """Within the tolerance at which both stop: the same label on 98% of the rows, the same coverage within 0.02."""
    less, more = grown
    # So few shadow traces that more than 2,000 train: beyond what the kernel may keep.
    config = FitConfig(targets=(0.8,), features="dense", shadow_share=0.15)
    before = pipeline.refit(less, config)
    cold = pipeline.refit(more, config)
    warm = pipeline.refit(more, config, warm=before.warm)
    assert warm.verdict.report.n_trainings < cold.verdict.report.n_trainings
    assert isinstance(warm.verdict, Certified)
    assert isinstance(cold.verdict, Certified)
    assert more.dense is not None
    one, two = logits(warm.verdict, more.dense), logits(cold.verdict, more.dense)
    assert (one.argmax(axis=1) == two.argmax(axis=1)).mean() > 0.98
    assert warm.verdict.certificate.coverage == pytest.approx(cold.verdict.certificate.coverage, abs=0.02)


def test_a_damaged_or_missing_start_means_training_anew(
    small_texts: Dataset, messages: Dataset, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    texts = replace(messages, dense=None, embedder=None)
    config = FitConfig(targets=(0.7,), features="lexical")
    flywheel.fit(small_texts, home=tmp_path, config=config)
    whole = flywheel.update(texts.take(np.arange(600, 640)), home=tmp_path).report.n_trainings
    path = tmp_path / flywheel.WARM
    path.write_bytes(path.read_bytes()[:-7])
    anew = flywheel.update(texts.take(np.arange(640, 660)), home=tmp_path).report.n_trainings
    assert "training anew" in caplog.text
    assert whole < anew
    path.unlink()
    assert flywheel.update(texts.take(np.arange(660, 680)), home=tmp_path).report.n_trainings == anew


def test_a_disk_that_is_full_at_the_end_costs_time_and_nothing_else(
    small_texts: Dataset, messages: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    flywheel.fit(small_texts, home=tmp_path, config=FitConfig(targets=(0.7,), features="lexical", ledger="lifetime"))
    write = storage.write_atomic

    def full(path: Path, content: bytes) -> None:
        if path.name == flywheel.WARM:
            raise OSError(28, "No space left on device")
        write(path, content)

    monkeypatch.setattr(storage, "write_atomic", full)
    more = replace(messages, dense=None, embedder=None).take(np.arange(600, 650))
    verdict = flywheel.update(more, home=tmp_path)
    settings = flywheel.Settings.read(tmp_path)
    assert settings is not None
    assert settings.attempts == 2
    assert "No space left" in caplog.text
    assert isinstance(verdict, Certified)
    assert verdict.update is not None
    assert verdict.update.active == (tmp_path / "ACTIVE").read_text().strip()
