"""The wire formats: bytes of a request to a ``Call``, a label to the bytes of an answer, and back."""

from __future__ import annotations

from collections.abc import Mapping

from tracer.gateway.calls import Wire
from tracer.gateway.codecs.anthropic_messages import AnthropicMessages
from tracer.gateway.codecs.base import Codec
from tracer.gateway.codecs.decisions import Decisions
from tracer.gateway.codecs.openai_chat import OpenAIChat
from tracer.gateway.codecs.openai_responses import OpenAIResponses
from tracer.gateway.codecs.systemone import SystemOne

CODECS: Mapping[Wire, Codec] = {
    codec.wire: codec for codec in (OpenAIChat(), OpenAIResponses(), AnthropicMessages(), Decisions(), SystemOne())
}
PATHS: Mapping[str, Codec] = {
    "/v1/chat/completions": CODECS["openai.chat"],
    "/v1/responses": CODECS["openai.responses"],
    "/v1/messages": CODECS["anthropic.messages"],
    "/v1/decisions": CODECS["decisions"],
    "/v1/systemone": CODECS["systemone"],
}


def codec_of(path: str) -> Codec | None:
    """The format spoken at a path, with or without ``/v1``; None for a path that is none's."""
    path = path.rstrip("/")
    return PATHS.get(path) or PATHS.get(f"/v1{path}")
