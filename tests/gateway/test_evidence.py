"""What becomes evidence, and what must not: whose absence depends on the input counts, all else is left out."""

from __future__ import annotations

import asyncio
import json
import re
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.conftest import LEXICAL, NOW
from tests.gateway.conftest import Known
from tests.gateway.serving import CHAT, asked, place, serve, settings
from tests.gateway.standin import Fault, Standin
from tracer import flywheel
from tracer.flywheel.goals import Goals
from tracer.flywheel.settings import Settings
from tracer.gateway.codecs import CODECS
from tracer.gateway.config import parse
from tracer.gateway.deciding import decide, missing
from tracer.gateway.lines import goals_of, prepare
from tracer.pipeline import Certified
from tracer.policies.registry import PolicyRegistry
from tracer.policies.serving_settings import ServingSettings
from tracer.types import FAILED, Dataset

AUDITED = ServingSettings(audit_rate=1.0)
PLAIN = ServingSettings(audit_rate=0.0)


@pytest.mark.parametrize(
    ("origin", "status", "label"),
    [
        ("audit", 200, FAILED), ("bootstrap", 200, FAILED), ("fallback", 200, None), ("requested", 200, None),
        ("audit", 503, FAILED), ("bootstrap", 503, None), ("audit", 0, FAILED), ("audit", 408, FAILED),
        ("audit", 401, None), ("audit", 429, None), ("audit", 400, None), ("bootstrap", 0, None), (None, 200, None),
    ],
)  # fmt: skip
def test_what_a_missing_label_says(origin: Any, status: int, label: str | None) -> None:
    assert missing(origin, status) == label


def test_a_plain_sample_holds_what_the_teacher_gave_no_label_for(tmp_path: Path) -> None:
    labels = {"words": "I am sorry, I cannot help with that.", "one": "billing", "two": "office"}
    task = "mode: observe\nlabel: {options: [billing, office]}"
    with Standin(labels) as api, serve(settings(api.url, tmp_path, task), tmp_path) as served:
        for text in labels:
            assert served.post(asked(text)).status_code == 200
        found = {trace.text: (trace.origin, trace.label) for trace in served.traces()}
    assert found == {
        "words": ("bootstrap", FAILED), "one": ("bootstrap", "billing"), "two": ("bootstrap", "office"),
    }  # fmt: skip


@pytest.mark.parametrize("status", [400, 401, 403, 429])
def test_a_callers_own_fault_is_no_failed_audit(known: Known, tmp_path: Path, status: int) -> None:
    place(known.home, tmp_path, AUDITED)
    with Standin() as api, serve(settings(api.url, tmp_path), tmp_path) as served:
        api.misbehave(Fault("status", status=status))
        assert served.post(asked(next(iter(known.handled)))).status_code == status
        assert served.traces() == []


def test_another_endpoint_is_no_evidence_of_this_teacher(known: Known, tmp_path: Path) -> None:
    place(known.home, tmp_path, AUDITED)
    text = next(iter(known.handled))
    with Standin() as down, Standin({text: "office"}) as other:
        config = settings(down.url, tmp_path)
        config = config.replace("retries: 0}", "retries: 0, api_key: '${A}', fallbacks: [other]}", 1)
        config = config.replace("tasks:", f"  other: {{base_url: {other.url}/v1, api_key: '${{B}}'}}\ntasks:", 1)
        down.misbehave(Fault("status", status=503))
        with serve(config, tmp_path, environ={"A": "a", "B": "b"}) as served:
            assert served.post(asked(text)).status_code == 200
            (trace,) = served.traces()
    assert (trace.origin, trace.label) == ("fallback", "office")


def test_what_is_masked_is_masked_for_the_policy_too(known: Known, tmp_path: Path) -> None:
    place(known.home, tmp_path, PLAIN)
    policy = PolicyRegistry(known.home).load()
    word = re.compile("(?i)the")
    texts = [text for text in (*known.handled, *known.left) if word.search(text)]
    masked = policy.decide([word.sub("[redacted]", text) for text in texts])
    raw = policy.decide(texts)
    odd = [i for i in range(len(texts)) if masked.handled[i] != raw.handled[i]]
    assert odd, "this test needs texts that are decided otherwise once they are masked"
    task = "redact: ['(?i)the']"
    with Standin() as api, serve(settings(api.url, tmp_path, task), tmp_path) as served:
        for i in odd[:5]:
            decision = served.post(asked(texts[i])).headers["x-tracer-decision"]
            assert (decision == "handled") == bool(masked.handled[i])


def test_a_call_that_is_not_stored_takes_no_coin(known: Known, tmp_path: Path) -> None:
    place(known.home, tmp_path, AUDITED)
    text, label = next(iter(known.handled.items()))
    with Standin() as api, serve(settings(api.url, tmp_path), tmp_path) as served:
        one = served.post(asked(text), x_tracer_no_store="1")
        assert one.headers["x-tracer-decision"] == "handled"
        assert one.json()["choices"][0]["message"]["content"] == label
        assert served.post(asked(known.left[0]), x_tracer_no_store="1").headers["x-tracer-decision"] == "deferred"
        assert served.post(asked(text)).headers["x-tracer-decision"] == "audit"
        (tally,) = served.gateway.serving.lines["desk"].router.tallies()
        assert tally.n == 1
        assert len(served.traces()) == 1
        assert len(api.asked) == 2


def test_a_policy_that_promises_less_than_is_asked_does_not_answer(known: Known, tmp_path: Path) -> None:
    home = place(known.home, tmp_path, PLAIN)
    text = next(iter(known.handled))
    for task, reason in (("target: 0.9", "below_target"), ("delta: 0.01", "below_target"), ("target: 0.7", "handled")):
        with Standin() as api, serve(settings(api.url, tmp_path, task), tmp_path) as served:
            assert served.post(asked(text)).headers["x-tracer-reason"] == reason
    found = Settings.read(home)
    assert found is not None
    assert (found.config.target, found.config.delta) == (0.7, 0.05), "the next update holds to what is asked"


def test_a_fit_holds_to_the_goals_of_its_home(messages: Dataset, tmp_path: Path) -> None:
    names = tuple(sorted(set(messages.labels)))
    Goals(0.7, 0.1, None, (*names, "never")).write(tmp_path)
    verdict = flywheel.fit(messages, home=tmp_path, features="lexical", now=NOW)
    assert isinstance(verdict, Certified)
    assert (verdict.certificate.target, verdict.certificate.delta) == (0.7, 0.1)
    assert "never" in verdict.policy.space.names
    Goals(0.8, 0.1).write(tmp_path)
    settings_now = Settings.read(tmp_path)
    assert settings_now is not None and settings_now.config.targets == (0.8,)  # noqa: PT018
    assert Goals(0.8, 0.05).applied(replace(LEXICAL, targets=(0.9, 0.8, 0.7))).targets == (0.8, 0.7)


def test_a_field_of_an_answer_without_a_schema_is_the_label(tmp_path: Path) -> None:
    task = "mode: observe\nlabel: {field: desk}"
    answers = {"one": '{"desk": "office", "because": "of x"}', "two": "no JSON"}
    with Standin(answers) as api, serve(settings(api.url, tmp_path, task), tmp_path) as served:
        for text in answers:
            assert served.post(asked(text)).status_code == 200
        assert [trace.label for trace in served.traces()] == ["office", FAILED]


@pytest.mark.parametrize(("mode", "observed"), [("observe", True), ("shadow", False)])
def test_the_home_knows_whether_its_gateway_observes_only(mode: str, observed: bool, tmp_path: Path) -> None:
    config = parse(settings("http://127.0.0.1:9", tmp_path, f"mode: {mode}"), {})
    home = tmp_path / "desk"
    home.mkdir()
    Goals(0.95, 0.05, observed=not observed).write(home)
    prepare(home, config.tasks[0], goals_of(config, config.tasks[0]))
    found = Goals.read(home)
    assert found is not None
    assert found.observed is observed


def test_tallies_wait_for_a_store_that_is_locked(known: Known, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tracer.errors import StoreError

    place(known.home, tmp_path, PLAIN)
    with Standin() as api, serve(settings(api.url, tmp_path), tmp_path) as served:
        assert served.post(asked(next(iter(known.handled)))).status_code == 200
        line = served.gateway.serving.lines["desk"]
        before = sum(one.n for one in line.store.traffic())

        def locked(*_: object) -> None:
            raise StoreError("locked")

        with monkeypatch.context() as patch:
            patch.setattr(line.store, "tally", locked)
            with pytest.raises(StoreError):
                line.tend()
        line.tend()
        assert sum(one.n for one in line.store.traffic()) - before == 1


@pytest.mark.parametrize("mode", ["auto", "shadow"])
def test_a_policy_that_came_after_its_prompt_was_looked_at_does_not_answer(
    known: Known, tmp_path: Path, mode: str
) -> None:
    place(known.home, tmp_path, PLAIN)
    text = next(iter(known.handled))
    with Standin() as api, serve(settings(api.url, tmp_path), tmp_path) as served:
        line = served.gateway.serving.lines["desk"]
        call = CODECS["openai.chat"].read(json.dumps(asked(text)).encode())
        match = served.gateway.serving.tasks.match(call, {}, served.gateway.serving.accepted)
        assert match is not None
        for kept in (True, False):
            verdict = asyncio.run(decide(line, match, call, mode, None, kept=kept))
            assert (verdict.label, verdict.answer.seen) == (None, None)


@pytest.mark.parametrize(
    ("fault", "stream"),
    [(Fault("cut"), True), (Fault("cut"), False), (Fault("malformed"), False)],
)
def test_what_is_cut_on_its_way_is_no_word_of_the_teacher(tmp_path: Path, fault: Fault, *, stream: bool) -> None:
    with Standin({"one": "billing"}) as api, serve(settings(api.url, tmp_path, "mode: observe"), tmp_path) as served:
        api.misbehave(fault)
        with suppress(httpx2.HTTPError):
            served.post(asked("one", stream=stream))
        assert served.traces() == []
        assert served.post(asked("one")).status_code == 200
        assert [trace.label for trace in served.traces()] == ["billing"]


def test_a_plain_sample_has_those_whose_client_left(tmp_path: Path) -> None:
    with Standin({"slow": "office"}) as api, serve(settings(api.url, tmp_path, "mode: observe"), tmp_path) as served:
        api.misbehave(Fault("slow_first_byte", seconds=1.0))
        with pytest.raises(httpx2.ReadTimeout):
            httpx2.post(served.url + CHAT, content=json.dumps(asked("slow")).encode(), timeout=0.3)
        assert [(trace.origin, trace.label) for trace in served.traces()] == [("bootstrap", "office")]
