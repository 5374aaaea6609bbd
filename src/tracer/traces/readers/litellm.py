"""LiteLLM's StandardLoggingPayload, one a line, as its logging callbacks write it."""

from __future__ import annotations

from collections.abc import Mapping

from tracer.traces.readers.chat import answer_label, reply_message
from tracer.traces.readers.fields import FieldError, pick
from tracer.traces.readers.openai_chat import KEPT
from tracer.traces.readers.records import FieldNames

_REDACTED = "redacted-by-litellm"


def litellm_shape(record: Mapping[str, object], names: FieldNames) -> Mapping[str, object]:
    """Plain fields of a payload; a failed call is an error. ``names`` as in ``chat_shape``."""
    status = record.get("status")
    if status not in (None, "success"):
        raise FieldError("status", status, f"the teacher call failed: {record.get('error_str') or 'no reason given'}")
    _, messages = pick(record, "messages", ("messages",), names.input)
    if isinstance(messages, str) and messages.startswith(_REDACTED):
        raise FieldError("messages", messages, "the log was written without its messages")
    message = reply_message("response", record.get("response"))
    return {
        **{name: record[name] for name in KEPT if name in record},
        "input": messages,
        "label": answer_label(record, "response", message, names.label),
        "id": record.get("id"),
        "time": record.get("startTime"),
        "model": record.get("model"),
        "prompt_tokens": record.get("prompt_tokens"),
        "completion_tokens": record.get("completion_tokens"),
    }
