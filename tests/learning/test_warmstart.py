"""What one fit leaves to the next: sound starts, moved features, and nothing where they do not fit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tracer import flywheel, pipeline
from tracer.config import FitConfig
from tracer.errors import ArchiveError
from tracer.learning import warmstart
from tracer.learning.crossfit import WarmHeads
from tracer.learning.heads import LinearHead
from tracer.learning.warmstart import WarmStart
from tracer.pipeline import Certified
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
    return WarmStart(found, ("a", "b", "c"), known, "basis", FOLDS, 1000, 1100)


@pytest.mark.parametrize("hashes", [None, [3, 7, 9], []])
def test_a_round_trip_keeps_everything_but_digits(tmp_path: Path, hashes: list[int] | None) -> None:
    warm = start(hashes)
    path = tmp_path / "w.safetensors"
    path.write_bytes(warmstart.dump(warm))
    again = warmstart.load(str(path))
    assert (again.labels, again.basis, again.n_folds, again.n_chosen) == (("a", "b", "c"), "basis", FOLDS, 1000)
    assert list(again.heads) == list(warm.heads)
    assert (again.hashes is None) == (hashes is None)
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
    moved = warm.usable(("a", "b", "c"), np.array([1, 7, 9, 12], dtype=np.uint32), "basis", FOLDS, 1100)
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
        ({"n_rows": 1250}, True),
        ({"n_rows": 1251}, False),
        ({"hashes": None}, False),
    ],
)
def test_it_is_used_only_where_it_fits(change: dict[str, object], fits: bool) -> None:
    asked = {
        "labels": ("a", "b", "c"),
        "hashes": np.array([3, 7, 9], dtype=np.uint32),
        "basis": "basis",
        "n_folds": FOLDS,
        "n_rows": 1001,
    }
    assert (start([3, 7, 9]).usable(**{**asked, **change}) is not None) == fits  # type: ignore[arg-type]


@pytest.mark.parametrize(("n_rows", "kept"), [(1101, True), (1155, True), (1156, False)])
def test_folds_are_kept_while_few_rows_are_new(n_rows: int, kept: bool) -> None:
    found = start().usable(("a", "b", "c"), None, "basis", FOLDS, n_rows)
    assert found is not None
    assert found.keep_folds == kept


@pytest.mark.parametrize("cut", [0, 5, 200, -1])
def test_a_damaged_file_is_an_error(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "w.safetensors"
    path.write_bytes(warmstart.dump(start([3, 7]))[:cut])
    with pytest.raises(ArchiveError, match=r"w\.safetensors"):
        warmstart.load(str(path))


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
