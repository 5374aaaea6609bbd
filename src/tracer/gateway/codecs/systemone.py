"""System One, TypeSafe's format of decisions: ``/v1/systemone``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from tracer.errors import CodecError
from tracer.gateway.calls import Call, Message, Scalar, Slot, Wire
from tracer.gateway.codecs.base import Written
from tracer.gateway.codecs.bodies import canonical, dumps, flag, known_only, mapping, read_object, shaped, string
from tracer.gateway.codecs.choices import ChoiceCodec, choice_slot
from tracer.gateway.codecs.schemas import options_of

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
        asked = list(questions.values())
        kinds = sorted({str(question.get("type")) for question in asked} - {"choice"})
        slot = Slot("json")
        if kinds:
            why.append(f"a question of type {', '.join(map(repr, kinds))}")
        else:
            for question in asked:
                known_only(question, ("type", "instructions", "criteria"), why)
            choices = [(name, list(mapping(question, "criteria"))) for name, question in questions.items()]
            slot = choice_slot(choices, why)
        if flag(request, "stream"):
            why.append("a stream")
        known_only(request, _KNOWN, why)
        instructions = [question.get("instructions") for question in asked]
        return Call(
            wire=self.wire,
            model=model,
            stream=flag(request, "stream"),
            system="\n".join(text for text in instructions if isinstance(text, str)),
            messages=(Message("user", state if isinstance(state, str) else dumps(state)),),
            options=options_of(slot),
            slot=slot,
            schema=canonical({"questions": questions}),
            unanswerable="; ".join(dict.fromkeys(why)),
            metadata={},
        )

    def _answers(self, call: Call, reply: Mapping[str, Any]) -> list[dict[str, Any]] | None:
        answers = reply.get("answers")
        found = [answers.get(name) for name in call.slot.fields] if isinstance(answers, dict) else []
        whole = [answer for answer in found if isinstance(answer, dict)]
        return whole if whole and len(whole) == len(found) else None

    def _listed(self, values: Sequence[Scalar], probabilities: Sequence[float]) -> Any:
        return dict(zip(values, probabilities, strict=True))

    def _reply(self, call: Call, new: Written) -> dict[str, Any]:
        answers = self._chosen(call, new)
        counts = {"input_tokens": new.usage.input_tokens, "output_tokens": new.usage.output_tokens}
        reply = {
            "model": new.model,
            "answers": dict(zip(call.slot.fields, answers, strict=True)),
            "usage": shaped(counts, (new.form or {}).get("usage"), counts),
        }
        return shaped(reply, new.form, reply)
