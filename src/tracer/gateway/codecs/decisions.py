"""OpenAI's decisions: ``/v1/decisions``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from tracer.errors import CodecError
from tracer.gateway.calls import Call, Message, Slot, Wire
from tracer.gateway.codecs.bodies import (
    canonical,
    flag,
    known_only,
    loads,
    objects,
    read_object,
    shaped,
    string,
    text_of,
)
from tracer.gateway.codecs.choices import ChoiceCodec, choice_slot, spread
from tracer.gateway.codecs.schemas import options_of
from tracer.types import Usage

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
        system, messages = [], []
        if isinstance(request.get("input"), str):
            messages.append(Message("user", request["input"]))
        else:
            for item in objects(request, "input"):
                if item.get("type", "message") != "message":
                    why.append(f"an input item of type {item.get('type')!r}")
                    continue
                role, text = string(item, "role"), text_of(item.get("content"), _PARTS, why)
                if role in ("system", "developer"):
                    system.append(text)
                else:
                    messages.append(Message(role, text))
        if not messages:
            why.append("no input")
        question = questions[0]
        system.append(text_of(question.get("instructions"), _PARTS, why))
        slot = Slot("json")
        if len(questions) > 1:
            why.append("several questions")
        elif question.get("type") != "choice":
            why.append(f"a question of type {question.get('type')!r}")
        else:
            values = [choice.get("value") for choice in objects(question, "choices")]
            slot = choice_slot(string(question, "name"), values, why)
        if flag(request, "stream"):
            why.append("a stream")
        known_only(request, _KNOWN, why)
        return Call(
            wire=self.wire,
            model=model,
            stream=flag(request, "stream"),
            system="\n".join(filter(None, system)),
            messages=tuple(messages),
            options=options_of(slot),
            slot=slot,
            schema=canonical({"questions": questions}),
            unanswerable="; ".join(dict.fromkeys(why)),
            metadata={},
            echo={"name": question.get("name")},
        )

    def _answer(self, call: Call, reply: Mapping[str, Any]) -> dict[str, Any] | None:
        answers = reply.get("answers")
        if not isinstance(answers, list) or len(answers) != 1 or not isinstance(answers[0], dict):
            return None
        return answers[0]

    def _reply(
        self,
        call: Call,
        text: str,
        id: str,  # noqa: A002
        created: int,
        model: str,
        usage: Usage,
        prior: Mapping[str, Any] | None,
        form: Mapping[str, Any] | None,
        confidence: float | None,
    ) -> dict[str, Any]:
        chosen, values = loads(text)[call.slot.fields[0]], call.slot.values[0]
        probabilities = spread(values, chosen, confidence)
        pairs = zip(values, probabilities, strict=True)
        answer = {
            "type": "choice",
            "name": call.echo.get("name"),
            "choice": chosen,
            "probabilities": [{"value": value, "probability": probability} for value, probability in pairs],
            "confidence": max(probabilities),
        }
        counts = {
            "input_tokens": usage.input_tokens,
            "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
            "output_tokens": usage.output_tokens,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": usage.input_tokens + usage.output_tokens,
        }
        reply = {
            "model": model,
            "answers": [shaped(answer, self._answer(call, form or {}), answer)],
            "usage": shaped(counts, (form or {}).get("usage"), ("input_tokens", "output_tokens")),
        }
        return shaped(reply, form, reply)
