"""From an empty store to a policy that answers: observe, fit, shadow, live."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.conftest import LEXICAL, NOW
from tests.gateway.serving import asked, serve, settings
from tests.gateway.standin import Standin
from tracer import flywheel
from tracer.pipeline import Certified
from tracer.policies.serving_settings import ServingSettings
from tracer.types import Dataset


def test_from_an_empty_store_to_a_policy_that_answers(messages: Dataset, tmp_path: Path) -> None:
    assert messages.texts is not None
    labels = dict(zip(messages.texts, messages.labels, strict=True))
    home = tmp_path / "tasks" / "desk"
    with Standin(labels) as api:

        def config(mode: str) -> str:
            return settings(api.url, tmp_path, f"mode: {mode}\naudit_rate: 0.1")

        with serve(config("observe"), tmp_path) as served:
            for text in messages.texts[:700]:
                assert served.post(asked(text)).status_code == 200
        assert isinstance(flywheel.fit(home=home, config=LEXICAL, now=NOW), Certified)

        with serve(config("shadow"), tmp_path) as served:
            reasons = [served.post(asked(text)).headers["x-tracer-reason"] for text in messages.texts[700:720]]
            assert set(reasons) <= {"shadow", "audit"}
            assert all(trace.seen is not None for trace in served.traces()[-20:])

        ServingSettings("live", audit_rate=0.1).write(home)
        before = len(api.asked)
        with serve(config("live"), tmp_path) as served:
            answers: list[Any] = [(text, served.post(asked(text))) for text in messages.texts[720:920]]
            handled = [(text, one) for text, one in answers if one.headers["x-tracer-decision"] == "handled"]
            assert len(api.asked) - before == 200 - len(handled)
            assert len(handled) > 60
            agreed = [one.json()["choices"][0]["message"]["content"] == labels[text] for text, one in handled]
            assert sum(agreed) / len(agreed) > 0.7, "certified for 0.8"
            audits = [one for _, one in answers if one.headers["x-tracer-decision"] == "audit"]
            found = served.traces()[-(200 - len(handled)) :]
            assert sum(trace.origin == "audit" for trace in found) == len(audits)
            assert 5 <= len(audits) <= 40
            assert len({trace.prompt for trace in found}) == 1
            other = asked(handled[0][0])
            other["messages"][0]["content"] = "Another prompt."
            assert served.post(other).headers["x-tracer-reason"] == "other_task"
            assert served.post({**asked(handled[0][0]), "model": "gpt-x"}).headers["x-tracer-reason"] == "no_task"
