"""Chat messages as traces: the last user message is the input, the assistant's answer is the label."""

from __future__ import annotations

from collections.abc import Mapping

from tracer.traces.readers.fields import (
    LABEL_NAMES,
    MISSING,
    FieldError,
    kind,
    label_text,
    lookup,
    parse_json,
)


def message_list(key: str, value: object) -> list[Mapping[str, object]]:
    """The messages of a conversation, each an object."""
    if not isinstance(value, list) or not value:
        found = "an empty list" if value == [] else kind(value)
        raise FieldError(key, value, f"must be a list of messages, not {found}")
    messages: list[Mapping[str, object]] = []
    for i, message in enumerate(value):
        if not isinstance(message, Mapping):
            raise FieldError(f"{key}.{i}", message, f"a message must be an object, not {kind(message)}")
        messages.append(message)
    return messages


def last_index(messages: list[Mapping[str, object]], role: str) -> int:
    """Position of the last message of a role; -1 where there is none."""
    return max((i for i, message in enumerate(messages) if message.get("role") == role), default=-1)


def user_text(key: str, messages: list[Mapping[str, object]]) -> str:
    """Text of the last user message."""
    at = last_index(messages, "user")
    if at < 0:
        roles = ", ".join(repr(message.get("role")) for message in messages[:8])
        raise FieldError(key, None, f"no user message; the roles are {roles}")
    return content_text(f"{key}.{at}.content", messages[at].get("content"))


def content_text(key: str, content: object) -> str:
    """Text of a message's content: a string, or the text parts of a list; "" where there is none."""
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise FieldError(key, content, f"content must be a string or a list of parts, not {kind(content)}")
    texts = [part.get("text") if isinstance(part, Mapping) else part for part in content]
    return "\n".join(text for text in texts if isinstance(text, str))


def answer_label(record: Mapping[str, object], key: str, message: Mapping[str, object], wanted: str | None) -> str:
    """The label that an assistant message gives.

    Plain text is the label. A JSON object, as content or as the arguments of one tool call, holds it in a
    field: the ``wanted`` one, one with an accepted label name, or the only field that is a string.
    A ``wanted`` path that the record itself has wins over the message.
    """
    if wanted is not None and (value := lookup(record, wanted)) is not MISSING:
        return label_text(wanted, value)
    text = content_text(f"{key}.content", message.get("content")).strip()
    if text:
        answer = _object(text)
        if answer is not None:
            return _label_in(f"{key}.content", answer, wanted)
        if wanted is not None:
            raise FieldError(wanted, text, "no such field in the record, and the answer is no JSON object")
        return label_text(f"{key}.content", text)
    return _label_in(f"{key}.tool_calls", _tool_arguments(key, message), wanted)


def reply_message(key: str, response: object) -> Mapping[str, object]:
    """The assistant message of a response: ``choices[0].message`` or a bare string."""
    if isinstance(response, str):
        return {"content": response}
    choices = response.get("choices") if isinstance(response, Mapping) else None
    first = choices[0] if isinstance(choices, list) and choices else None
    message = first.get("message") if isinstance(first, Mapping) else None
    if not isinstance(message, Mapping):
        raise FieldError(f"{key}.choices", choices, "no choices[0].message in the response")
    return message


def _object(text: str) -> Mapping[str, object] | None:
    if not text.startswith("{"):
        return None
    try:
        value = parse_json(text)
    except ValueError:
        return None  # A label may begin with a brace; it is what the teacher said.
    return value if isinstance(value, Mapping) else None


def _label_in(key: str, answer: Mapping[str, object], wanted: str | None) -> str:
    if wanted is not None:
        value = lookup(answer, wanted)
        if value is MISSING:
            fields = ", ".join(map(repr, answer))
            raise FieldError(wanted, None, f"neither the record nor its JSON answer has it; answer: {fields}")
        return label_text(wanted, value)
    for name in LABEL_NAMES:
        if name in answer:
            return label_text(f"{key}.{name}", answer[name])
    strings = [name for name, value in answer.items() if isinstance(value, str)]
    if len(strings) != 1:
        problem = f"the JSON answer has {len(strings)} string fields: name the label with label_field"
        raise FieldError(key, dict(answer), problem)
    return label_text(f"{key}.{strings[0]}", answer[strings[0]])


def _tool_arguments(key: str, message: Mapping[str, object]) -> Mapping[str, object]:
    calls = message.get("tool_calls") or []
    if not isinstance(calls, list) or len(calls) > 1:
        raise FieldError(f"{key}.tool_calls", calls, "a label needs one tool call")
    call = calls[0].get("function") if calls and isinstance(calls[0], Mapping) else message.get("function_call")
    if not isinstance(call, Mapping):
        raise FieldError(f"{key}.content", message.get("content"), "the answer has no content and no tool call")
    arguments = call.get("arguments")
    answer = _object(arguments.strip()) if isinstance(arguments, str) else arguments
    if not isinstance(answer, Mapping):
        raise FieldError(f"{key}.tool_calls.arguments", arguments, "must be a JSON object")
    return answer
