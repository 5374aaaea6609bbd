"""The two rooms and the folds."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256

import numpy as np
import pytest

from tracer.errors import ConfigError, TraceError
from tracer.traces.rooms import Rooms, assign_rooms, fold_ids, ids_digest
from tracer.types import Dataset, LabelSpace, Origin


def rows_of(
    texts: Sequence[str],
    *,
    groups: Sequence[str | None] | None = None,
    times: Sequence[float] | None = None,
    origins: Sequence[Origin] | None = None,
) -> Dataset:
    return Dataset.from_columns(["x"] * len(texts), texts=texts, groups=groups, times=times, origins=origins)


def named(dataset: Dataset, rooms: Rooms) -> tuple[set[str], set[str]]:
    return {dataset.ids[i] for i in rooms.train}, {dataset.ids[i] for i in rooms.shadow}


@pytest.mark.parametrize("share", [0.1, 0.25, 0.6])
def test_shares_are_about_right(share: float) -> None:
    dataset = rows_of([f"request {i}" for i in range(4000)])
    rooms = assign_rooms(dataset, shadow_share=share, split="hash")
    assert len(rooms.shadow) / 4000 == pytest.approx(share, abs=4 * (share * (1 - share) / 4000) ** 0.5)
    everywhere = np.concatenate([rooms.train, rooms.shadow, rooms.set_aside])
    assert sorted(everywhere.tolist()) == list(range(4000))
    assert all((np.diff(room) > 0).all() for room in (rooms.train, rooms.shadow))


def test_rooms_do_not_change_when_the_log_grows() -> None:
    texts = [f"request {i}" for i in range(500)]
    small, large = rows_of(texts[:300]), rows_of(texts)
    before = named(small, assign_rooms(small, shadow_share=0.3, split="hash"))
    after = named(large, assign_rooms(large, shadow_share=0.3, split="hash"))
    assert before[0] <= after[0]
    assert before[1] <= after[1]


def test_a_larger_share_only_moves_rows_to_shadow() -> None:
    dataset = rows_of([f"request {i}" for i in range(300)])
    less, more = (set(assign_rooms(dataset, shadow_share=s, split="hash").shadow.tolist()) for s in (0.2, 0.4))
    assert less < more


def test_texts_that_read_the_same_never_straddle() -> None:
    forms = ["Lost  card {}", "lost card {}\n", "ＬＯＳＴ card {}"]  # noqa: RUF001 - full width on purpose
    dataset = rows_of([form.format(i) for i in range(200) for form in forms])
    rooms = assign_rooms(dataset, shadow_share=0.3, split="hash")
    shadow = set(rooms.shadow.tolist())
    assert all(len({3 * i + j in shadow for j in range(3)}) == 1 for i in range(200))
    assert rooms.set_aside.size == 0


def test_one_row_a_group_certifies_and_groups_never_straddle() -> None:
    groups = [f"user {i % 100}" for i in range(1000)]
    dataset = rows_of([f"request {i}" for i in range(1000)], groups=groups)
    rooms = assign_rooms(dataset, shadow_share=0.3, split="hash")
    sides = [{groups[i] for i in room} for room in (rooms.train, rooms.shadow, rooms.set_aside)]
    assert not sides[0] & sides[1]
    assert len(rooms.shadow) == len(sides[1])
    assert sides[1] == sides[2]
    assert len(rooms.set_aside) == 9 * len(rooms.shadow)


def test_the_row_of_a_group_does_not_depend_on_the_order() -> None:
    texts, groups = [f"request {i}" for i in range(60)], [f"user {i % 6}" for i in range(60)]
    ids = [f"id-{i}" for i in range(60)]

    def kept(order: Sequence[int]) -> set[str]:
        dataset = Dataset.from_columns(
            ["x"] * 60,
            texts=[texts[i] for i in order],
            groups=[groups[i] for i in order],
            ids=[ids[i] for i in order],
        )
        return named(dataset, assign_rooms(dataset, shadow_share=0.5, split="hash"))[1]

    assert kept(range(60)) == kept(range(59, -1, -1))


def test_origins() -> None:
    origins: list[Origin] = ["audit", "deferred", "requested", "fallback", "imported"]
    dataset = rows_of([f"request {i}" for i in range(500)], origins=origins * 100)
    rooms = assign_rooms(dataset, shadow_share=0.01, split="hash")
    assert rooms.shadow.tolist() == list(range(0, 500, 5))
    assert rooms.description == "by hash, share 0.01: 400 train, 100 shadow (100 audits), 0 set aside"


def test_outside_labels_stay() -> None:
    dataset = rows_of([f"request {i}" for i in range(100)]).with_space(LabelSpace(("other",), declared=True))
    rooms = assign_rooms(dataset, shadow_share=0.5, split="hash")
    assert len(rooms.train) + len(rooms.shadow) == 100


def test_embeddings_alone_are_hashed_by_id() -> None:
    dataset = Dataset.from_columns(["x"] * 400, dense=np.zeros((400, 1)))
    rooms = assign_rooms(dataset, shadow_share=0.5, split="hash")
    assert 140 < len(rooms.shadow) < 260


def test_recent_takes_the_newest_share() -> None:
    times = [float(t) for t in np.random.default_rng(0).permutation(100)]
    dataset = rows_of(["the same text"] * 100, times=times)
    rooms = assign_rooms(dataset, shadow_share=0.25, split="recent")
    assert sorted(times[i] for i in rooms.shadow) == list(range(75, 100))


def test_recent_sends_ties_at_the_cut_to_shadow_together() -> None:
    dataset = rows_of([str(i) for i in range(10)], times=[0, 1, 2, 3, 4, 5, 7, 7, 7, 9])
    assert assign_rooms(dataset, shadow_share=0.2, split="recent").shadow.tolist() == [6, 7, 8, 9]


def test_recent_moves_whole_groups_and_keeps_a_new_row_of_each() -> None:
    groups = ["a", None, "b", "b", None, "a"]
    dataset = rows_of([str(i) for i in range(6)], groups=groups, times=[0, 1, 2, 3, 4, 5])
    rooms = assign_rooms(dataset, shadow_share=0.3, split="recent")
    assert rooms.train.tolist() == [1, 2, 3]
    assert rooms.shadow.tolist() == [4, 5]
    assert rooms.set_aside.tolist() == [0]


def test_recent_needs_times() -> None:
    dataset = rows_of(["a", "b", "c"], times=[1.0, float("nan"), float("nan")])
    with pytest.raises(TraceError, match=r"has none \(2 lack it\)"):
        assign_rooms(dataset, shadow_share=0.5, split="recent")


def test_empty_rooms_say_how_many_rows_there_were() -> None:
    with pytest.raises(TraceError, match=r"the shadow room is empty: 2 rows, shadow_share = 0\.5, split = 'hash'"):
        assign_rooms(rows_of(["a", "b"], origins=["deferred"] * 2), shadow_share=0.5, split="hash")
    with pytest.raises(TraceError, match="the train room is empty: 2 rows"):
        assign_rooms(rows_of(["a", "b"], origins=["audit"] * 2), shadow_share=0.5, split="hash")
    with pytest.raises(TraceError, match="the shadow room is empty"):
        assign_rooms(rows_of(["a"], origins=["deferred"], times=[1.0]), shadow_share=0.5, split="recent")


def test_impossible_settings() -> None:
    dataset = rows_of(["a", "b"])
    with pytest.raises(ConfigError, match="shadow_share = 1"):
        assign_rooms(dataset, shadow_share=1.0, split="hash")
    with pytest.raises(ConfigError, match="split = 'random'"):
        assign_rooms(dataset, shadow_share=0.5, split="random")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="folds = 1"):
        fold_ids(dataset, np.arange(2), 1)


def test_digest_can_be_recomputed_by_anyone() -> None:
    dataset = rows_of([f"request {i}" for i in range(50)])
    rooms = assign_rooms(dataset, shadow_share=0.5, split="hash")
    ids = sorted(named(dataset, rooms)[1])
    plain = '["' + '","'.join(ids) + '"]'
    assert rooms.digest == sha256(plain.encode()).hexdigest()
    assert rooms.digest == ids_digest(reversed(ids))
    other = assign_rooms(dataset, shadow_share=0.5, split="hash", salt="another")
    assert other.digest != rooms.digest


def test_folds_are_balanced_and_keep_groups_and_texts_together() -> None:
    texts = [f"Text {i % 500}" for i in range(1000)] + [f"request {i}" for i in range(1000)]
    groups = [None] * 1000 + [f"user {i % 200}" for i in range(1000)]
    dataset = rows_of(texts, groups=groups)
    rows = np.arange(0, 2000)
    folds = fold_ids(dataset, rows, 5)
    assert folds.dtype == np.int8
    assert set(folds.tolist()) == set(range(5))
    assert np.bincount(folds).min() > 250
    for keys, part in ((texts[:1000], folds[:1000]), (groups[1000:], folds[1000:])):
        assert len(set(zip(keys, part.tolist(), strict=True))) == len(set(keys))
    assert fold_ids(dataset, rows[::7], 5).tolist() == folds[::7].tolist()


def test_folds_do_not_follow_the_rooms() -> None:
    dataset = rows_of([f"request {i}" for i in range(2000)])
    rooms = assign_rooms(dataset, shadow_share=0.5, split="hash")
    counts = np.bincount(fold_ids(dataset, rooms.train, 5))
    assert counts.min() > 150


def test_texts_with_lone_surrogates_do_not_crash() -> None:
    dataset = rows_of(["\ud800", *(str(i) for i in range(50))])
    assert len(assign_rooms(dataset, shadow_share=0.5, split="hash").train) > 5
