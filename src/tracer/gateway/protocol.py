"""HTTP/1.1 by httptools, with the bound on what is read of a request that it does not have itself."""

from __future__ import annotations

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MOST = 64 * 1024
"""Bytes of a request's head, or of whatever else comes without a part of its body: chunk sizes, trailers."""


class Protocol(HttpToolsProtocol):
    """One connection. A request that goes beyond the bound has status 400, and the connection closes: who sends it may
    be anybody, and would fill the memory."""

    _waiting = 0
    _head = 0

    def data_received(self, data: bytes) -> None:
        self._waiting += len(data)
        super().data_received(data)
        if self._waiting > MOST and not self.transport.is_closing():
            self.send_400_response("what came is too long for the head of a request")

    def on_message_begin(self) -> None:
        self._head = 0
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        # All of it may have come at once, complete. What is raised here is a malformed request to the parser.
        self._head += len(name) + len(value)
        if self._head > MOST:
            raise ValueError("too many headers")
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._waiting = 0
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._waiting = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._waiting = 0
        super().on_message_complete()
