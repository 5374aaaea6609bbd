"""fit: what it promises can be recomputed, and no shadow label is read before the gate."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from decimal import Decimal
from typing import Any

import numpy as np
import pytest
from scipy.stats import binom

from tracer import pipeline
from tracer.certification.certificate import Certificate
from tracer.certification.gate import Entrant, GateRules, Passage, run_gate
from tracer.config import FitConfig
from tracer.errors import ConfigError, FeatureError, TraceError
from tracer.learning import pool
from tracer.pipeline import Certified, Encodings, Refused, Verdict, certifying, label_text
from tracer.policies import archive
from tracer.policies.policy import Policy
from tracer.traces.rooms import assign_rooms
from tracer.types import OUTSIDE, Dataset, LabelSpace

LEXICAL = FitConfig(targets=(0.8,), features="lexical")
BOTH = FitConfig(targets=(0.8,))


def shadow_of(dataset: Dataset, config: FitConfig) -> tuple[Dataset, str]:
    rooms = assign_rooms(dataset, shadow_share=config.shadow_share_for(len(dataset)), split=config.split)
    return dataset.take(rooms.shadow), rooms.digest


def counted(policy: Policy, shadow: Dataset) -> tuple[int, int, int]:
    """Shadow rows, handled and agreed, by label names alone."""
    decisions = policy.decide(shadow.texts, shadow.dense)
    agreed = [h and a == b for h, a, b in zip(decisions.handled, decisions.labels, shadow.labels, strict=True)]
    return len(shadow), int(decisions.handled.sum()), sum(agreed)


def certified(verdict: Verdict) -> tuple[Policy, Certificate]:
    assert isinstance(verdict, Certified), verdict.refusal.statement()
    return verdict.policy, verdict.certificate


@pytest.fixture(scope="module")
def lexical(small_texts: Dataset, now: datetime) -> Verdict:
    return pipeline.fit(small_texts, LEXICAL, now=now)


@pytest.fixture(scope="module")
def both(messages: Dataset, now: datetime) -> Verdict:
    return pipeline.fit(messages.take(np.arange(900)), BOTH, now=now)


def test_the_same_traces_and_settings_give_the_same_bytes(
    small: Dataset, lexical: Verdict, small_texts: Dataset, now: datetime
) -> None:
    policy, _ = certified(lexical)
    again, _ = certified(pipeline.fit(small_texts, LEXICAL, now=now))
    assert archive.dump(policy) == archive.dump(again)
    few = small.take(np.arange(300))
    one, two = (pipeline.fit(few, BOTH, now=now) for _ in range(2))
    kept = [v.policy if isinstance(v, Certified) else v.best for v in (one, two)]
    assert kept[0] is not None
    assert kept[1] is not None
    assert archive.dump(kept[0]) == archive.dump(kept[1])


def test_another_order_of_the_rows_certifies_the_same_shadow_rows(small_texts: Dataset, lexical: Verdict) -> None:
    turned = small_texts.take(np.arange(len(small_texts))[::-1])
    _, certificate = certified(lexical)
    other = pipeline.fit(turned, LEXICAL).report
    assert other.n_shadow == certificate.n_shadow
    assert shadow_of(turned, LEXICAL)[1] == certificate.split_digest


@pytest.mark.parametrize("which", ["lexical", "both"])
def test_the_gates_counts_can_be_recomputed(
    which: str, messages: Dataset, lexical: Verdict, both: Verdict, now: datetime
) -> None:
    verdict, n, config = (lexical, 600, LEXICAL) if which == "lexical" else (both, 900, BOTH)
    policy, certificate = certified(verdict)
    shadow, digest = shadow_of(messages.take(np.arange(n)), config)
    assert counted(policy, shadow) == (certificate.n_shadow, certificate.n_handled, certificate.n_agreed)
    assert certificate.split_digest == digest
    p = binom.cdf(certificate.n_disagreed, certificate.n_handled, 1 - certificate.target)
    assert p <= certificate.level <= certificate.delta
    assert certificate.p_value == pytest.approx(p)
    assert certificate.agreement_lower >= certificate.target
    assert certificate.coverage >= config.coverage_floor
    assert (certificate.guarantee, certificate.target, policy.created) == ("certified", 0.8, now.isoformat())


def test_the_certified_attempt_is_the_certificate(lexical: Verdict) -> None:
    _, certificate = certified(lexical)
    attempts = [a for a in lexical.report.attempts if a.certified]
    assert (attempts[0].n_handled, attempts[0].n_agreed, attempts[0].threshold) == (
        certificate.n_handled, certificate.n_agreed, certificate.threshold,
    )  # fmt: skip
    handled = sum(row["n_handled"] for row in lexical.report.classes)
    agreed = sum(row["n_agreed"] for row in lexical.report.classes)
    assert (handled, agreed) == (certificate.n_handled, certificate.n_agreed)
    assert sum(row["n"] for row in lexical.report.classes) == certificate.n_shadow


def test_the_statement_carries_the_counts(lexical: Verdict) -> None:
    _, certificate = certified(lexical)
    statement = certificate.statement()
    assert f"Of {certificate.n_shadow:,} shadow traces {certificate.n_handled:,} are handled" in statement
    assert "with confidence 0.95, over all attempts of this policy line together, at least 0.8 of what" in statement


@pytest.fixture
def at_the_gate(monkeypatch: pytest.MonkeyPatch) -> list[Sequence[Entrant]]:
    """The entrants of each gate, as the gate receives them."""
    seen: list[Sequence[Entrant]] = []

    def watched(entrants: Sequence[Entrant], rules: GateRules) -> tuple[Passage, ...]:
        seen.append(entrants)
        return run_gate(entrants, rules)

    monkeypatch.setattr(certifying, "run_gate", watched)
    return seen


def test_shadow_labels_influence_nothing_before_the_gate(
    messages: Dataset, at_the_gate: list[Sequence[Entrant]], now: datetime
) -> None:
    small = messages.take(np.arange(350))
    rooms = assign_rooms(small, shadow_share=0.3, split="hash")
    labels = np.array(small.labels, dtype=object)
    labels[rooms.shadow] = np.random.default_rng(0).permutation(labels[rooms.shadow])
    assert tuple(labels) != small.labels
    shuffled = replace(small, labels=tuple(labels), y=small.space.encode(list(labels)))
    true, false = (pipeline.fit(d, BOTH, now=now) for d in (small, shuffled))
    first, second = at_the_gate
    assert [e.name for e in first] == [e.name for e in second]
    assert len(first) == 3
    for one, two in zip(first, second, strict=True):
        assert one.proposal.digest == two.proposal.digest
        assert one.proposal.starts == two.proposal.starts
        assert np.array_equal(one.proposal.thresholds, two.proposal.thresholds)
        assert np.array_equal(one.scores, two.scores)
        assert not np.array_equal(one.agree, two.agree)
    assert true.report.proposals == false.report.proposals
    assert true.report.frontier == false.report.frontier
    assert true.report.dropped == false.report.dropped
    plain = [[replace(m, seconds=None) for m in v.report.members] for v in (true, false)]
    assert plain[0] == plain[1]
    assert isinstance(false, Refused), "and the gate does read them"


@pytest.fixture(scope="module")
def random(small_texts: Dataset) -> Dataset:
    labels = list(np.random.default_rng(1).permutation(np.array(small_texts.labels, dtype=object)))
    return Dataset.from_columns(labels, texts=small_texts.texts)


def test_random_labels_are_refused_by_the_papers_protocol_too(random: Dataset) -> None:
    verdict = pipeline.fit(random, FitConfig(targets=(0.9,), mode="paper"))
    assert isinstance(verdict, Refused)
    assert verdict.refusal.statement().endswith(".")


def test_random_labels_are_refused_in_words(small_texts: Dataset, random: Dataset) -> None:
    verdict = pipeline.fit(random, FitConfig(targets=(0.9,)))
    assert isinstance(verdict, Refused)
    statement = verdict.refusal.statement()
    assert statement.startswith("No candidate cleared the gate at target 0.9: the nearest, lexical logistic, agreed on")
    assert statement.endswith((".", "coverage."))
    assert verdict.refusal.advice
    assert all(not a.certified for a in verdict.report.attempts)
    assert verdict.best is not None
    assert verdict.best.decide(small_texts.texts).coverage == 0.0, "a refused policy handles nothing"


def test_a_label_outside_the_declared_set_is_a_disagreement(small_texts: Dataset) -> None:
    rare = min(small_texts.space.names, key=small_texts.labels.count)
    declared = LabelSpace(tuple(n for n in small_texts.space.names if n != rare), declared=True)
    dataset = small_texts.with_space(declared)
    verdict = pipeline.fit(dataset, LEXICAL)
    policy = verdict.policy if isinstance(verdict, Certified) else verdict.best
    assert policy is not None
    assert policy.space == declared
    assert verdict.report.n_outside == small_texts.labels.count(rare) == int((dataset.y == OUTSIDE).sum())
    shadow, _ = shadow_of(dataset, LEXICAL)
    row = next(r for r in verdict.report.classes if r["label"] == "(labels that are not learned)")
    assert row["n"] == shadow.labels.count(rare)
    assert row["n_agreed"] == 0
    if isinstance(verdict, Certified):
        assert counted(policy, shadow)[1:] == (verdict.certificate.n_handled, verdict.certificate.n_agreed)


def test_one_row_a_group_certifies(small_texts: Dataset) -> None:
    groups = [f"user {i // 3}" for i in range(len(small_texts))]
    verdict = pipeline.fit(replace(small_texts, groups=tuple(groups)), LEXICAL)
    report = verdict.report
    rooms = assign_rooms(replace(small_texts, groups=tuple(groups)), shadow_share=0.3, split="hash")
    assert report.n_set_aside == len(rooms.set_aside) == 2 * report.n_shadow
    assert len({groups[i] for i in rooms.shadow}) == report.n_shadow == len(rooms.shadow)
    assert not {groups[i] for i in rooms.train} & {groups[i] for i in rooms.shadow}
    assert report.n_train + report.n_shadow + report.n_set_aside == len(small_texts)


def test_the_papers_protocol_is_estimated_and_says_so(messages: Dataset, now: datetime) -> None:
    dataset = messages.take(np.arange(900))
    verdict = pipeline.fit(dataset, FitConfig(targets=(0.85,), mode="paper"), now=now)
    policy, certificate = certified(verdict)
    assert certificate.guarantee == "estimated"
    assert "not a guarantee" in certificate.statement()
    assert "confidence" not in certificate.statement()
    assert certificate.agreement >= 0.85
    rooms = assign_rooms(dataset, shadow_share=0.15, split="hash")
    assert counted(policy, dataset.take(rooms.shadow)) == (
        certificate.n_shadow, certificate.n_handled, certificate.n_agreed,
    )  # fmt: skip


def test_an_estimated_policy_trains_on_everything(small_texts: Dataset) -> None:
    verdict = pipeline.fit(small_texts, replace(LEXICAL, guarantee="estimated"))
    policy, certificate = certified(verdict)
    assert certificate.guarantee == policy.certificate.guarantee == "estimated"
    assert verdict.report.n_train == len(small_texts) == certificate.n_shadow
    assert "evidence, not a guarantee" in certificate.statement()
    assert certificate.split == "out of fold on all traces"


def test_the_overall_contract_bounds_wrong_answers_and_keeps_a_floor(small_texts: Dataset) -> None:
    config = replace(LEXICAL, contract="overall")
    verdict = pipeline.fit(small_texts, config)
    policy, certificate = certified(verdict)
    assert certificate.contract == "overall"
    assert certificate.handled_floor == pytest.approx(0.75)
    assert counted(policy, shadow_of(small_texts, config)[0])[1:] == (certificate.n_handled, certificate.n_agreed)
    joint = binom.cdf(certificate.n_disagreed, certificate.n_shadow, 0.2)
    floor = binom.cdf(certificate.n_disagreed, certificate.n_handled, 0.25)
    assert certificate.p_value == pytest.approx(max(joint, floor))
    assert max(joint, floor) <= certificate.level
    assert "the teacher would contradict at most 0.2 of all answers" in certificate.statement()


def test_several_targets_share_delta(small_texts: Dataset) -> None:
    verdict = pipeline.fit(small_texts, replace(LEXICAL, targets=(0.8, 0.7, 0.99)))
    eased, strict = verdict.frontier
    _, first = certified(verdict)
    policy, second = certified(eased)
    assert isinstance(strict, Refused)
    assert (first.target, second.target, strict.refusal.target) == (0.8, 0.7, 0.99)
    assert first.level <= 0.05 / 3
    assert second.level <= 0.05 / 3
    assert second.n_handled >= first.n_handled
    assert counted(policy, shadow_of(small_texts, LEXICAL)[0])[1:] == (second.n_handled, second.n_agreed)


def test_a_lifetime_ledger_spends_less_on_each_attempt(small_texts: Dataset) -> None:
    # At 0.6 the shadow room is large enough for one start: a common level of several depends on the counts too.
    config = replace(LEXICAL, ledger="lifetime", targets=(0.6,))
    levels = [certified(pipeline.fit(small_texts, config, attempt=j))[1] for j in (1, 2)]
    assert [c.assumption for c in levels] == ["", ""]
    assert levels[0].level / levels[1].level == pytest.approx(4.0)
    assert levels[0].level < 0.05 * 6 / np.pi**2 + 1e-12
    assert [c.attempt for c in levels] == [1, 2]


def test_per_class_floors_are_in_the_policy_and_in_the_counts(small_texts: Dataset) -> None:
    config = replace(LEXICAL, per_class=True)
    verdict = pipeline.fit(small_texts, config)
    policy = verdict.policy if isinstance(verdict, Certified) else verdict.best
    assert policy is not None
    floors = policy.candidate.rules.class_floor
    assert floors is not None
    assert floors.shape == (len(small_texts.space),)
    assert np.isfinite(floors).any() or np.isposinf(floors).any()
    reasons = policy.decide(small_texts.texts).reasons
    assert "class_floor" in reasons
    if isinstance(verdict, Certified):
        counts = counted(policy, shadow_of(small_texts, config)[0])
        assert counts[1:] == (verdict.certificate.n_handled, verdict.certificate.n_agreed)


def test_labels_that_always_defer_are_never_answered(small_texts: Dataset) -> None:
    name = small_texts.space.names[0]
    verdict = pipeline.fit(small_texts, replace(LEXICAL, always_defer=(name,)))
    policy, certificate = certified(verdict)
    decisions = policy.decide(small_texts.texts)
    answered = {label for label, handled in zip(decisions.labels, decisions.handled, strict=True) if handled}
    assert name not in answered
    assert answered
    assert "always_defer" in decisions.reasons
    assert counted(policy, shadow_of(small_texts, LEXICAL)[0])[1:] == (certificate.n_handled, certificate.n_agreed)


def test_dear_errors_defer_more(small_texts: Dataset) -> None:
    costs = dict.fromkeys(small_texts.space.names, Decimal("0.02"))
    dear = pipeline.fit(small_texts, replace(LEXICAL, error_costs=costs, teacher_usd=Decimal("0.001")))
    policy = dear.policy if isinstance(dear, Certified) else dear.best
    assert policy is not None
    decisions = policy.decide(small_texts.texts)
    barred = np.array([reason == "error_cost" for reason in decisions.reasons])
    assert 0 < barred.sum() < len(barred)
    assert not decisions.handled[barred].any()


@pytest.mark.parametrize("split", ["hash", "recent"])
def test_the_split_is_the_one_asked_for(split: Any, small_texts: Dataset) -> None:
    times = np.arange(len(small_texts), dtype=np.float64)
    dataset = replace(small_texts, times=times)
    verdict = pipeline.fit(dataset, replace(LEXICAL, split=split, targets=(0.7,)))
    _, certificate = certified(verdict)
    assert certificate.split_digest == shadow_of(dataset, replace(LEXICAL, split=split))[1]
    assert ("by time" in certificate.split) == (split == "recent")


def test_precomputed_embeddings_alone_are_enough(messages: Dataset) -> None:
    dataset = replace(messages.take(np.arange(900)), texts=None)
    verdict = pipeline.fit(dataset, BOTH)
    policy, certificate = certified(verdict)
    assert policy.needs == {"dense"}
    assert policy.lexical is None
    shadow, _ = shadow_of(dataset, BOTH)
    assert counted(policy, shadow)[1:] == (certificate.n_handled, certificate.n_agreed)


def test_the_encoders_vectors_are_kept_with_the_policy(messages: Dataset) -> None:
    dataset = replace(messages.take(np.arange(900)), texts=None)
    k = len(dataset.space)
    vectors = np.ones((k, 384), dtype=np.float32)
    encodings = Encodings(np.eye(8, 384, dtype=np.float32), dataset.space.names, vectors)
    policy, _ = certified(pipeline.fit(dataset, BOTH, encodings=encodings))
    assert policy.probes is not None
    assert np.array_equal(policy.probes, encodings.probes)
    assert policy.embedder == dataset.embedder


def test_parent_and_task_are_remembered(small_texts: Dataset, now: datetime) -> None:
    named = replace(small_texts, teachers=("gpt", None) * (len(small_texts) // 2))
    policy, _ = certified(pipeline.fit(named, LEXICAL, parent="v0042", now=now))
    assert policy.parent == "v0042"
    assert policy.task["teachers"] == ["gpt"]
    assert policy.report["config"] == LEXICAL.as_dict()


def test_progress_is_told(small_texts: Dataset) -> None:
    told: list[str] = []
    pipeline.fit(small_texts, LEXICAL, progress=lambda what, _done, _total: told.append(what))
    assert told[0] == "features"
    assert told[-1] == "done"
    assert any("fold 2 of 5" in what for what in told)


def test_a_scan_spends_no_shadow_label(small_texts: Dataset) -> None:
    rooms = assign_rooms(small_texts, shadow_share=0.3, split="hash")
    labels = np.array(small_texts.labels, dtype=object)
    labels[rooms.shadow] = np.random.default_rng(0).permutation(labels[rooms.shadow])
    shuffled = replace(small_texts, labels=tuple(labels), y=small_texts.space.encode(list(labels)))
    one, two = (pipeline.scan(d, LEXICAL) for d in (small_texts, shuffled))
    assert one.frontier == two.frontier
    assert one.best == two.best == "lexical logistic"
    assert (one.n_traces, one.n_labels, one.n_train) == (600, len(small_texts.space), len(rooms.train))
    coverages = [p.coverage for p in one.frontier]
    assert [p.target for p in one.frontier] == sorted(p.target for p in one.frontier)
    assert coverages == sorted(coverages, reverse=True)
    assert coverages[0] > 0


def test_trees_that_cannot_be_exported_are_dropped_by_name(messages: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the ``trees`` extra the rest of the full pool must still give a verdict."""
    recipes = pool.learners("full", frozenset(["dense"]))
    few = tuple(r for r in recipes if r.family in ("logistic", "tree"))
    monkeypatch.setattr(pool, "learners", lambda _name, _blocks: few)
    monkeypatch.setitem(sys.modules, "skl2onnx", None)
    verdict = pipeline.fit(messages.take(np.arange(300)), FitConfig(targets=(0.7,), pool="full", features="dense"))
    assert ("dense tree", True) in [(name, failed) for name, _, failed in verdict.report.dropped]
    assert "dense logistic" in [a.candidate for a in verdict.report.attempts]


def test_what_cannot_be_learned_is_refused(small_texts: Dataset, small: Dataset) -> None:
    one_label = Dataset.from_columns(["x"] * 50, texts=[f"text {i}" for i in range(50)])
    with pytest.raises(TraceError, match="all traces carry one label \\('x'\\)"):
        pipeline.fit(one_label)
    with pytest.raises(TraceError, match="at least 20 are needed"):
        pipeline.fit(small_texts.take(np.arange(25)), LEXICAL)
    with pytest.raises(FeatureError, match="features = 'dense' needs embeddings"):
        pipeline.fit(small_texts, replace(LEXICAL, features="dense"))
    with pytest.raises(FeatureError, match="features = 'lexical' needs texts"):
        pipeline.fit(replace(small, texts=None), LEXICAL)
    with pytest.raises(ConfigError, match="no trace is labelled 'weather'"):
        pipeline.fit(small_texts, replace(LEXICAL, always_defer=("weather",)))
    with pytest.raises(TraceError, match="needs the time of every trace"):
        pipeline.fit(small_texts, replace(LEXICAL, split="recent"))


@pytest.mark.parametrize("mode", ["certified", "paper"])
def test_a_log_of_a_few_rows_is_refused_and_never_certified(mode: Any, messages: Dataset) -> None:
    for n in (30, 60):
        verdict = pipeline.fit(messages.take(np.arange(n)), FitConfig(mode=mode))
        assert isinstance(verdict, Refused)
        assert verdict.refusal.statement()


@pytest.mark.parametrize("say", ["same text {}", "... {}", "{}"])
def test_texts_that_say_nothing_are_refused_and_never_certified(say: str) -> None:
    labels = [("x", "y")[i // 30 % 2] for i in range(300)]
    verdict = pipeline.fit(Dataset.from_columns(labels, texts=[say.format(i % 30) for i in range(300)]), LEXICAL)
    assert isinstance(verdict, Refused)


def test_equal_texts_alone_leave_a_room_empty() -> None:
    with pytest.raises(TraceError, match="room is empty: 300 rows"):
        pipeline.fit(Dataset.from_columns(["x", "y"] * 150, texts=["same"] * 300), LEXICAL)


@pytest.mark.parametrize(
    ("name", "words"), [("card_notWorking", "card not working"), ("A-B", "a b"), ("??", "??"), ("Zahlung", "zahlung")]
)
def test_a_labels_name_reads_as_words(name: str, words: str) -> None:
    assert label_text(name) == words
