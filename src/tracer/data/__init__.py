"""Data that ships with Tracer: the Northlight support messages (CC0), for the demo and the tests."""

from __future__ import annotations

from importlib import resources

import numpy as np

from tracer.traces.loading import load_dataset
from tracer.types import Dataset


def northlight() -> Dataset:
    """2,650 support messages labelled with one of seven desks by a language model, and their embeddings.

    ``dense`` is (2650, 384): all-MiniLM-L6-v2, stored as float16.
    """
    folder = resources.files("tracer.data")
    with (
        resources.as_file(folder / "northlight.jsonl") as traces,
        resources.as_file(folder / "northlight.npy") as vectors,
    ):
        return load_dataset(traces, embeddings=vectors)[0]


def northlight_order(n: int, seed: int) -> np.ndarray[tuple[int], np.dtype[np.intp]]:
    """A seeded shuffle of n rows: the file's order is no order of arrival."""
    return np.random.default_rng(seed).permutation(n).astype(np.intp)
