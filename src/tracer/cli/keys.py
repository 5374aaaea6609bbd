"""``tracer key``: a new key for the gateway, and the digest that stands in ``tracer.yaml``."""

from __future__ import annotations

import secrets

from tracer.cli import options
from tracer.cli.common import err, out, print_json
from tracer.gateway.credentials import new_key, sha256_of


def key(json: options.Json = False) -> None:
    """Make a key, for a client or the admin. It is shown this once; the gateway keeps its digest only."""
    made = new_key(secrets.token_bytes)
    if json:
        print_json({"key": made, "hash": sha256_of(made)})
        return
    out.print(f"key:  {made}", soft_wrap=True)
    out.print(f"hash: {sha256_of(made)}", soft_wrap=True)
    err.print(
        "The key goes to the client, and is not shown again. The hash goes into tracer.yaml: keys.NAME.hash, or "
        "admin.token_hash."
    )
