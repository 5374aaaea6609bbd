"""Texts a second of an encoder and of its ONNX exports, and what a cascade saves, in one run.

python -m benchmarks.speed_encoder --data FOLDER

Banking77's test messages: embedded many at a time and one by one by sentence-transformers, by the ONNX export and by
the one in eight bits; then routed one by one by a cascade that asks the encoder where it must, and where it is
always asked.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import (
    CACHE,
    ENCODER,
    QUICK_ROWS,
    Task,
    arguments,
    draw,
    footer,
    load_task,
    on_test,
    share,
    silent,
    table,
    write_result,
)
from tracer import flywheel, pipeline
from tracer.config import FitConfig
from tracer.features.dense import Embedder
from tracer.features.local import SentenceTransformerEmbedder
from tracer.features.onnx import OnnxEmbedder, export_encoder
from tracer.features.sources import embedder_from_name
from tracer.pipeline import Encodings, Refused
from tracer.policies.policy import Policy
from tracer.serving.router import Router
from tracer.types import Dataset

TARGET = 0.95
ENCODER_COSTS = (FitConfig().encoder_cost, 0.01, 0.05, 0.2)
"""Prices of an encoder call, as shares of a teacher call; the first at which a cascade is deployed is used."""
BATCHES = (16, 64)
ROUNDS = 3
TURN = 64
"""Texts that one takes before the next has its turn."""
_PACKAGES = ("torch", "sentence-transformers", "onnxruntime", "tokenizers")

ST, FLOAT32, INT8 = "sentence-transformers", "ONNX, float32", "ONNX, int8"


def main() -> None:
    """Export, time the encoders, then fit and time the cascade."""
    given = arguments(__doc__ or "")
    task = load_task(given.data, "banking77", limit=QUICK_ROWS if given.quick else None)
    texts = draw(task.test, 512 if given.quick else 2048, 0).texts or ()
    with tempfile.TemporaryDirectory() as scratch:
        folders = {FLOAT32: Path(scratch) / "float32", INT8: Path(scratch) / "int8"}
        manifests = {name: export_encoder(ENCODER, path, int8=name == INT8) for name, path in folders.items()}
        content = {
            "data": task.name,
            "digest": task.digest,
            "versions": {package: version(package) for package in _PACKAGES},
            "parity": {name: asdict(manifest.parity) for name, manifest in manifests.items()},
            "n_texts": len(texts),
            "encoders": _encoders(folders, texts),
            "cosine": _cosine(folders, texts),
            "cascade": _cascade(task, folders[FLOAT32], 300 if given.quick else len(task.test)),
            "fits": _fits(task, folders[INT8]),
        }
    write_result("speed_encoder", content, quick=given.quick)


def _encoders(folders: dict[str, Path], texts: Sequence[str]) -> dict[str, Any]:
    """Texts a second by batch size, the median of rounds in which all take turns, and one text's time."""
    made: dict[tuple[str, int], Embedder] = {}
    for batch in BATCHES:
        made[ST, batch] = SentenceTransformerEmbedder(ENCODER, batch_size=batch, device="cpu")
        made[FLOAT32, batch] = OnnxEmbedder(folders[FLOAT32], batch_size=batch)
    made[INT8, 1] = OnnxEmbedder(folders[INT8])  # always one by one
    together: dict[tuple[str, int], list[float]] = {key: [] for key in made}
    for number in range(ROUNDS + 1):
        for key, embedder in made.items():
            began = time.perf_counter()
            embedder.embed(texts)
            if number:  # the first round warms up
                together[key].append(time.perf_counter() - began)
    out: dict[str, Any] = {name: {"texts_s": {}} for name, _ in made}
    for (name, batch), seconds in together.items():
        out[name]["texts_s"][str(batch)] = round(len(texts) / float(np.median(seconds)), 1)
    alone = _milliseconds({name: _alone(embedder) for (name, _), embedder in made.items()}, texts[:256])
    for name, each in alone.items():
        out[name]["p50_ms"] = round(float(np.median(each)), 2)
        print(name, out[name], flush=True)
    return out


def _cosine(folders: dict[str, Path], texts: Sequence[str]) -> dict[str, float]:
    """Cosine of int8 vectors to float32 ones."""
    ours, theirs = (OnnxEmbedder(folders[name]).embed(texts) for name in (INT8, FLOAT32))
    cosines = (ours * theirs).sum(axis=1)
    return {"median": round(float(np.median(cosines)), 4), "min": round(float(cosines.min()), 4)}


def _cascade(task: Task, folder: Path, n: int) -> dict[str, Any] | None:
    """A deployed cascade on the test messages: who answers, and the mean time of a decision, one by one.

    The same policy decides both times; what differs is when the encoder is asked.
    """
    found = _deployed_cascade(task)
    if found is None:
        return None
    policy, cost = found
    messages = draw(task.test, n, 1).texts or ()
    embedders: dict[str, Embedder] = {
        FLOAT32: OnnxEmbedder(folder), ST: SentenceTransformerEmbedder(ENCODER, device="cpu"),
    }  # fmt: skip
    timed: dict[str, dict[str, float]] = {}
    for name, embedder in embedders.items():
        router = Router(policy, embedder=embedder)
        taken = _milliseconds({"cascade": router.route, "always": _always(router, embedder)}, messages)
        timed[name] = {kind: round(float(np.mean(each)), 2) for kind, each in taken.items()}
        print("cascade,", name, timed[name], flush=True)
    facts = {"encoder_cost": cost, "surrogate": policy.candidate.name, "n_timed": len(messages), "mean_ms": timed}
    return facts | on_test(policy, task.test)


def _deployed_cascade(task: Task) -> tuple[Policy, float] | None:
    for cost in ENCODER_COSTS:
        verdict = pipeline.fit(
            task.train, FitConfig(targets=(TARGET,), encoder_cost=cost, ledger="promotion"), encodings=task.encodings
        )
        if not isinstance(verdict, Refused) and verdict.policy.family == "cascade":
            return verdict.policy, cost
    return None


def _fits(task: Task, folder: Path) -> dict[str, Any]:
    """What certifies on float32 vectors and on those in eight bits, on the same traces."""
    eight = embedder_from_name(f"onnx:{folder}", cache=CACHE)
    train, encodings = _embedded(task.train, eight)
    test, _ = _embedded(task.test, eight)
    out = {}
    for name, dataset, tested, known in (
        ("float32", task.train, task.test, task.encodings),
        ("int8", train, test, encodings),
    ):
        verdict = pipeline.fit(dataset, FitConfig(targets=(TARGET,), ledger="promotion"), encodings=known)
        out[name] = None if isinstance(verdict, Refused) else on_test(verdict.policy, tested)
    return out


def _embedded(dataset: Dataset, embedder: Embedder) -> tuple[Dataset, Encodings | None]:
    plain = replace(dataset, dense=None, embedder=None)
    return flywheel.embed_dataset(plain, embedder, FitConfig(), silent)


def _alone(embedder: Embedder) -> Callable[[str], object]:
    return lambda text: embedder.embed([text])


def _always(router: Router, embedder: Embedder) -> Callable[[str], object]:
    return lambda text: router.route(text, embedding=embedder.embed([text])[0])


def _milliseconds(calls: Mapping[str, Callable[[str], object]], texts: Sequence[str]) -> dict[str, list[float]]:
    """The time of each call on each text, by name. They take turns, some texts each, and each turn warms up."""
    out: dict[str, list[float]] = {name: [] for name in calls}
    for start in range(0, len(texts), TURN):
        turn = texts[start : start + TURN]
        for name, call in calls.items():
            for text in turn[:4]:
                call(text)
            for text in turn:
                began = time.perf_counter()
                call(text)
                out[name].append(1000 * (time.perf_counter() - began))
    return out


def render(result: dict[str, Any]) -> str:
    """Texts a second and one text's time, then what the cascade saves."""
    encoders = result["encoders"]
    rows = []
    for name, found in encoders.items():
        batch, fastest = max(found["texts_s"].items(), key=lambda item: float(item[1]))
        times = fastest / max(encoders[ST]["texts_s"].values())
        rows.append([name, f"{fastest:,.0f}", batch, f"{times:.1f}", f"{found['p50_ms']:.1f}"])
    speed = table(["encoder", "texts a second", "batch", "times faster", "one text, ms (median)"], rows)
    versions = ", ".join(f"{package} {number}" for package, number in result["versions"].items())
    worst, cosine = result["parity"][FLOAT32]["worst_difference"], result["cosine"]
    return f"""## The encoder, and calls to it that a cascade saves

all-MiniLM-L6-v2 on {result["n_texts"]:,} messages of Banking77, on the processor: through sentence-transformers, and exported
with `tracer export-encoder`. Texts a second are the median of {ROUNDS} rounds in which all take turns, at the faster of
batches of {" and ".join(map(str, BATCHES))}; the export in eight bits runs texts one by one. The float32 export differs from its source by at most
{worst:.0e} in any coordinate; the cosine of int8 vectors to its own is {cosine["median"]} in the median, {cosine["min"]} at worst.

{speed}

{_render_cascade(result["cascade"])}
{_render_fits(result["fits"])}
{versions}. {footer(result)}
"""


def _render_cascade(cascade: dict[str, Any] | None) -> str:
    if cascade is None:
        return "No cascade was deployed at any price of an encoder call.\n"
    n, without = cascade["n"], cascade["n"] - cascade["n_encoder"]
    rows = [
        [name, f"{ms['always']:.2f}", f"{ms['cascade']:.2f}", f"{1 - ms['cascade'] / ms['always']:.0%}"]
        for name, ms in cascade["mean_ms"].items()
    ]
    head = ["encoder", "always asked, ms a message", "cascade, ms a message", "time saved"]
    return f"""The policy deployed at target {TARGET:g}, with an encoder call priced at {cascade["encoder_cost"]:g} of a teacher call, is a cascade:
{without:,} of {n:,} test messages ({share(without, n)}) are decided with no encoder call. Coverage {share(cascade["n_handled"], n)}, agreement
{share(cascade["n_agreed"], cascade["n_handled"])}. Mean time of a decision over {cascade["n_timed"]:,} messages, one by one, the same policy deciding both times:

{table(head, rows)}
"""


def _render_fits(fits: dict[str, Any]) -> str:
    rows = [
        [name, share(at["n_handled"], at["n"]), share(at["n_agreed"], at["n_handled"])]
        if at
        else [name, "refused", "-"]
        for name, at in fits.items()
    ]
    return f"""Eight bits are another embedder, with fits of its own. On the same traces, target {TARGET:g}:

{table(["fitted on vectors in", "coverage, test", "agreement, test"], rows)}
"""


if __name__ == "__main__":
    main()
