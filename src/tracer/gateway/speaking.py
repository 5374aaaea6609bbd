"""Which upstream a call goes to by its format, and that a client's own key goes to none that speaks another."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from tracer.gateway.calls import Wire
from tracer.gateway.headers import CREDENTIALS
from tracer.gateway.settings import Upstream

__all__ = ["misdirects", "of_no_task", "speaks"]


def speaks(upstream: Upstream, wire: Wire) -> bool:
    """Whether an upstream takes calls of a format."""
    return wire in upstream.speaks


def of_no_task(upstreams: Sequence[Upstream], wire: Wire, *, known: bool) -> Upstream:
    """The upstream for traffic of no task: the first that speaks its format, or the first one where none does.

    ``known`` is false where the path is none of a format: then ``wire`` says whose client it is.
    """
    fits = speaks if known else _alike
    return next((one for one in upstreams if fits(one, wire)), upstreams[0])


def misdirects(
    upstream: Upstream,
    wire: Wire,
    headers: Iterable[tuple[bytes, bytes]],
    withheld: Collection[bytes],
    *,
    known: bool,
) -> bool:
    """Whether the client's own credentials, which belong to a provider of its format, would go to another one's."""
    if upstream.api_key is not None or (speaks(upstream, wire) if known else _alike(upstream, wire)):
        return False
    return any(name in CREDENTIALS and name not in withheld for name, _ in headers)


def _alike(upstream: Upstream, wire: Wire) -> bool:
    return (upstream.kind == "anthropic") == (wire == "anthropic.messages")
