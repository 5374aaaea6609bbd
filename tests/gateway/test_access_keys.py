"""Keys: none is lost by a reload, none goes upstream, and each reaches its tasks alone."""

from __future__ import annotations

import asyncio
import base64
import hashlib
from pathlib import Path

import pytest

from tests.gateway.serving import asked, serve, settings
from tests.gateway.standin import Standin
from tests.gateway.test_app_operating import digest
from tracer.errors import ConfigError
from tracer.gateway.app import server
from tracer.gateway.auth import Gate
from tracer.gateway.config import parse
from tracer.gateway.serving import Gateway


def test_a_reload_never_opens_what_others_can_reach(tmp_path: Path) -> None:
    """Also where the file's own address is a loopback one, and ``--host`` said another."""
    base = settings("http://127.0.0.1:9", tmp_path)
    keys = f"keys: {{one: {{hash: '{digest('k')}'}}}}\n"

    async def reloaded(host: str, after: str) -> Gateway:
        gateway = Gateway(parse(base + keys, {}), reader=lambda: parse(after, {}))
        server(gateway, host, 0)
        await gateway.start()
        before = gateway.serving
        try:
            await gateway.reload()
        except ConfigError:
            assert gateway.serving is before
            raise
        finally:
            await gateway.stop()
        return gateway

    for host in ("0.0.0.0", "::", "10.0.0.5"):  # noqa: S104
        with pytest.raises(ConfigError, match="set keys first"):
            asyncio.run(reloaded(host, base))
    assert asyncio.run(reloaded("127.0.0.1", base)).config.keys == ()
    asyncio.run(reloaded("0.0.0.0", base + keys))  # noqa: S104


def scrypt(key: str) -> str:
    raw = hashlib.scrypt(key.encode(), salt=b"0123456789abcdef", n=1024, r=8, p=1, dklen=32)
    return f"scrypt:1024:8:1:{base64.b64encode(b'0123456789abcdef').decode()}:{base64.b64encode(raw).decode()}"


KEYS = f"""keys:
  bob: {{hash: '{digest("key-of-bob")}'}}
  eve: {{hash: '{digest("key-of-eve")}'}}
  slow: {{hash: '{scrypt("key-of-slow")}'}}
"""


@pytest.mark.parametrize(
    "shown",
    [
        {"authorization": "Bearer key-of-bob", "x_api_key": "key-of-bob"},
        {"x_tracer_key": "key-of-bob", "authorization": "Bearer key-of-eve", "api_key": "key-of-eve"},
        {"x_tracer_key": "key-of-bob", "authorization": "Bearer key-of-slow"},
        {"authorization": "Bearer sk-mine", "x_api_key": "key-of-slow"},
    ],
)
def test_no_header_takes_a_key_of_the_gateway_upstream(tmp_path: Path, shown: dict[str, str]) -> None:
    with Standin() as api, serve(settings(api.url, tmp_path, more=KEYS), tmp_path) as served:
        for _ in range(2):
            assert served.post(asked("hello"), **shown).status_code == 200
        for sent in api.asked:
            assert "key-of" not in str(sent.headers)
            assert sent.headers.get("authorization") in (None, "Bearer sk-mine")


def test_a_strange_value_beside_a_key_is_checked_once(tmp_path: Path) -> None:
    now = [0.0]
    gate = Gate(parse(settings("http://127.0.0.1:9", tmp_path, more=KEYS), {}), clock=lambda: now[0])
    headers = {"x-tracer-key": "key-of-bob", "authorization": "Bearer sk-mine"}
    assert gate.caller(headers) is None, "it may be the slow key"
    caller = asyncio.run(gate.check(headers, "1.2.3.4"))
    assert caller is not None
    assert (caller.name, caller.withheld) == ("bob", (b"x-tracer-key",))
    assert gate.caller(headers) == caller
