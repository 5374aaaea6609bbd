"""A gateway whose task has a week behind it, and a visitor with a browser's manners."""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.gateway.pages.homes import TEACHER, at_noon, live_through
from tests.gateway.serving import Served, serve, settings
from tests.gateway.standin import Standin
from tracer.pipeline import Certified
from tracer.policies.serving_settings import ServingSettings
from tracer.types import Dataset

TOKEN = "the-admin-token-of-this-test"
ADMIN = f"admin: {{token_hash: 'sha256:{hashlib.sha256(TOKEN.encode()).hexdigest()}'}}"
NOW = at_noon().timestamp()


@pytest.fixture(scope="session")
def lived(
    fitted: tuple[Path, Certified], messages: Dataset, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, int]:
    """A fitted home with three days of traffic, and how many requests there were. Do not write to it."""
    assert messages.texts is not None
    home = tmp_path_factory.mktemp("lived") / "home"
    shutil.copytree(fitted[0], home)
    labels = dict(zip(messages.texts[600:], messages.labels[600:], strict=True))
    total = live_through(home, labels, until=at_noon(), days=3.0, per_hour=20.0, audit_rate=0.2)
    ServingSettings("live", 1.0, 0.2).write(home)
    return home, total


@dataclass(slots=True)
class Visit:
    """Somebody who looks at the page; cookies are kept as a browser keeps them."""

    served: Served
    cookies: dict[str, str] = field(default_factory=dict)
    html: str = ""

    def get(self, path: str = "/", **headers: str) -> httpx2.Response:
        """A page."""
        return self._ask("GET", path, None, headers)

    def post(self, path: str, fields: dict[str, str], **headers: str) -> httpx2.Response:
        """A form, from a page of the same host unless said."""
        sent = {"origin": self.served.url, "sec-fetch-site": "same-origin"}
        return self._ask("POST", path, fields, sent | {k.replace("_", "-"): v for k, v in headers.items()})

    def login(self, token: str = TOKEN) -> httpx2.Response:
        """Show the token."""
        return self.post("/login", {"token": token})

    def csrf(self, path: str = "/tasks/desk") -> str:
        """The token in the forms of a page."""
        found = re.search(r'name="csrf" value="([0-9a-f]{64})"', self.get(path).text)
        assert found is not None
        return found[1]

    def _ask(self, method: str, path: str, fields: dict[str, str] | None, headers: dict[str, str]) -> httpx2.Response:
        if self.cookies:
            headers = {**headers, "cookie": "; ".join(f"{k}={v}" for k, v in self.cookies.items())}
        headers = {k.replace("_", "-"): v for k, v in headers.items()}
        sent = [(name.encode(), value.encode()) for name, value in headers.items()]
        with httpx2.Client(timeout=30.0) as client:
            reply = client.request(method, self.served.url + path, data=fields, headers=sent)
        for value in reply.headers.get_list("set-cookie"):
            name, _, rest = value.partition("=")
            content = rest.partition(";")[0].strip('"')
            if content:
                self.cookies[name] = content
            else:
                self.cookies.pop(name, None)
        self.html = reply.text
        return reply


Open = Callable[..., Any]


@pytest.fixture
def opened(lived: tuple[Path, int], tmp_path: Path) -> Open:
    """Serves a copy of the lived home as the task ``desk``; ``more`` are further lines of its settings."""

    @contextmanager
    def run(more: str = ADMIN, task: str = "", *, empty: bool = False, **given: Any) -> Iterator[Visit]:
        folder = tmp_path / "tasks" / "desk"
        if not empty and not folder.exists():
            shutil.copytree(lived[0], folder)
        if "teacher:" not in task:
            task = f"teacher: {TEACHER}\n{task}".rstrip()
        given = {"now": lambda: NOW} | given
        with Standin() as api, serve(settings(api.url, tmp_path, task, more), tmp_path, **given) as served:
            yield Visit(served)

    return run
