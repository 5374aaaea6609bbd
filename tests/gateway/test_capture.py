"""``capture: features``: vectors and digests are kept, no text is, and a policy can be fitted on them."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import NOW
from tests.gateway.serving import asked, serve, settings
from tests.gateway.standin import Standin
from tracer import flywheel
from tracer.config import FitConfig
from tracer.errors import ConfigError, TraceError
from tracer.features.dense import CallableEmbedder
from tracer.gateway import lines
from tracer.gateway.config import parse
from tracer.gateway.discovery import DISCOVERED
from tracer.gateway.workers import shared_out
from tracer.pipeline import Certified
from tracer.traces.digests import digest_of, n_digests
from tracer.traces.store import TraceStore
from tracer.types import FAILED, Dataset, Trace


@pytest.fixture
def words(monkeypatch: pytest.MonkeyPatch, embedder: CallableEmbedder) -> CallableEmbedder:
    monkeypatch.setattr(lines, "embedder_from_name", lambda _: embedder)
    return embedder


TASK = "mode: observe\ncapture: features\nembedder: words"


def test_a_policy_is_fitted_on_traces_without_their_texts(
    messages: Dataset, tmp_path: Path, words: CallableEmbedder
) -> None:
    assert messages.texts is not None
    texts, home = messages.texts[:800], tmp_path / "tasks" / "desk"
    labels = dict(zip(texts, messages.labels, strict=False))
    with Standin(labels) as api, serve(settings(api.url, tmp_path, TASK), tmp_path) as served:
        for text in texts:
            assert served.post(asked(text)).status_code == 200
        found = served.traces()
    assert [trace.text for trace in found] == [digest_of(text) for text in texts]
    assert [trace.label for trace in found] == list(messages.labels[:800])
    kept = b"".join(path.read_bytes() for path in sorted(tmp_path.rglob("*")) if path.is_file())
    assert not [text for text in texts if len(text) > 20 and text.encode() in kept]
    with TraceStore.open(home) as store:
        dataset = store.load()
    assert dataset.texts is None
    assert dataset.dense is not None
    np.testing.assert_allclose(dataset.dense, words.embed(texts), rtol=1e-6)

    verdict = flywheel.fit(home=home, embedder=words, config=FitConfig(targets=(0.7,)), now=NOW)
    assert isinstance(verdict, Certified)
    assert verdict.policy.needs == {"dense"}
    live = verdict.policy.decide(None, dense=words.embed(messages.texts[800:1100]))
    handled = np.flatnonzero(live.handled)
    agreed = [live.labels[i] == messages.labels[800 + i] for i in handled]
    assert len(handled) > 30
    assert np.mean(agreed) > 0.65


def test_what_is_redacted_is_so_before_it_is_embedded(tmp_path: Path, words: CallableEmbedder) -> None:
    task = TASK + "\nredact: ['[0-9]+']"
    with Standin() as api, serve(settings(api.url, tmp_path, task), tmp_path) as served:
        served.post(asked("call me at 5551234"))
        (trace,) = served.traces()
        dataset = served.gateway.serving.lines["desk"].store.load()
    masked = "call me at [redacted]"
    assert dataset.dense is not None
    assert trace.text == digest_of(masked)
    np.testing.assert_allclose(dataset.dense, words.embed([masked]), rtol=1e-6)


def test_digests_are_never_taken_for_words(tmp_path: Path, words: CallableEmbedder) -> None:
    rows = [Trace(f"t{i}", digest_of(f"text {i}"), "ab"[i % 2]) for i in range(60)]
    with TraceStore.open(tmp_path) as store:
        store.append(rows)
        with pytest.raises(TraceError, match=r"60 traces hold digests in place of texts, and no vector of 'table'"):
            store.without_vectors(words.identity)
        assert store.load().texts is not None
    with pytest.raises(TraceError, match="60 of 60 traces hold digests in place of texts"):
        flywheel.fit(home=tmp_path, now=NOW)
    assert n_digests(["sha256:" + "a" * 64, "sha256:a", "a", "sha256:" + "g" * 64]) == 1


def test_labels_come_after_a_reload_and_to_one_process(tmp_path: Path, words: CallableEmbedder) -> None:
    told = [settings("http://127.0.0.1:9", tmp_path, TASK + "\ncallers_label: true\ncallers_label_within_s: 3")]
    with serve(told[0], tmp_path, reader=lambda: told[0], tend_s=0.1) as served:
        ids = [served.post({"task": "desk", "text": f"text {i}"}, "/v1/classify").json()["id"] for i in range(4)]
        told[0] += "    delta: 0.03\n"
        before = served.gateway.serving
        loop = next(iter(served.gateway._work)).get_loop()
        asyncio.run_coroutine_threadsafe(served.gateway.reload(), loop).result(10.0)
        assert served.gateway.serving.lines["desk"] is not before.lines["desk"]
        for name in ids[:3]:
            handed = served.post({"task": "desk", "id": name, "label": "sales"}, "/v1/classify/label")
            assert handed.status_code == 200, handed.text
        time.sleep(4.0)
        found = [(trace.text, trace.label) for trace in served.traces()]
        assert found == [(digest_of(f"text {i}"), "sales" if i < 3 else FAILED) for i in range(4)]
    with pytest.raises(ConfigError, match="there must be one worker"):
        shared_out(parse(told[0], {}), 2)
    assert shared_out(parse(told[0].replace("callers_label: true", "callers_label: false"), {}), 2)


def test_features_need_an_embedder(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="capture = features: needs an embedder"):
        parse(settings("http://x", tmp_path, "capture: features"), {})


@pytest.mark.parametrize(
    ("task", "kept"),
    [("mode: observe", True), ("capture: 'off'", None), ("capture: hash", None), ("redact: ['Jane Doe']", False)],
)
def test_discovery_keeps_no_more_than_the_task(tmp_path: Path, task: str, kept: bool | None) -> None:
    """``kept``: whether the template shows a name; None where nothing is to be discovered."""
    values = {"type": "object", "properties": {"desk": {"enum": ["billing", "sales"]}}, "required": ["desk"]}
    form = {"type": "json_schema", "json_schema": {"name": "desk", "schema": values}}
    task = task if "mode" in task else f"{task}\nmode: observe"
    with Standin(default="sales") as api, serve(settings(api.url, tmp_path, task), tmp_path) as served:
        for i in range(40):
            said = served.post(asked(f"Record of the family of Jane Doe: complaint {i}", response_format=form))
            assert said.status_code == 200
    written = tmp_path / DISCOVERED
    assert written.exists() is (kept is not None)
    assert kept is None or ("Jane Doe" in written.read_text(encoding="utf-8")) is kept
