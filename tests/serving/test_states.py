"""Hot reload: a request is decided wholly by one state, and what cannot be loaded changes nothing."""

from __future__ import annotations

import asyncio
import logging
import random
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.serving.test_router import SURE, identified, shout
from tracer.errors import PolicyError
from tracer.features.dense import CallableEmbedder
from tracer.policies.policy import Policy
from tracer.policies.registry import PolicyRegistry
from tracer.policies.serving_settings import SERVING, ServingSettings
from tracer.serving import states
from tracer.serving.router import KILL_SWITCH, Router
from tracer.serving.states import RETRY_S, HomeSource, State
from tracer.types import Answer, LabelSpace

QUIET = ServingSettings(audit_rate=0.0)


@pytest.fixture
def registry(tmp_path: Path, tiny_policy: Policy) -> PolicyRegistry:
    """v0001, active, and v0002, which says the opposite at another threshold. Nothing is audited."""
    registry = PolicyRegistry(tmp_path)
    registry.save(tiny_policy)
    certificate = replace(tiny_policy.certificate, threshold=0.4)
    registry.save(replace(tiny_policy, space=LabelSpace(("delivery", "refund")), certificate=certificate))
    registry.activate("v0001")
    QUIET.write(tmp_path)
    return registry


SAID = {"v0001": ("refund", 0.5), "v0002": ("delivery", 0.4), None: (None, float("inf"))}


def consistent(answer: Answer) -> bool:
    return (answer.surrogate_label, answer.threshold) == SAID[answer.policy] and (
        (answer.seen.policy if answer.seen else None) == answer.policy
    )


def test_another_policy_is_taken_up(registry: PolicyRegistry) -> None:
    router = Router.load(registry.home, reload_s=0.0)
    for version in ("v0001", "v0002", "v0001"):
        registry.activate(version)
        answer = router.route(SURE)
        assert answer.policy == version
        assert consistent(answer)
        assert router.policy is not None
        assert router.policy.version == version
    registry.activate(None)
    assert router.route(SURE).reason == "no_policy"
    registry.activate("v0002")
    assert asyncio.run(router.aroute(SURE)).policy == "v0002"
    assert "fault:reload" not in router.counts


def test_it_is_looked_at_once_in_a_while(registry: PolicyRegistry) -> None:
    now = [0.0]
    source = HomeSource(registry.home, reload_s=1.0, clock=lambda: now[0])
    current = [source.start()]
    swapped: list[State] = []
    for now[0], due in ((0.9, False), (1.0, True), (1.9, False), (2.0, True)):
        assert source.due() == due
        registry.activate("v0001" if now[0] > 1.5 else "v0002")
        source.refresh(lambda: current[0], swapped.append, lambda: None)
    assert [state.version for state in swapped] == ["v0002", "v0001"]


def test_it_can_be_turned_off(registry: PolicyRegistry) -> None:
    router = Router.load(registry.home, reload_s=None)
    registry.activate("v0002")
    assert router.route(SURE).policy == "v0001"


def test_one_version_is_held_and_settings_are_followed(registry: PolicyRegistry) -> None:
    router = Router.load(registry.home, version="v0002", reload_s=0.0)
    registry.activate(None)
    ServingSettings(mode="shadow").write(registry.home)
    answer = router.route(SURE)
    assert (answer.policy, router.settings.mode) == ("v0002", "shadow")


def test_settings_are_followed_unless_given(registry: PolicyRegistry) -> None:
    followed = Router.load(registry.home, reload_s=0.0, teacher=shout)
    held = Router.load(registry.home, reload_s=0.0, settings=QUIET)
    before = followed.policy
    ServingSettings(mode="shadow", audit_rate=0.0).write(registry.home)
    assert followed.route(SURE).reason == "shadow"
    assert followed.policy is before, "only the settings were read again"
    assert held.route(SURE).reason == "handled"
    (registry.home / SERVING).unlink()
    followed.route(SURE)
    assert followed.settings == ServingSettings()


def test_a_home_audits_by_default(registry: PolicyRegistry) -> None:
    (registry.home / SERVING).unlink()
    kept: list[Any] = []
    router = Router.load(registry.home, teacher=shout, rng=random.Random(0), record=kept.append, teacher_name="big")
    n = sum(answer.audited for answer in router.route_many([SURE] * 2000))
    assert 15 <= n <= 70
    assert [(t.origin, t.teacher, t.seen.policy) for t in kept] == [("audit", "big", "v0001")] * n


@pytest.mark.parametrize("content", ["v0009", "../x", ""])
def test_what_cannot_be_loaded_changes_nothing(
    content: str, registry: PolicyRegistry, caplog: pytest.LogCaptureFixture
) -> None:
    router = Router.load(registry.home, reload_s=0.0)
    (registry.folder / "v0002" / "manifest.json").write_bytes(b"{}")
    registry.pointer.write_text(content or "v0002", encoding="utf-8")
    with caplog.at_level(logging.WARNING, logger="tracer.router"):
        assert [router.route(SURE).policy for _ in range(5)] == ["v0001"] * 5
    assert router.counts["fault:reload"] == 1
    assert caplog.text.count("the new policy cannot be used") == 1
    registry.activate("v0001")
    assert router.route(SURE).handled
    registry.pointer.write_text("v0010", encoding="utf-8")
    router.route(SURE)
    assert router.counts["fault:reload"] == 2, "each change is tried"


def test_bad_settings_do_not_hold_a_policy_back(registry: PolicyRegistry, caplog: pytest.LogCaptureFixture) -> None:
    router = Router.load(registry.home, reload_s=0.0)
    (registry.home / SERVING).write_text('{"audit_rate": 7}', encoding="utf-8")
    registry.activate("v0002")
    answer = router.route(SURE)
    assert (answer.policy, router.settings) == ("v0002", QUIET)
    assert router.counts["fault:reload"] == 1
    assert "audit_rate = 7" in caplog.text
    with pytest.raises(PolicyError, match="audit_rate = 7"):
        Router.load(registry.home)


def test_what_failed_is_tried_again_later(registry: PolicyRegistry) -> None:
    now = [0.0]
    source = HomeSource(registry.home, reload_s=0.0, clock=lambda: now[0])
    current, faults = [source.start()], []

    def look() -> str | None:
        def swap(state: State) -> None:
            current[0] = state

        source.refresh(lambda: current[0], swap, lambda: faults.append(now[0]))
        return current[0].version

    manifest = registry.folder / "v0002" / "manifest.json"
    whole = manifest.read_bytes()
    manifest.write_bytes(b"{}")
    registry.activate("v0002")
    assert look() == "v0001"
    manifest.write_bytes(whole)
    now[0] = RETRY_S - 0.1
    assert look() == "v0001"
    now[0] = RETRY_S
    assert look() == "v0002"
    mine = current[0]
    now[0] = 10 * RETRY_S
    look()
    assert current[0] is mine, "what went well is not done again"
    assert faults == [0.0]


def test_a_start_while_switched_off_gets_its_policy_later(
    registry: PolicyRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = registry.folder / "v0001" / "manifest.json"
    whole = manifest.read_bytes()
    manifest.write_bytes(b"{}")
    monkeypatch.setenv(KILL_SWITCH, "1")
    monkeypatch.setattr(states, "RETRY_S", 0.0)
    router = Router.load(registry.home, reload_s=0.0)
    assert router.policy is None
    manifest.write_bytes(whole)
    monkeypatch.delenv(KILL_SWITCH)
    assert router.route(SURE).policy == "v0001"


def test_a_version_that_is_gone_still_serves(registry: PolicyRegistry) -> None:
    """Its weights are mapped from files that no folder names any more."""
    registry.activate("v0002")
    router = Router.load(registry.home, reload_s=None)
    registry.activate("v0001")
    registry.remove("v0002")
    assert consistent(router.route(SURE))
    assert all(consistent(answer) for answer in router.route_many([SURE] * 50))


def test_a_new_policy_with_another_embedder_is_not_taken_up(
    policies: dict[str, Policy], embedder: CallableEmbedder, tmp_path: Path
) -> None:
    registry = PolicyRegistry(tmp_path)
    QUIET.write(tmp_path)
    policy = identified(policies["both"], embedder)
    other = CallableEmbedder(lambda texts: np.ones((len(texts), 384)), "other", digest="other-1")
    versions = [registry.save(p).version for p in (policy, replace(policy, embedder=other.identity), policy)]
    registry.activate(versions[0])
    router = Router.load(tmp_path, embedder=embedder, reload_s=0.0)
    for version, served in ((versions[1], versions[0]), (versions[2], versions[2])):
        registry.activate(version)
        assert router.route(SURE).policy == served
        assert router.embedder is embedder
    assert router.counts["fault:reload"] == 1


@pytest.fixture
def promoting(registry: PolicyRegistry) -> Iterator[threading.Event]:
    """Promotes back and forth, the teacher alone among them, until told to stop."""
    stop = threading.Event()

    def go() -> None:
        while not stop.is_set():
            for version in ("v0002", None, "v0001"):
                registry.activate(version)

    thread = threading.Thread(target=go)
    thread.start()
    yield stop
    stop.set()
    thread.join()


def test_no_request_is_lost_while_policies_change(registry: PolicyRegistry, promoting: threading.Event) -> None:
    n, each = 6, 400
    router = Router.load(registry.home, reload_s=0.0, teacher=shout)
    answers: list[Answer] = []

    def ask() -> None:
        for i in range(each):
            answers.extend(router.route_many([SURE] * 3) if i % 4 == 0 else [router.route(SURE)])

    threads = [threading.Thread(target=ask) for _ in range(n)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    promoting.set()
    assert len(answers) == n * (each // 4 * 3 + each * 3 // 4)
    assert all(consistent(answer) for answer in answers)
    assert {answer.policy for answer in answers} == {"v0001", "v0002", None}
    assert all(answer.label == (answer.surrogate_label or SURE.upper()) for answer in answers)
    assert "fault:reload" not in router.counts
    tallies: dict[str | None, int] = {}
    while tally := router.take_tally():
        tallies[tally.policy] = tally.n
    assert sum(tallies.values()) == len(answers)
    assert tallies.get("v0001") == sum(answer.policy == "v0001" for answer in answers)


def test_no_async_request_is_lost_while_policies_change(registry: PolicyRegistry, promoting: threading.Event) -> None:
    router = Router.load(registry.home, reload_s=0.0)

    async def ask() -> list[Answer]:
        return [await router.aroute(SURE) for _ in range(40)]

    async def together() -> list[list[Answer]]:
        return await asyncio.gather(*(ask() for _ in range(10)))

    answers = [answer for batch in asyncio.run(together()) for answer in batch]
    promoting.set()
    assert len(answers) == 400
    assert all(consistent(answer) for answer in answers)
