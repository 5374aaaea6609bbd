"""Another teacher or prompt: the loop hears of it, and what came before does not call the old line back."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tracer import flywheel
from tracer.errors import TracerError
from tracer.flywheel import running
from tracer.flywheel.settings import Settings
from tracer.policies.registry import PolicyRegistry
from tracer.types import Dataset


def relabelled(messages: Dataset, rows: range, prompt: str | None) -> Dataset:
    """Traces of another prompt, or of the one that the home was fitted on."""
    few = replace(messages.take(np.arange(rows.start, rows.stop)), dense=None, embedder=None)
    few = replace(few, ids=tuple(f"{prompt}-{key}" for key in few.ids), numbers=np.arange(1, len(few) + 1))
    return replace(few, prompts=(prompt,) * len(few))


def append(home: Path, traces: Dataset) -> Settings:
    settings = Settings.read(home)
    assert settings is not None
    with flywheel.store_of(home, settings) as store:
        store.append(traces)
    return settings


def test_the_loop_hears_of_another_prompt_though_many_old_ones_wait(home: Path, messages: Dataset) -> None:
    append(home, relabelled(messages, range(1000, 1110), None))
    settings = append(home, relabelled(messages, range(1110, 1160), "2"))
    assert "prompt" not in running.due(home, settings).reason  # half of the newest are no majority
    settings = append(home, relabelled(messages, range(1160, 1161), "2"))
    wanted = running.due(home, settings)
    assert wanted.now
    assert wanted.reason == "most new traces come from another teacher or prompt"


def test_a_line_that_has_too_little_to_learn_from_stays_the_line(home: Path, messages: Dataset) -> None:
    append(home, relabelled(messages, range(1000, 1060), None))
    two = replace(relabelled(messages, range(1100, 1200), "2"), labels=("one label",) * 100)
    append(home, replace(two, space=type(two.space).observed(two.labels), y=np.zeros(100, dtype=np.int32)))
    for _ in range(2):
        with pytest.raises(TracerError):  # one label is nothing to learn
            flywheel.update(home=home)
        settings = Settings.read(home)
        assert settings is not None
        assert settings.line.number == 2
        assert PolicyRegistry(home).active_version() is None
        assert "prompt" not in running.due(home, settings).reason
