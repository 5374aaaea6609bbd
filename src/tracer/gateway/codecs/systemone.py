"""System One, TypeSafe's format of decisions: ``/v1/systemone``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from tracer.errors import CodecError
from tracer.gateway.calls import Call, Message, Slot, Wire
from tracer.gateway.codecs.bodies import canonical, dumps, flag, known_only, loads, mapping, read_object, shaped, string
from tracer.gateway.codecs.choices import ChoiceCodec, choice_slot, spread
from tracer.gateway.codecs.schemas import options_of
from tracer.types import Usage

_FIELDS = "model state questions safety_identifier stream"
_KNOWN = frozenset(_FIELDS.split())


class SystemOne(ChoiceCodec):
    """Named questions about a state, which is a text or any JSON; a choice has criteria by label."""

    wire: ClassVar[Wire] = "systemone"

    def read(self, body: bytes) -> Call:
        request = read_object(body)
        why: list[str] = []
        model, questions, state = string(request, "model"), mapping(request, "questions"), request.get("state")
        if not model or not questions or state is None:
            raise CodecError("a decision needs a model, a state and questions")
        if not all(isinstance(question, dict) for question in questions.values()):
            raise CodecError("a question that is no object")
        name, question = next(iter(questions.items()))
        slot = Slot("json")
        if len(questions) > 1:
            why.append("several questions")
        elif question.get("type") != "choice":
            why.append(f"a question of type {question.get('type')!r}")
        else:
            known_only(question, ("type", "instructions", "criteria"), why)
            slot = choice_slot(name, list(mapping(question, "criteria")), why)
        if flag(request, "stream"):
            why.append("a stream")
        known_only(request, _KNOWN, why)
        instructions = question.get("instructions")
        return Call(
            wire=self.wire,
            model=model,
            stream=flag(request, "stream"),
            system=instructions if isinstance(instructions, str) else "",
            messages=(Message("user", state if isinstance(state, str) else dumps(state)),),
            options=options_of(slot),
            slot=slot,
            schema=canonical({"questions": questions}),
            unanswerable="; ".join(dict.fromkeys(why)),
            metadata={},
        )

    def _answer(self, call: Call, reply: Mapping[str, Any]) -> dict[str, Any] | None:
        answers = reply.get("answers")
        answer = answers.get(call.slot.fields[0]) if isinstance(answers, dict) and call.slot.fields else None
        return answer if isinstance(answer, dict) else None

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
        name, values = call.slot.fields[0], call.slot.values[0]
        chosen = loads(text)[name]
        probabilities = spread(values, chosen, confidence)
        answer = {
            "type": "choice",
            "choice": chosen,
            "confidence": max(probabilities),
            "probabilities": dict(zip(values, probabilities, strict=True)),
        }
        counts = {"input_tokens": usage.input_tokens, "output_tokens": usage.output_tokens}
        reply = {
            "model": model,
            "answers": {name: shaped(answer, self._answer(call, form or {}), answer)},
            "usage": shaped(counts, (form or {}).get("usage"), counts),
        }
        return shaped(reply, form, reply)
