"""A gateway with keys, before a stand-in, for the recipes of docs/clients.md."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.gateway.conftest import Known, known
from tests.gateway.serving import Served, place, serve
from tests.gateway.standin import Standin
from tracer.gateway.credentials import new_key, sha256_of
from tracer.policies.serving_settings import ServingSettings

__all__ = ["known"]

KEY = new_key(lambda n: b"recipes!" * (n // 8))
UPSTREAM_KEY = "sk-of-the-upstream"


class Behind(NamedTuple):
    """What a recipe talks to: the environment it reads, the gateway, the stand-in behind it, two messages and the label
    that comes for each: the first is handled, the second left to the teacher."""

    environ: Mapping[str, str]
    served: Served
    api: Standin
    texts: tuple[str, str]
    labels: tuple[str, str]


def _config(url: str, home: Path, *, own_key: bool) -> str:
    key = "" if own_key else ', api_key: "${OPENAI_API_KEY}"'
    return f"""
home: {home}
upstreams: {{main: {{base_url: {url}/v1, retries: 0{key}}}}}
keys: {{app: {{hash: "${{TRACER_KEY_HASH}}"}}}}
tasks: {{desk: {{match: {{models: [desk-router]}}, teacher: gpt-4o-mini, mode: live, target: 0.8}}}}
"""


def _behind(known: Known, home: Path, *, own_key: bool) -> Iterator[Behind]:
    plain = re.compile(r"[A-Za-z0-9 .?]{12,60}")  # of characters that no shell and no JSON minds
    handled = next(text for text in known.handled if plain.fullmatch(text))
    left = next(text for text in known.left if plain.fullmatch(text))
    labels = {handled: known.handled[handled], left: "office"}
    place(known.home, home, ServingSettings(audit_rate=0.0))
    secrets = {"TRACER_KEY_HASH": sha256_of(KEY), "OPENAI_API_KEY": UPSTREAM_KEY}
    with Standin(labels) as api, serve(_config(api.url, home, own_key=own_key), home, environ=secrets) as served:
        environ = {"TRACER_URL": served.url, "TRACER_KEY": KEY, "OPENAI_API_KEY": UPSTREAM_KEY}
        yield Behind(environ, served, api, (handled, left), (labels[handled], labels[left]))


@pytest.fixture(scope="session")
def behind(known: Known, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Behind]:
    """The upstream's key stands in the config."""
    yield from _behind(known, tmp_path_factory.mktemp("recipes"), own_key=False)


@pytest.fixture(scope="session")
def behind_own_key(known: Known, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Behind]:
    """Clients bring the upstream's key."""
    yield from _behind(known, tmp_path_factory.mktemp("recipes-own"), own_key=True)
