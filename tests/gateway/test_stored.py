"""Answers that later calls may refer to: the teacher's alone, unless the task says that no client does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.gateway.conftest import Known
from tests.gateway.serving import MODEL, SYSTEM, place, serve, settings
from tests.gateway.standin import Standin
from tracer.policies.serving_settings import ServingSettings

RESPONSES = "/v1/responses"


@pytest.mark.parametrize(
    ("task", "more", "decision", "reason"),
    [
        ("stateless: false", {}, "deferred", "stored"),
        ("stateless: false", {"store": False}, "handled", "handled"),
        ("stateless: true", {}, "handled", "handled"),
        ("stateless: true", {"store": True}, "passed", "unanswerable"),
        ("stateless: true", {"previous_response_id": "resp_1"}, "passed", "unanswerable"),
    ],
)
def test_who_answers_a_response_that_is_kept(
    known: Known, tmp_path: Path, task: str, more: dict[str, Any], decision: str, reason: str
) -> None:
    place(known.home, tmp_path, ServingSettings(audit_rate=0.0))
    text, label = next(iter(known.handled.items()))
    with Standin({text: label}) as api, serve(settings(api.url, tmp_path, task), tmp_path) as served:
        response = served.post({"model": MODEL, "instructions": SYSTEM, "input": text, **more}, RESPONSES)
        assert (response.headers["x-tracer-decision"], response.headers["x-tracer-reason"]) == (decision, reason)
        assert len(api.asked) == (decision != "handled")
        # What the teacher says of calls that are never handled trains, and certifies nothing.
        assert [trace.origin for trace in served.traces()] == (["requested"] if reason == "stored" else [])


def test_what_is_observed_is_a_plain_sample_all_the_same(known: Known, tmp_path: Path) -> None:
    text, label = next(iter(known.handled.items()))
    task = "mode: observe\nstateless: false"
    with Standin({text: label}) as api, serve(settings(api.url, tmp_path, task), tmp_path) as served:
        served.post({"model": MODEL, "instructions": SYSTEM, "input": text}, RESPONSES)
        assert [trace.origin for trace in served.traces()] == ["bootstrap"]
