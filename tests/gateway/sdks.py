"""What the tests of SDKs share: a gateway with keys before a stand-in, and what is asked of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel

from tests.gateway.conftest import Known
from tests.gateway.serving import SYSTEM, Served, asked, place, serve
from tests.gateway.standin import Fault, Standin
from tracer.gateway.credentials import sha256_of
from tracer.policies.serving_settings import ServingSettings

KEY, NARROW, SLOW = "tr-all-of-it", "tr-another-task", "tr-one-a-second"
"""Keys: of everything, of another task alone, and of one request a second."""
DESKS = ["accounts", "billing", "office", "orders", "returns", "sales", "technical"]
BODY_BYTES = 65_536


class Desk(StrEnum):
    """The labels, as users write them."""

    accounts = "accounts"
    billing = "billing"
    office = "office"
    orders = "orders"
    returns = "returns"
    sales = "sales"
    technical = "technical"


class ByEnum(BaseModel):
    """The label as an Enum, which pydantic writes as a reference."""

    desk: Desk


class ByLiteral(BaseModel):
    """The label as a Literal, which pydantic writes in place."""

    desk: Literal["accounts", "billing", "office", "orders", "returns", "sales", "technical"]


SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"desk": {"type": "string", "enum": DESKS}},
    "required": ["desk"],
    "additionalProperties": False,
}


@dataclass(frozen=True, slots=True)
class Rig:
    """``cases``: (text, label, decision), two that are handled and two that are deferred."""

    served: Served
    api: Standin
    cases: tuple[tuple[str, str, str], ...]

    @property
    def v1(self) -> str:
        """The base URL as OpenAI's SDK wants it."""
        return self.served.url + "/v1"

    @property
    def handled(self) -> str:
        """A text that never reaches the upstream."""
        return self.cases[0][0]

    @property
    def deferred(self) -> str:
        """A text that always does."""
        return self.cases[-1][0]

    @contextmanager
    def fault(self, *faults: Fault | None) -> Iterator[None]:
        """The next requests meet these; then enough go well that no breaker opens between tests."""
        self.api.misbehave(*faults)
        yield
        for _ in range(2 * len(faults)):
            reply = self.served.post(asked(self.deferred), authorization=f"Bearer {KEY}")
            assert reply.status_code == 200, reply.text


def turns(text: str) -> list[Any]:
    return [{"role": "system", "content": SYSTEM}, {"role": "user", "content": text}]


@contextmanager
def rig(known: Known, home: Path) -> Iterator[Rig]:
    """The gateway and its stand-in, until the block ends."""
    place(known.home, home, ServingSettings(audit_rate=0.0))
    answers = dict.fromkeys(known.left, "office")
    with Standin(answers) as api:
        config = f"""
home: {home}
upstreams: {{main: {{base_url: {api.url}/v1, retries: 0, timeout_s: 1.0}}}}
keys:
  all: {{hash: "{sha256_of(KEY)}"}}
  narrow: {{hash: "{sha256_of(NARROW)}", tasks: [other]}}
  slow: {{hash: "{sha256_of(SLOW)}", requests_per_s: 1}}
limits: {{body_bytes: {BODY_BYTES}}}
tasks:
  desk: {{match: {{models: [desk-router]}}, mode: live, target: 0.8, stateless: true}}
  other: {{match: {{models: [other-router]}}, mode: live, target: 0.8, stateless: true}}
"""
        with serve(config, home) as served:
            cases = [*((text, label, "handled") for text, label in list(known.handled.items())[:2])]
            cases += [(text, "office", "deferred") for text in known.left[:2]]
            yield Rig(served, api, tuple(cases))
