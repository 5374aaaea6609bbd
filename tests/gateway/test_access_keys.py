"""Keys: none is lost by a reload, none goes upstream, and each reaches its tasks alone."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.gateway.conftest import Known
from tests.gateway.serving import CHAT, MODEL, asked, place, serve, settings
from tests.gateway.standin import Standin
from tests.gateway.test_app_operating import digest
from tracer.errors import ConfigError
from tracer.gateway.app import server
from tracer.gateway.auth import Gate
from tracer.gateway.codecs import CODECS
from tracer.gateway.config import parse
from tracer.gateway.selecting import fingerprint, select
from tracer.gateway.serving import Gateway
from tracer.gateway.settings import InputSelector
from tracer.policies.serving_settings import ServingSettings


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


OF_DESK = f"keys:\n  bob: {{hash: '{digest('key-of-bob')}', tasks: [desk]}}\n  all: {{hash: '{digest('key-of-all')}'}}"
NOVEL = {"model": "gpt-5-pro", "n": 5, "messages": [{"role": "user", "content": "write me a novel"}]}


@pytest.mark.parametrize("task", ["", "teacher: gpt-4o-mini"])
def test_a_key_of_a_task_reaches_no_other_model_or_prompt(known: Known, tmp_path: Path, task: str) -> None:
    place(known.home, tmp_path, ServingSettings(audit_rate=0.0))
    with Standin() as api, serve(settings(api.url, tmp_path, task, OF_DESK), tmp_path) as served:

        def status(body: Any, key: str = "key-of-bob") -> int:
            named = {"authorization": f"Bearer {key}", "x-tracer-task": "desk"}
            content = body if isinstance(body, bytes) else json.dumps(body).encode()
            return httpx2.post(served.url + CHAT, content=content, headers=named).status_code

        assert status(NOVEL) == 403
        assert status({**asked(known.left[0]), "model": "gpt-5-pro"}) == 403
        twice = json.dumps(asked(known.left[0])).replace("{", '{"model": "gpt-5-pro", ', 1)
        assert status(twice.encode()) == 400
        assert status(twice.replace('{"model"', '{"mod\\u0065l"', 1).encode()) == 400
        assert status(twice.encode("utf-16")) == 403, "it is not read, and so no task"
        assert api.asked == []
        assert status(asked(known.left[0])) == 200
        if task:
            assert status({**NOVEL, "model": "gpt-4o-mini"}) == 200, "the task's own model"
        assert status(NOVEL, "key-of-all") == 200, "a key of all tasks is a key to all"
        models = [json.loads(one.body)["model"] for one in api.asked]
        assert models[0] == ("gpt-4o-mini" if task else MODEL)
        assert set(models[1:]) <= {"gpt-4o-mini", "gpt-5-pro"}


def test_a_known_prompt_is_the_tasks_under_any_model_which_is_replaced(tmp_path: Path) -> None:
    body = {**asked("hello"), "model": "gpt-5-pro"}
    call = CODECS["openai.chat"].read(json.dumps(body).encode())
    selection = select(call, InputSelector())
    assert selection is not None
    config = settings("http://127.0.0.1:9", tmp_path, "teacher: gpt-4o-mini").replace(
        "match: {", f"match: {{fingerprints: ['{fingerprint(selection)}'], "
    )
    with Standin() as api:
        config = config.replace("http://127.0.0.1:9", api.url) + OF_DESK
        with serve(config, tmp_path) as served:
            assert served.post(body, authorization="Bearer key-of-bob").status_code == 200
        assert json.loads(api.asked[0].body)["model"] == "gpt-4o-mini"
