"""What every wire format must do, and what is the same on all of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from tracer.errors import CodecError
from tracer.gateway.calls import Call, Wire
from tracer.gateway.codecs.bodies import encode, read_object
from tracer.gateway.codecs.slots import label_in, text_with
from tracer.gateway.codecs.sse import Event, events_of
from tracer.types import Usage

_BYTES_A_TOKEN = 4
"""The customary rule of thumb; a label that it finds too long goes to the teacher, which costs nothing but coverage."""


@dataclass(frozen=True, slots=True)
class Written:
    """What an answer says. ``prior`` is the teacher's reply, ``form`` the same where its keys are to be imitated."""

    text: str
    id: str
    created: int
    model: str
    usage: Usage
    prior: Mapping[str, Any] | None = None
    form: Mapping[str, Any] | None = None
    confidence: float | None = None


class Codec(ABC):
    """One wire format: pure functions between bytes and what they mean. Every method raises CodecError only.

    ``like`` is an earlier answer of the teacher to the same task, a body or a whole stream: what is written then has
    its keys in that order, and a structured label stands in the teacher's own text.
    """

    wire: ClassVar[Wire]

    @abstractmethod
    def read(self, body: bytes) -> Call:
        """What a request asks. Raises CodecError on a body that is not understood: pass it through."""

    def label(self, call: Call, response_body: bytes) -> str | None:
        """The label in an upstream's answer; None where there is none (an error, a refusal, a cut answer)."""
        reply = _replied(response_body)
        return None if reply is None else self._label(call, reply)

    def label_of_stream(self, call: Call, events: Iterable[Event]) -> str | None:
        """The label in an upstream's stream; None where there is none, or the stream is cut."""
        reply = self._assembled(events)
        return None if reply is None else self._label(call, reply)

    def usage(self, response_body: bytes) -> Usage | None:
        """Tokens in and out (all of them, cached ones too), where the answer says."""
        reply = _replied(response_body)
        return None if reply is None else self._usage(reply)

    def usage_of_stream(self, events: Iterable[Event]) -> Usage | None:
        """Tokens in and out, where the stream says."""
        reply = self._assembled(events)
        return None if reply is None else self._usage(reply)

    def reply(self, response_body: bytes) -> Mapping[str, Any] | None:
        """The whole answer of an upstream, a body or a stream, as JSON; None where it is none, or cut."""
        return self._prior(response_body)

    def reproduces(self, call: Call, response_body: bytes, like: bytes | None) -> bool:
        """Whether the label alone gives back the very text of this answer: nothing else was said in it."""
        try:
            reply = _replied(response_body)
            label = None if reply is None else self._label(call, reply)
            if reply is None or label is None:
                return False
            return self._text(call, reply) == self._written(call, label, self._prior(like))
        except CodecError:
            return False

    def answer(
        self,
        call: Call,
        label: str,
        *,
        id: str,  # noqa: A002
        created: int,
        model: str,
        usage: Usage | None = None,
        like: bytes | None = None,
        confidence: float | None = None,
    ) -> bytes:
        """The body of an answer with this label.

        ``id`` is opaque text, to which the format's prefix is added; ``created`` seconds since the epoch; ``usage``
        what is said to be consumed, zero by default; ``confidence`` in [0, 1] is told where the format has a place.
        Raises CodecError where the call is unanswerable, or cannot carry this label.
        """
        given = Written(label, id, created, model, usage or Usage(0, 0), confidence=confidence)
        return encode(self._reply(call, self._ready(call, given, like)))

    def stream(
        self,
        call: Call,
        label: str,
        *,
        id: str,  # noqa: A002
        created: int,
        model: str,
        usage: Usage | None = None,
        like: bytes | None = None,
    ) -> list[bytes]:
        """The events of a streamed answer with this label; as ``answer``."""
        given = Written(label, id, created, model, usage or Usage(0, 0))
        return self._events(call, self._ready(call, given, like))

    @abstractmethod
    def error(self, status: int, message: str, type: str | None = None) -> bytes:  # noqa: A002
        """The body of an error; ``type`` is what the format calls this status unless told."""

    @abstractmethod
    def error_event(self, status: int, message: str, type: str | None = None) -> bytes:  # noqa: A002
        """An error in the midst of a stream."""

    @abstractmethod
    def _text(self, call: Call, reply: Mapping[str, Any]) -> str | None:
        """The text, or the arguments of the tool, in a complete reply; None where it is refused, cut or another."""

    @abstractmethod
    def _assembled(self, events: Iterable[Event]) -> dict[str, Any] | None:
        """The reply that a whole stream amounts to; None where it is cut or no such stream."""

    @abstractmethod
    def _usage(self, reply: Mapping[str, Any]) -> Usage | None: ...

    @abstractmethod
    def _reply(self, call: Call, new: Written) -> dict[str, Any]:
        """A reply with this text."""

    @abstractmethod
    def _events(self, call: Call, new: Written) -> list[bytes]:
        """The events of a streamed reply with this text."""

    def _ready(self, call: Call, given: Written, like: bytes | None) -> Written:
        """``given`` with the text of its label, and with what is to be imitated."""
        prior = self._prior(like)
        text = self._written(call, given.text, prior)
        return replace(given, text=text, prior=prior, form=None if like is None or _is_stream(like) else prior)

    def _label(self, call: Call, reply: Mapping[str, Any]) -> str | None:
        text = self._text(call, reply)
        return None if text is None else label_in(call.slot, text)

    def _prior(self, like: bytes | None) -> dict[str, Any] | None:
        if like is None:
            return None
        return self._assembled(events_of(like)) if _is_stream(like) else _replied(like)

    def _written(self, call: Call, label: str, prior: Mapping[str, Any] | None) -> str:
        if call.unanswerable:
            raise CodecError(f"not to be answered by a surrogate: {call.unanswerable}")
        if call.options is not None and label not in call.options:
            raise CodecError(f"the label {label!r} is none that the request allows")
        text = text_with(call.slot, label, None if prior is None else self._text(call, prior))
        if any(stop in text for stop in call.stop):
            raise CodecError(f"a stop sequence cuts the label {label!r}")
        if call.max_tokens is not None and len(text.encode("utf-8", "replace")) > call.max_tokens * _BYTES_A_TOKEN:
            raise CodecError(f"the label {label!r} may not fit into {call.max_tokens} tokens")
        return text


def _replied(body: bytes) -> dict[str, Any] | None:
    try:
        return read_object(body)
    except CodecError:
        return None


def _is_stream(body: bytes) -> bool:
    return body.lstrip(b"\xef\xbb\xbf \r\n\t")[:1] != b"{"
