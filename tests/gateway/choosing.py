"""Answers of decision models: choices with probabilities, as OpenAI's and TypeSafe's APIs send them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

TOP = 0.9
"""Probability of the label; the other choices share the rest."""


def text_of(asked: Mapping[str, Any]) -> str:
    """What the questions are about."""
    state = asked.get("state")
    return state if isinstance(state, str) else json.dumps(state)


def decision(asked: Mapping[str, Any], label: str, n_in: int) -> dict[str, Any]:
    """The answer to OpenAI's questions."""
    answers = []
    for question in asked["questions"]:
        values = [choice["value"] for choice in question["choices"]]
        chances = _chances(values, label)
        pairs = [{"value": value, "probability": chance} for value, chance in zip(values, chances, strict=True)]
        answers.append(
            {
                "type": "choice",
                "name": question.get("name"),
                "choice": values[chances.index(max(chances))],
                "probabilities": pairs,
                "confidence": 0.8,
            }
        )
    usage = {
        "input_tokens": n_in,
        "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
        "output_tokens": 0,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": n_in,
    }
    return {"model": asked["model"], "answers": answers, "usage": usage}


def systemone(asked: Mapping[str, Any], label: str, n_in: int) -> dict[str, Any]:
    """The answer to System One's questions."""
    answers = {}
    for name, question in asked["questions"].items():
        values = list(question["criteria"])
        chances = _chances(values, label)
        answers[name] = {
            "type": "choice",
            "choice": values[chances.index(max(chances))],
            "confidence": 0.8,
            "probabilities": dict(zip(values, chances, strict=True)),
        }
    return {"model": asked["model"], "answers": answers, "usage": {"input_tokens": n_in, "output_tokens": 0}}


def _chances(values: list[Any], label: str) -> list[float]:
    spelled = [value if isinstance(value, str) else json.dumps(value) for value in values]
    top = spelled.index(label) if label in spelled else 0
    return [TOP if i == top else round((1 - TOP) / (len(values) - 1), 6) for i in range(len(values))]
