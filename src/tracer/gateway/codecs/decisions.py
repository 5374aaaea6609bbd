"""OpenAI's decisions: ``/v1/decisions``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from tracer.errors import CodecError
from tracer.gateway.calls import Call, Message, Scalar, Slot, Wire
from tracer.gateway.codecs.base import Written
from tracer.gateway.codecs.bodies import (
    canonical,
    flag,
    known_only,
    objects,
    read_object,
    shaped,
    string,
    text_of,
)
from tracer.gateway.codecs.choices import ChoiceCodec, choice_slot
from tracer.gateway.codecs.schemas import options_of
from tracer.gateway.codecs.turns import item_turn, parted

_FIELDS = "input model questions prompt_cache_key prompt_cache_options safety_identifier stream"
_KNOWN = frozenset(_FIELDS.split())
_PARTS = ("input_text", "output_text", "input_json")


class Decisions(ChoiceCodec):
    """Typed questions in a list; a choice has values that are strings or booleans."""

    wire: ClassVar[Wire] = "decisions"

    def read(self, body: bytes) -> Call:
        request = read_object(body)
        why: list[str] = []
        model, questions = string(request, "model"), objects(request, "questions")
        if not model or not questions:
            raise CodecError("a decision needs a model and questions")
        system: tuple[str, ...] = ()
        if isinstance(request.get("input"), str):
            messages: tuple[Message, ...] = (Message("user", request["input"]),)
        else:
            turns = [item_turn(item, _PARTS, why) for item in objects(request, "input")]
            system, messages = parted(turn for turn in turns if turn is not None)
        if not messages:
            why.append("no input")
        asked = [text_of(question.get("instructions"), _PARTS, why) for question in questions]
        kinds = sorted({str(question.get("type")) for question in questions} - {"choice"})
        slot = Slot("json")
        if kinds:
            why.append(f"a question of type {', '.join(map(repr, kinds))}")
        else:
            slot = choice_slot([(string(question, "name"), _values(question)) for question in questions], why)
        if flag(request, "stream"):
            why.append("a stream")
        known_only(request, _KNOWN, why)
        return Call(
            wire=self.wire,
            model=model,
            stream=flag(request, "stream"),
            system="\n".join(filter(None, (*system, *asked))),
            messages=messages,
            options=options_of(slot),
            slot=slot,
            schema=canonical({"questions": questions}),
            unanswerable="; ".join(dict.fromkeys(why)),
            metadata={},
            echo={"names": [question.get("name") for question in questions]},
        )

    def _answers(self, call: Call, reply: Mapping[str, Any]) -> list[dict[str, Any]] | None:
        answers = reply.get("answers")
        if not isinstance(answers, list) or len(answers) != len(call.slot.fields):
            return None
        return answers if all(isinstance(answer, dict) for answer in answers) else None

    def _named(self, call: Call, i: int) -> dict[str, Any]:
        return {"name": call.echo["names"][i]}

    def _listed(self, values: Sequence[Scalar], probabilities: Sequence[float]) -> Any:
        pairs = zip(values, probabilities, strict=True)
        return [{"value": value, "probability": probability} for value, probability in pairs]

    def _reply(self, call: Call, new: Written) -> dict[str, Any]:
        counts = {
            "input_tokens": new.usage.input_tokens,
            "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
            "output_tokens": new.usage.output_tokens,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": new.usage.input_tokens + new.usage.output_tokens,
        }
        reply = {
            "model": new.model,
            "answers": self._chosen(call, new),
            "usage": shaped(counts, (new.form or {}).get("usage"), ("input_tokens", "output_tokens")),
        }
        return shaped(reply, new.form, reply)


def _values(question: Mapping[str, Any]) -> list[Any]:
    return [choice.get("value") for choice in objects(question, "choices")]
