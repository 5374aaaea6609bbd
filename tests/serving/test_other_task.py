"""A policy that imitates another teacher or prompt is not asked."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tracer.policies.policy import Policy
from tracer.policies.registry import PolicyRegistry
from tracer.policies.serving_settings import ServingSettings
from tracer.serving.router import Router
from tracer.types import Trace

TEXT = "refund my money"
LIVE = ServingSettings(audit_rate=0.0)


@pytest.fixture
def policy(tiny_policy: Policy) -> Policy:
    return replace(tiny_policy, task={"fingerprints": [["gpt-5", "v3"]]})


@pytest.mark.parametrize(
    ("teacher", "prompt", "answers"),
    [("gpt-5", "v3", True), (None, None, True), ("gpt-5", None, True), ("gpt-5", "v4", False), ("gpt-6", "v3", False)],
)
def test_a_named_teacher_or_prompt_must_be_the_one_imitated(
    policy: Policy, teacher: str | None, prompt: str | None, answers: bool
) -> None:
    answer = Router(policy, teacher_name=teacher, prompt=prompt).route(TEXT)
    assert answer.handled is answers
    if not answers:
        assert (answer.reason, answer.origin, answer.seen) == ("other_task", "bootstrap", None)


def test_its_labels_are_the_first_of_the_new_task(policy: Policy) -> None:
    found: list[Trace] = []
    router = Router(policy, teacher=lambda _: "refund", record=found.append, teacher_name="gpt-5", prompt="v4")
    assert router.route(TEXT).source == "teacher"
    assert [(t.origin, t.prompt, t.label, t.seen) for t in found] == [("bootstrap", "v4", "refund", None)]


def test_the_next_policy_of_the_new_task_is_asked(policy: Policy, tmp_path: Path) -> None:
    registry = PolicyRegistry(tmp_path)
    registry.activate(registry.save(policy).version)
    router = Router.load(tmp_path, settings=LIVE, reload_s=0.0, teacher_name="gpt-5", prompt="v4")
    assert router.route(TEXT).reason == "other_task"
    renewed = replace(policy, task={"fingerprints": [["gpt-5", "v4"]]})
    registry.activate(registry.save(renewed).version)
    assert router.route(TEXT).handled
