"""OpenAI chat lines: fine-tuning examples, batch and stored completions.

::

    {"messages": [{"role": "user", ...}, {"role": "assistant", "content": "label"}]}
    {"custom_id": ..., "request": {"body": {"messages": [...]}}, "response": {"body": {"choices": [...]}}}
    {"id": ..., "model": ..., "created": ..., "messages": [...], "choices": [...], "usage": {...}}
"""

from __future__ import annotations

from collections.abc import Mapping

from tracer.traces.readers.chat import answer_label, last_index, message_list, reply_message, user_text
from tracer.traces.readers.fields import FieldError, pick
from tracer.traces.readers.records import FieldNames

KEPT = ("group", "origin", "ground_truth", "truth", "metadata")
"""Fields of a plain trace that a chat record may carry as well."""


def chat_shape(record: Mapping[str, object], names: FieldNames) -> Mapping[str, object]:
    """Plain fields of a chat record. ``names.label`` is a path in the record or in its JSON answer."""
    _refuse_failure(record)
    request, response = _request(record), _response(record)
    messages = message_list("messages", request["messages"])
    if response is None:
        key, message = _last_answer(messages)
        said: Mapping[str, object] = record
    else:
        key, message = "response.choices.0.message", reply_message("response", response)
        said = response if isinstance(response, Mapping) else record
    text = pick(record, "input", (), names.input)[1] if names.input else user_text("messages", messages)
    return {
        **{name: record[name] for name in KEPT if name in record},
        "input": text,
        "label": answer_label(record, key, message, names.label),
        "id": _first("id", record) or _first("custom_id", record) or _first("id", said),
        "time": _first("time", record) or _first("created", record, said),
        "teacher_model": _first("model", said, record, request),
        "usage": _first("usage", said, record),
    }


def _refuse_failure(record: Mapping[str, object]) -> None:
    response = record.get("response")
    status = response.get("status_code") if isinstance(response, Mapping) else None
    if record.get("error"):
        raise FieldError("error", record["error"], "the teacher call failed")
    if isinstance(status, int) and not 200 <= status < 300:
        raise FieldError("response.status_code", status, "the teacher call failed")


def _body(value: object) -> Mapping[str, object]:
    inner = value.get("body") if isinstance(value, Mapping) else None
    if isinstance(inner, Mapping):
        return inner
    return value if isinstance(value, Mapping) else {}


def _request(record: Mapping[str, object]) -> Mapping[str, object]:
    for holder in (record, _body(record.get("request")), _body(record)):
        if "messages" in holder:
            return holder
    raise FieldError("messages", None, "no messages: the answer of a batch needs its request in the same line")


def _response(record: Mapping[str, object]) -> object:
    """The response, or None where the answer is the last of the messages."""
    if isinstance(record.get("response"), str):
        return record["response"]
    for holder in (_body(record.get("response")), record, _body(record)):
        if "choices" in holder:
            return holder
    if record.get("response") is not None:
        raise FieldError("response", record["response"], "the response has no choices")
    return None


def _last_answer(messages: list[Mapping[str, object]]) -> tuple[str, Mapping[str, object]]:
    at = last_index(messages, "assistant")
    if at <= last_index(messages, "user"):
        raise FieldError("messages", None, "no assistant message after the last user message")
    return f"messages.{at}", messages[at]


def _first(name: str, *holders: Mapping[str, object]) -> object:
    return next((holder[name] for holder in holders if holder.get(name) is not None), None)
