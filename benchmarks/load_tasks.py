"""What `benchmarks.gateway_load` asks: real messages under a prompt of a real kind, and the policies that answer them."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

import numpy as np

from benchmarks.common import draw
from tracer import flywheel
from tracer.config import FitConfig
from tracer.features.sources import embedder_from_name
from tracer.policies.registry import PolicyRegistry
from tracer.traces.loading import load_dataset
from tracer.types import Dataset

DATA = "banking77"
TARGET = 0.95
AUDIT_RATE = 0.02
SEED = 20261124
_PACKAGES = ("starlette", "uvicorn", "uvloop", "httptools", "h11", "httpx2", "onnxruntime")


def instructions(labels: Sequence[str]) -> str:
    """A prompt as such tasks have it: it names all labels."""
    return (
        "You route messages of a bank's customers. Read the message and answer with the one intent that fits it best, "
        "exactly as it is written in this list, and with nothing else.\n" + "\n".join(f"- {label}" for label in labels)
    )


def body(model: str, prompt: str, text: str, labels: Sequence[str] | None = None) -> str:
    """A chat completion's request; with ``labels``, the answer is JSON that names one of them."""
    messages = [{"role": "system", "content": prompt}, {"role": "user", "content": text}]
    asked: dict[str, Any] = {"model": model, "temperature": 0, "messages": messages}
    if labels is not None:
        properties = {"intent": {"type": "string", "enum": list(labels)}}
        schema = {"type": "object", "properties": properties, "required": ["intent"], "additionalProperties": False}
        wanted = {"name": "intent", "strict": True, "schema": schema}
        asked["response_format"] = {"type": "json_schema", "json_schema": wanted}
    return json.dumps(asked)


def shuffled(values: Sequence[str], seed: int) -> list[str]:
    """The same in random order."""
    return [values[i] for i in np.random.default_rng([SEED, seed]).permutation(len(values))]


@dataclass(frozen=True, slots=True)
class Fitted:
    """A home with a policy in force, and which of the test messages it handles."""

    home: Path
    handled: tuple[str, ...]
    surrogate: str


def fitted(
    train: Dataset, test: Dataset, home: Path, features: Literal["lexical", "dense"], encoder: str | None = None
) -> Fitted:
    """A policy with defaults on text alone, or on an encoder's embeddings alone."""
    config = FitConfig(targets=(TARGET,), features=features, ledger="promotion")
    flywheel.fit(train, home=home, config=config, embedder=encoder)
    policy = PolicyRegistry(home).load()
    assert test.texts is not None
    vectors = embedder_from_name(encoder).embed(test.texts) if encoder is not None else None
    handled = policy.decide(test.texts if vectors is None else None, vectors).handled
    texts = tuple(text for text, yes in zip(test.texts, handled, strict=True) if yes)
    return Fitted(home, texts, policy.candidate.name)


def placed(known: Fitted, home: Path, tasks: Sequence[str]) -> None:
    """A copy of a fitted home for each task of a gateway."""
    for task in tasks:
        shutil.copytree(known.home, home / "tasks" / task)
        (home / "tasks" / task / "serving.json").unlink(missing_ok=True)


def texts_of(folder: Path, limit: int | None) -> tuple[Dataset, Dataset, str]:
    """Training and test messages without embeddings, and the digest of the files."""
    paths = [folder / DATA / f"{part}.jsonl" for part in ("train", "test")]
    train, test = (replace(load_dataset(path)[0], dense=None, embedder=None) for path in paths)
    return draw(train, limit or len(train), 0), test, file_digest(paths)


def file_digest(paths: Sequence[Path]) -> str:
    """One digest of the content of files."""
    digest = hashlib.sha256()
    for path in paths:
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def versions() -> dict[str, str]:
    """Of the packages that serve, where they are installed."""
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
