"""What the decision formats share: choice questions, answers with probabilities, and no streams.

Several questions of one call make one joint label, as several fields of a JSON schema do.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tracer.errors import CodecError
from tracer.gateway.calls import Call, Scalar, Slot
from tracer.gateway.codecs.base import Codec, Written
from tracer.gateway.codecs.bodies import canonical, dumps, encode, loads, read_object, shaped, tokens
from tracer.gateway.codecs.openai_errors import error_body, error_data
from tracer.gateway.codecs.schema_reader import label_of
from tracer.gateway.codecs.sse import Event
from tracer.types import Usage


class ChoiceCodec(Codec):
    """A format whose answers each name one of the choices; only a request of choice questions alone is answered."""

    def error(self, status: int, message: str, type: str | None = None) -> bytes:  # noqa: A002
        return error_body(status, message, type)

    def error_event(self, status: int, message: str, type: str | None = None) -> bytes:  # noqa: A002
        return error_data(status, message, type)

    def facts(self, call: Call, response_body: bytes) -> dict[str, Any]:
        """``probabilities`` by label and the ``confidence`` of a single choice, as the answer says; empty else."""
        try:
            answers = self._answers(call, read_object(response_body)) or []
        except CodecError:
            return {}
        told = self._told(answers[0]) if len(answers) == 1 else {}
        confidence = answers[0].get("confidence") if told else None
        return {"probabilities": told} | ({"confidence": confidence} if _is_number(confidence) else {}) if told else {}

    def with_facts(self, call: Call, body: bytes, facts: Mapping[str, Any]) -> bytes:
        """An answer of ``answer`` to a single choice with these facts in it, where they name each of its labels."""
        told = facts.get("probabilities", {})
        if len(call.slot.fields) != 1 or {label_of(value) for value in call.slot.values[0]} != set(told):
            return body
        reply = read_object(body)
        answers = self._answers(call, reply)
        if answers is None:
            return body
        values = call.slot.values[0]
        answers[0]["probabilities"] = self._listed(values, [told[label_of(value)] for value in values])
        answers[0]["confidence"] = facts.get("confidence", max(told.values()))
        return encode(reply)

    def _text(self, call: Call, reply: Mapping[str, Any]) -> str | None:
        answers = self._answers(call, reply)
        if not answers or len(answers) != len(call.slot.fields):
            return None
        chosen = [answer.get("choice") if answer.get("type") == "choice" else None for answer in answers]
        if not all(isinstance(choice, str | bool) for choice in chosen):
            return None
        return dumps(dict(zip(call.slot.fields, chosen, strict=True)))

    def _chosen(self, call: Call, new: Written) -> list[dict[str, Any]]:
        """The answers to all questions, in their order, shaped like those of the form."""
        found = loads(new.text)
        likes = self._answers(call, new.form or {}) or []
        out = []
        for i, (name, values) in enumerate(zip(call.slot.fields, call.slot.values, strict=True)):
            probabilities = spread(values, found[name], new.confidence)
            answer = {
                "type": "choice",
                **self._named(call, i),
                "choice": found[name],
                "probabilities": self._listed(values, probabilities),
                "confidence": max(probabilities),
            }
            out.append(shaped(answer, likes[i] if i < len(likes) else None, answer))
        return out

    def _usage(self, reply: Mapping[str, Any]) -> Usage | None:
        return tokens(reply, "input_tokens", "output_tokens")

    def _assembled(self, events: Iterable[Event]) -> dict[str, Any] | None:
        return None

    def _events(self, call: Call, new: Written) -> list[bytes]:
        raise CodecError("decisions are not streamed")

    @abstractmethod
    def _answers(self, call: Call, reply: Mapping[str, Any]) -> list[dict[str, Any]] | None:
        """The answers to the questions in their order, None where there are not as many."""

    @abstractmethod
    def _listed(self, values: Sequence[Scalar], probabilities: Sequence[float]) -> Any:
        """Probabilities as the format writes them."""

    def _named(self, call: Call, i: int) -> dict[str, Any]:
        """What the answer to question i repeats of it."""
        return {}

    def _told(self, answer: Mapping[str, Any]) -> dict[str, float]:
        """The probabilities of an answer by label; empty where it has none."""
        told = answer.get("probabilities")
        if isinstance(told, list):
            told = {
                label_of(one["value"]): one.get("probability")
                for one in told
                if isinstance(one, dict) and isinstance(one.get("value"), str | bool)
            }
        return dict(told) if isinstance(told, dict) and all(map(_is_number, told.values())) else {}


def choice_slot(questions: Sequence[tuple[str, Sequence[Any]]], why: list[str]) -> Slot:
    """The slot of choice questions, each a name and its choices; the name of a single one may be ""."""
    names = tuple(name for name, _ in questions)
    for _, values in questions:
        if not values or not all(isinstance(value, str | bool) for value in values):
            raise CodecError("choices are strings or booleans")
        if len({label_of(value) for value in values}) < len(values):
            why.append("choices that read alike")
    if len(set(names)) < len(names):
        why.append("several questions without names of their own")
        return Slot("json")
    return Slot("json", fields=names, values=tuple(tuple(values) for _, values in questions), order=names)


def spread(values: Sequence[Scalar], chosen: object, confidence: float | None) -> list[float]:
    """A probability for each value: the chosen one's is ``confidence``, one by default, and the others share the rest.

    A surrogate has one calibrated number, not a distribution. The chosen value is never less probable than another.
    """
    others = len(values) - 1
    top = 1.0 if confidence is None or not others else min(max(1 / len(values), confidence), 1.0)
    rest = (1.0 - top) / others if others else 0.0
    return [round(top if canonical(value) == canonical(chosen) else rest, 6) for value in values]


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
