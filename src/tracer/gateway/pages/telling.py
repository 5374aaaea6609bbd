"""Writes the report of a policy, in a process of its own: ``python -m tracer.gateway.pages.telling``.

A report reads all stored traces and decides on many of them. That is seconds of work, and no request is to wait for it.
What is wanted comes as JSON on standard input; the report goes out the same way, or ``{"problem": ...}``.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any

from tracer.errors import PolicyError, TraceError, TracerError
from tracer.flywheel import stored_traces
from tracer.flywheel.settings import Settings
from tracer.policies.policy import Policy
from tracer.policies.registry import PolicyRegistry
from tracer.reporting import html
from tracer.reporting.gathering import Pricing, gather


def told(wanted: Mapping[str, Any]) -> dict[str, Any]:
    """The report of a version as ``facts`` and as ``html``. Raises TracerError."""
    home = Path(wanted["home"])
    registry, settings = PolicyRegistry(home), Settings.read(home)
    if settings is None:
        raise TraceError("nothing was fitted here yet")
    policy = registry.load(wanted["version"])
    cost = wanted["call_usd"]
    pricing = Pricing(
        None if cost is None else Decimal(cost), wanted["source"], wanted["calls_per_day"], wanted["audit_rate"]
    )
    dataset = stored_traces(home, settings)
    found = gather(policy, policy.report, dataset, settings.config, previous=_before(registry, policy), pricing=pricing)
    return {"facts": found, "html": html.page(found)}


def _before(registry: PolicyRegistry, policy: Policy) -> Policy | None:
    """The policy that this one replaced, where it is still there."""
    try:
        return registry.load(policy.parent) if policy.parent else None
    except PolicyError:
        return None


def main() -> None:
    """Read, work at low priority, write."""
    os.nice(10)
    try:
        out = told(json.load(sys.stdin))
    except TracerError as error:
        out = {"problem": str(error)}
    json.dump(out, sys.stdout)


if __name__ == "__main__":
    main()
