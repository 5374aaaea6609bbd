"""Performance held by counts, not by the clock: what is trained how often, what is loaded, what a decision does.

Whatever makes one of these fail makes the product slower on every machine.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tracer import data, flywheel, pipeline
from tracer.config import FitConfig
from tracer.features import lexical as lexical_module
from tracer.features.lexical import LexicalFeatures, count_ngrams
from tracer.learning import crossfit, logistic
from tracer.learning.heads import Head
from tracer.learning.neighbours import MAX_PROTOTYPES
from tracer.learning.pool import Learner
from tracer.pipeline import Certified
from tracer.pipeline.certifying import draft, reloaded
from tracer.pipeline.training import Workshop
from tracer.policies.policy import Policy
from tracer.types import Dataset


@contextmanager
def counted_calls() -> Iterator[Counter[str]]:
    """Calls of functions, ours and built-in ones, while inside. Deterministic for one version of everything."""
    calls: Counter[str] = Counter()

    def note(frame: FrameType, event: str, argument: object) -> None:
        if event == "c_call":
            calls["built-in"] += 1
        elif event == "call":
            calls[frame.f_code.co_name] += 1

    sys.setprofile(note)
    try:
        yield calls
    finally:
        sys.setprofile(None)


def decisions_calls(policy: Policy, *given: Any) -> int:
    policy.decide(*given)  # what is prepared once is prepared
    with counted_calls() as calls:
        policy.decide(*given)
    return sum(calls.values())


@pytest.mark.parametrize("pool", ["lean", "full"])
def test_no_recipe_is_trained_twice_on_the_same_rows(
    pool: str, small: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainings: list[tuple[str, bytes]] = []
    train = crossfit._Bench.train

    def noted(self: Any, learner: Learner, rows: NDArray[np.intp], start: Head | None) -> Head:
        trainings.append((learner.name, rows.tobytes()))
        return train(self, learner, rows, start)

    monkeypatch.setattr(crossfit._Bench, "train", noted)
    verdict = pipeline.fit(small, FitConfig(targets=(0.6, 0.7, 0.8), pool="full" if pool == "full" else "lean"))
    assert max(Counter(trainings).values()) == 1
    assert len(trainings) == verdict.report.n_trainings, "three targets share one training"
    folds = Counter(name for name, _ in trainings)
    assert max(folds.values()) == 6, "five folds and the whole"


def test_a_fit_hashes_each_training_text_once(small_texts: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: Counter[str] = Counter()
    keys = lexical_module._keys

    def noted(texts: Any) -> Any:
        seen.update(texts)
        return keys(texts)

    monkeypatch.setattr(lexical_module, "_keys", noted)
    texts = replace(small_texts, texts=tuple(f"{text} {i}" for i, text in enumerate(small_texts.texts or ())))
    pipeline.fit(texts, FitConfig(targets=(0.8,), features="lexical"))
    # One contender: training texts are hashed by the fit, shadow texts by the gate.
    assert {seen[text] for text in texts.texts or ()} == {1}


def test_an_update_neither_screens_again_nor_starts_from_nothing(
    messages: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes: Counter[str] = Counter()
    loss = logistic._Rows.loss

    def noted(self: Any, *given: Any) -> Any:
        passes["of the rows"] += 1
        return loss(self, *given)

    monkeypatch.setattr(logistic._Rows, "loss", noted)
    texts = replace(messages, dense=None, embedder=None)
    flywheel.fit(texts.take(np.arange(2600)), home=tmp_path, config=FitConfig(targets=(0.7,), features="lexical"))
    whole = passes.total()
    passes.clear()
    updated = flywheel.update(texts.take(np.arange(2600, 2626)), home=tmp_path)
    assert updated.report.n_trainings == 1
    assert passes.total() <= 6 < whole / 12


def test_serving_loads_no_training_library(fitted: tuple[Path, Certified]) -> None:
    code = f"""
import json, sys
from tracer import Router
router = Router.load({str(fitted[0])!r})
answer = router.route("where is my parcel")
heavy = {{"scipy", "sklearn", "pandas", "torch", "onnxruntime", "asyncio", "threadpoolctl", "sqlite3", "safetensors"}}
print(json.dumps([answer.reason, sorted(heavy & {{name.split(".")[0] for name in sys.modules}})]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    reason, loaded = json.loads(done.stdout)
    assert reason in ("handled", "below_threshold", "novel")
    assert loaded == []


def test_a_gateway_starts_without_the_training_side(fitted: tuple[Path, Certified], tmp_path: Path) -> None:
    shutil.copytree(fitted[0], tmp_path / "tasks" / "desk")
    config = tmp_path / "tracer.yaml"
    upstream = "upstreams: {main: {base_url: 'http://127.0.0.1:9/v1'}}"
    config.write_text(f"home: {tmp_path}\n{upstream}\ntasks: {{desk: {{match: {{models: [desk]}}, mode: live}}}}\n")
    code = f"""
import json, sys
import uvicorn
text = {next(iter(data.northlight().texts or ()))!r}

def run(server):
    gateway = server.config.app.plane.app._gateway
    assert gateway.serving.lines["desk"].router.route(text).policy == "v0001"
    json.dump(sorted(sys.modules), sys.stdout)
    server.started = True

uvicorn.Server.run = run
sys.argv = ["tracer", "serve", "--config", {str(config)!r}]
from tracer.cli import main
main()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    loaded = set(json.loads(done.stdout))
    assert {"numpy", "sqlalchemy", "tracer.gateway.app"} <= loaded
    heavy = {"scipy", "sklearn", "pandas", "pyarrow", "torch", "onnxruntime", "threadpoolctl", "safetensors", "jinja2"}
    assert not heavy & {name.split(".")[0] for name in loaded}
    assert not {"tracer.pipeline", "tracer.explanations", "tracer.reporting", "tracer.learning.crossfit"} & loaded


def made(shop: Workshop, name: str) -> Policy:
    contender = next(c for c in shop.contenders if c.name == name)
    return reloaded(draft(shop, contender, "2026-04-14T12:00:00+00:00", None))


@pytest.mark.parametrize(
    ("name", "most"), [("dense logistic", 150), ("lexical logistic", 220), ("dense logistic + lexical logistic", 280)]
)
def test_a_decision_is_a_bounded_number_of_calls(name: str, most: int, shop: Workshop, small: Dataset) -> None:
    policy = made(shop, name)
    texts = ["my order has not come and i want to know where it is"]
    assert small.dense is not None
    assert decisions_calls(policy, texts, small.dense[:1]) <= most


def test_a_decision_does_not_grow_with_the_traces(messages: Dataset) -> None:
    """Four times the traces: as many calls, and no array of the policy has a row a trace."""
    config = FitConfig(targets=(0.8,), features="dense", neighbours=False)
    small_, large = (
        pipeline.fit(dataset, replace(config, shadow_share=0.1))
        for dataset in (messages.take(np.arange(2250)), repeated(messages, 3))
    )
    assert isinstance(small_, Certified)
    assert isinstance(large, Certified)
    x = (messages.dense if messages.dense is not None else np.empty(0))[:1]
    assert decisions_calls(small_.policy, None, x) == decisions_calls(large.policy, None, x) <= 75
    for verdict in (small_, large):
        candidate = verdict.policy.candidate
        arrays = [array for part in candidate.surrogate.parts for array in part.head.arrays().values()]
        assert all(array.shape[0] <= max(MAX_PROTOTYPES, x.shape[1]) for array in arrays)


def repeated(dataset: Dataset, times: int) -> Dataset:
    """More traces of the same law: the same rows with a little noise, under ids of their own."""
    assert dataset.dense is not None
    dense = np.tile(dataset.dense, (times, 1))
    noise = np.random.default_rng(0).normal(scale=0.01, size=dense.shape)
    return Dataset.from_columns(dataset.labels * times, dense=dense + noise, embedder=dataset.embedder)


def calls_to_hash(texts: list[str]) -> int:
    count_ngrams(texts)
    with counted_calls() as calls:
        count_ngrams(texts)
    return sum(calls.values())


def test_hashing_has_no_loop_over_ngrams() -> None:
    """Fifty times the words: as many calls. Ten times the texts: a few calls a text, to normalise it."""
    text = "my order has not come and i want to know where it is"
    # Powers of the base are made anew for long batches only: a dozen calls.
    assert abs(calls_to_hash([text] * 50) - calls_to_hash([" ".join([text] * 50)] * 50)) <= 25
    assert (calls_to_hash([text] * 500) - calls_to_hash([text] * 50)) / 450 <= 7


def test_one_text_is_hashed_as_many_are() -> None:
    texts = ["a late lamp", "Überweisung, bitte!", "", "late late lamp"]
    features = LexicalFeatures.fit(texts, min_count=1)
    together = features.transform(texts).toarray()
    for row, text in zip(together, texts, strict=True):
        columns, values, _ = features.transform_one(text)
        assert np.flatnonzero(row).tolist() == columns.tolist()
        assert row[columns] == pytest.approx(values, abs=1e-7)


def test_a_batch_embeds_in_one_call(policies: dict[str, Policy], small: Dataset) -> None:
    calls: list[int] = []

    def embed(texts: Any) -> Any:
        calls.append(len(texts))
        assert small.dense is not None
        return small.dense[: len(texts)]

    decided: Callable[..., Any] = policies["cascade"].decide
    stages = decided(small.texts, None, embed).stage
    assert calls == [int((stages == 2).sum())]
    assert calls[0] < len(small)
