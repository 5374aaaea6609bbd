"""Keys whose check is slow: nobody else waits for them, and nobody has as many checked as he likes."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import pytest

from tests.gateway.conftest import Known
from tests.gateway.serving import asked, place, serve, settings
from tracer.gateway.auth import Gate
from tracer.gateway.checking import SlowChecks, UncheckedError
from tracer.gateway.config import parse
from tracer.policies.serving_settings import ServingSettings


def scrypt(key: str, n: int = 16384) -> str:
    salt = b"0123456789abcdef"
    raw = hashlib.scrypt(key.encode(), salt=salt, n=n, r=8, p=1, maxmem=128 << 20, dklen=32)
    return f"scrypt:{n}:8:1:{base64.b64encode(salt).decode()}:{base64.b64encode(raw).decode()}"


def sha256(key: str) -> str:
    return "sha256:" + hashlib.sha256(key.encode()).hexdigest()


def gate(*keys: str, before: Gate | None = None, admin: str = "") -> Gate:
    named = "".join(f"\n  k{i}: {{hash: '{key}'}}" for i, key in enumerate(keys))
    more = f"\nadmin: {{token_hash: '{admin}'}}" if admin else ""
    return Gate(parse(f"upstreams: {{a: {{base_url: http://x/v1}}}}\nkeys:{named}{more}", {}), before=before)


def shown(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


def test_wrong_keys_hold_up_nobody_and_are_few_for_each_source(known: Known, tmp_path: Path) -> None:
    place(known.home, tmp_path, ServingSettings(audit_rate=0.0))
    text = next(iter(known.handled))
    keys = f"keys:\n  slow: {{hash: '{scrypt('pass')}'}}\n  fast: {{hash: '{sha256('long-random')}'}}"
    with serve(settings("http://127.0.0.1:9", tmp_path, more=keys), tmp_path) as served:
        assert served.post(asked(text), **shown("long-random")).status_code == 200

        def wrong(i: int) -> httpx2.Response:
            return httpx2.post(
                served.url + "/v1/chat/completions", content=b"{}", headers=shown(f"guess-{i}"), timeout=60.0
            )

        begun = time.monotonic()
        with ThreadPoolExecutor(16) as pool:
            guesses = [pool.submit(wrong, i) for i in range(30)]
            times: list[float] = []
            while not all(guess.done() for guess in guesses) or len(times) < 10:
                response = served.post(asked(text), **shown("long-random"))
                assert response.status_code == 200
                times.append(float(response.headers["x-tracer-overhead-ms"]))
                time.sleep(0.005)
            answers = [guess.result() for guess in guesses]
            seconds = time.monotonic() - begun
        assert {answer.status_code for answer in answers} == {401, 429}
        n_checked = sum(answer.status_code == 401 for answer in answers)
        assert 5 <= n_checked <= 6 + 5 * seconds, "five at once, then five a second"
        refused = next(answer for answer in answers if answer.status_code == 429)
        assert refused.headers["retry-after"] == "1"
        assert sorted(times)[len(times) // 2] < 20.0, "the loop goes on meanwhile"
        time.sleep(0.3)  # a token of this source comes back
        assert served.post(asked(text), **shown("pass")).status_code == 200
        assert served.post(asked(text), **shown("pass")).status_code == 200


def test_what_was_shown_is_checked_once_and_guesses_push_no_key_out() -> None:
    async def run() -> None:
        one = gate(scrypt("pass", 2))
        assert one.caller(shown("pass")) is None, "not known yet"
        caller = await one.check(shown("pass"), "a")
        assert caller is not None
        assert (caller.name, caller.withheld) == ("k0", (b"authorization",))
        assert one.caller(shown("pass")) == caller
        assert await one.check(shown("wrong"), "b") is None
        for _ in range(20):  # remembered: no token is taken
            assert await one.check(shown("wrong"), "b") is None
        for i in range(5_000):
            one._strangers[i.to_bytes(32)] = None
        assert await one.check(shown("other"), "c") is None
        assert len(one._strangers) <= 5_001
        assert one.caller(shown("pass")) == caller
        again = gate(sha256("x"), scrypt("pass", 2), before=one)
        kept = again.caller(shown("pass"))
        assert kept is not None
        assert kept.name == "k1", "a reload keeps what is known, under its new name"
        assert gate(sha256("x"), before=one).caller(shown("pass")) is None

    asyncio.run(run())


def test_an_admin_token_is_checked_likewise() -> None:
    async def run() -> None:
        one = gate(admin=scrypt("token", 2))
        assert await one.token("admin", shown("token"), "a") is True
        assert await one.token("admin", {}, "a") is False
        for i in range(4):
            assert await one.token("admin", shown(f"guess-{i}"), "a") is False
        with pytest.raises(UncheckedError):
            await one.token("admin", shown("guess-5"), "a")
        assert await one.token("admin", shown("token"), "a") is True
        assert await gate().token("admin", shown("token"), "a") is None

    asyncio.run(run())


def test_checks_of_one_key_are_one_and_waiting_is_bounded() -> None:
    async def run() -> None:
        now = [0.0]
        checks, gone, runs = SlowChecks(rate=2.0, workers=1, waiting=1, clock=lambda: now[0]), threading.Event(), []

        def slow() -> bool:
            runs.append(threading.current_thread().name)
            return gone.wait(5)

        first = asyncio.ensure_future(checks.run(b"a", "x", slow))
        same = asyncio.ensure_future(checks.run(b"a", "x", slow))
        other = asyncio.ensure_future(checks.run(b"b", "x", slow))
        await asyncio.sleep(0.05)
        with pytest.raises(UncheckedError):
            await checks.run(b"c", "y", slow)  # as many wait as may
        first.cancel()  # whoever began it leaves
        gone.set()
        assert await same is await other is True
        assert len(runs) == 2
        assert runs[0].startswith("tracer-keys")
        with pytest.raises(UncheckedError) as caught:
            await checks.run(b"d", "x", slow)
        assert caught.value.wait == pytest.approx(0.5)
        now[0] = 0.5
        assert await checks.run(b"d", "x", slow) is True

    asyncio.run(run())
