"""What the decision formats share: one choice question, its answer with probabilities, and no streams."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tracer.errors import CodecError
from tracer.gateway.calls import Call, Scalar, Slot
from tracer.gateway.codecs.base import Codec
from tracer.gateway.codecs.bodies import canonical, dumps, whole
from tracer.gateway.codecs.openai_errors import error_body, error_data
from tracer.gateway.codecs.schemas import label_of
from tracer.gateway.codecs.sse import Event
from tracer.types import Usage


class ChoiceCodec(Codec):
    """A format whose answer names one of the choices; only a request with a single choice question is answered."""

    def error(self, status: int, message: str, type: str | None = None) -> bytes:  # noqa: A002
        return error_body(status, message, type)

    def error_event(self, status: int, message: str, type: str | None = None) -> bytes:  # noqa: A002
        return error_data(status, message, type)

    def _text(self, call: Call, reply: Mapping[str, Any]) -> str | None:
        answer = self._answer(call, reply)
        choice = None if answer is None or answer.get("type") != "choice" else answer.get("choice")
        if not call.slot.fields or not isinstance(choice, str | bool):
            return None
        return dumps({call.slot.fields[0]: choice})

    def _usage(self, reply: Mapping[str, Any]) -> Usage | None:
        usage = reply.get("usage")
        if not isinstance(usage, dict):
            return None
        return Usage(whole(usage.get("input_tokens")), whole(usage.get("output_tokens")))

    def _assembled(self, events: Iterable[Event]) -> dict[str, Any] | None:
        return None

    def _events(
        self,
        call: Call,
        text: str,
        id: str,  # noqa: A002
        created: int,
        model: str,
        usage: Usage,
        prior: Mapping[str, Any] | None,
    ) -> list[bytes]:
        raise CodecError("decisions are not streamed")

    @abstractmethod
    def _answer(self, call: Call, reply: Mapping[str, Any]) -> dict[str, Any] | None:
        """The answer to the one question, None where there is none."""


def choice_slot(name: str, values: Sequence[Any], why: list[str]) -> Slot:
    """The slot of a choice question called ``name``, which may be "" for one without a name."""
    if not values or not all(isinstance(value, str | bool) for value in values):
        raise CodecError("choices are strings or booleans")
    if len({label_of(value) for value in values}) < len(values):
        why.append("choices that read alike")
    return Slot("json", fields=(name,), values=(tuple(values),))


def spread(values: Sequence[Scalar], chosen: object, confidence: float | None) -> list[float]:
    """A probability for each value: the chosen one's is ``confidence``, one by default, and the others share the rest.

    A surrogate has one calibrated number, not a distribution. The chosen value is never less probable than another.
    """
    others = len(values) - 1
    top = 1.0 if confidence is None or not others else min(max(1 / len(values), confidence), 1.0)
    rest = (1.0 - top) / others if others else 0.0
    return [round(top if canonical(value) == canonical(chosen) else rest, 6) for value in values]
