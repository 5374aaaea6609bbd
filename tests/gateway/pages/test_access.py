"""Who sees what: no text and no form without the token, none for a name that is not this machine's."""

from __future__ import annotations

import base64
import hashlib
import re
import stat
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from starlette.requests import HTTPConnection

from tests.gateway.pages.conftest import ADMIN, NOW, TOKEN, Open, Visit
from tests.gateway.serving import asked
from tracer.gateway.pages.access import KEY_FILE, SESSION_S, Access
from tracer.gateway.pages.ended import ENDED_FILE
from tracer.policies.history import Event
from tracer.policies.registry import PolicyRegistry
from tracer.traces.store import TraceStore
from tracer.types import Seen, Trace

HEADERS = {
    "x-frame-options": "DENY", "x-content-type-options": "nosniff", "cache-control": "no-store",
    "cross-origin-resource-policy": "same-origin",
}  # fmt: skip
EVIL = "<script>alert(1)</script>\"><img src=x onerror=alert(2)>'{{ 7*7 }}</bdi></article>\u202e\x1b[31m"


def texts_of(home: Path) -> list[str]:
    """The newest texts of a store, as a page would show them."""
    with TraceStore.open(home) as store, store.recent() as recent:
        return [trace.text for trace in recent.newest(20, among=5_000, origins={"deferred", "audit"})]


def active(visit: Visit) -> str | None:
    return PolicyRegistry(visit.served.task).active_version()


def last(visit: Visit) -> Event:
    return PolicyRegistry(visit.served.task).history()[-1]


class Elements(HTMLParser):
    """Elements and their attributes as a browser would read them."""

    def __init__(self, content: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(content)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def test_counts_are_for_all_and_texts_for_the_admin_alone(opened: Open) -> None:
    with opened() as visit:
        texts = texts_of(visit.served.task)
        for path in ("/", "/tasks/desk", "/tasks/desk?range=30d"):
            reply = visit.get(path)
            assert reply.status_code == 200
            assert not any(text[:40] in reply.text for text in texts)
            forms = [attrs for tag, attrs in Elements(reply.text).found if tag == "form"]
            assert forms == []
        assert visit.get("/tasks/desk/report").headers["location"] == "/login"
        assert visit.login().status_code == 303
        page = visit.get("/tasks/desk").text
        assert sum(text.split("\n")[0][:25].replace("'", "&#39;") in page for text in texts) >= 8
        visit.post("/logout", {"csrf": visit.csrf()})
        assert not any(text[:40] in visit.get("/tasks/desk").text for text in texts)


def test_the_cookie_is_the_browsers_alone_and_ends(opened: Open, tmp_path: Path) -> None:
    now = [NOW]
    with opened(now=lambda: now[0]) as visit:
        assert visit.login("wrong").status_code == 401
        assert visit.cookies == {}
        told = visit.login().headers["set-cookie"].lower()
        assert all(part in told for part in ("httponly", "samesite=strict", "path=/"))
        assert "secure" not in told
        assert TOKEN not in told
        assert stat.S_IMODE((tmp_path / KEY_FILE).stat().st_mode) == 0o600
        good = dict(visit.cookies)
        assert "Log out" in visit.get().text
        name, value = next(iter(good.items()))
        until, nonce, mac = value.split(".")
        for forged in (
            f"{int(until) + 1}.{nonce}.{mac}",
            f"{until}.{nonce}.{'0' * 64}",
            f"{until}.x{nonce}.{mac}",
            "é",
            ".",
        ):
            visit.cookies = {name: forged}
            assert "Log out" not in visit.get().text
        visit.cookies = good
        now[0] += SESSION_S - 1
        assert "Log out" in visit.get().text
        now[0] += 2
        assert "Log out" not in visit.get().text
        behind = visit.post("/login", {"token": TOKEN}, x_forwarded_proto="https").headers["set-cookie"].lower()
        assert "secure" in behind


def test_all_workers_know_a_session_and_a_new_token_ends_it(opened: Open) -> None:
    with opened() as visit:
        visit.login()
        cookies = visit.cookies
    with opened() as another:
        another.cookies = dict(cookies)
        assert "Log out" in another.get().text
    with opened(f"admin: {{token_hash: 'sha256:{'1' * 64}'}}") as other:
        other.cookies = dict(cookies)
        assert "Log out" not in other.get().text


def test_a_session_that_is_ended_is_ended_in_all_workers(opened: Open, tmp_path: Path) -> None:
    now = [NOW]
    with opened(now=lambda: now[0]) as visit:
        visit.login()
        ended, csrf = dict(visit.cookies), visit.csrf()
        another, kept = Access(visit.served.gateway), Visit(visit.served)
        kept.login()

        def admin(cookies: dict[str, str]) -> bool:
            cookie = "; ".join(f"{k}={v}" for k, v in cookies.items()).encode()
            return another.visitor(HTTPConnection({"type": "http", "headers": [(b"cookie", cookie)]})).admin

        assert admin(ended)
        assert visit.post("/logout", {"csrf": csrf}).status_code == 303
        assert not admin(ended), "a worker that had let it in"
        assert admin(kept.cookies)
        visit.cookies = ended
        assert visit.post("/off", {"csrf": csrf, "off": "1"}).status_code == 403
        now[0] += SESSION_S + 1.0
        kept.login()
        kept.post("/logout", {"csrf": kept.csrf()})
        assert len((tmp_path / ENDED_FILE).read_text().split()) == 1, "what has run out is not kept"


def test_tokens_are_not_tried_out(opened: Open) -> None:
    with opened() as visit:
        tried = [visit.login(f"wrong-{i}") for i in range(7)]
        assert [reply.status_code for reply in tried] == [401] * 5 + [429] * 2
        assert 0 < int(tried[-1].headers["retry-after"]) <= 61
        assert visit.login().status_code == 303, "the right one waits for nobody's wrong ones"


def test_a_token_that_can_be_guessed_waits_right_or_wrong(opened: Open) -> None:
    salt = b"sixteen bytes it"
    digest = hashlib.scrypt(TOKEN.encode(), salt=salt, n=16, r=8, p=1, dklen=32)
    hashed = ":".join(["scrypt:16:8:1", *(base64.b64encode(part).decode() for part in (salt, digest))])
    with opened(f"admin: {{token_hash: '{hashed}'}}") as visit:
        tried = [visit.login(f"wrong-{i}").status_code for i in range(7)]
        assert tried == [401] * 5 + [429] * 2
        assert visit.login().status_code == 429


@pytest.mark.parametrize(
    "path", ["/tasks/desk/pause", "/tasks/desk/promote", "/tasks/desk/rollback", "/off", "/logout"]
)
def test_a_form_counts_only_from_the_admins_own_page(opened: Open, path: str) -> None:
    with opened() as visit:
        fields = {"version": "v0001", "off": "1"}
        assert visit.post(path, fields).status_code == 403
        visit.login()
        right = fields | {"csrf": visit.csrf()}
        stranger = Visit(visit.served)
        stranger.login()
        for wrong in (fields, fields | {"csrf": ""}, fields | {"csrf": "0" * 64}, fields | {"csrf": stranger.csrf()}):
            assert visit.post(path, wrong).status_code == 403
        assert visit.post(path, right, origin="https://evil.example").status_code == 403
        assert visit.post(path, right, origin="null").status_code == 403
        assert visit.post(path, right, sec_fetch_site="cross-site").status_code == 403
        assert visit.post(path, right, content_type="text/plain").status_code == 403
        assert visit.post(path, right | {"note": "x" * 9_000}).status_code == 403
        assert visit.get(path).status_code in (404, 405)
        assert active(visit) == "v0001"
        assert not (visit.served.task / "OFF").exists()
        assert "Log out" in visit.get().text


def test_an_admin_pauses_promotes_and_rolls_back(opened: Open) -> None:
    with opened() as visit:
        visit.login()
        csrf = visit.csrf()
        reply = visit.post("/tasks/desk/pause", {"csrf": csrf, "note": "over <b>lunch</b>"})
        assert (reply.status_code, reply.headers["location"]) == (303, "/tasks/desk?done=pause")
        assert active(visit) is None
        assert last(visit).note == "over <b>lunch</b>"
        page = visit.get("/tasks/desk?done=pause").text
        assert "until a version is promoted" in page
        assert "over &lt;b&gt;lunch&lt;/b&gt;" in page
        assert visit.post("/tasks/desk/promote", {"csrf": csrf, "version": "v0001"}).status_code == 303
        assert (active(visit), last(visit).event) == ("v0001", "promote")
        wrong = visit.post("/tasks/desk/promote", {"csrf": csrf, "version": "../v<i>"})
        assert wrong.status_code == 409
        assert "there is no policy" in wrong.text
        assert "v<i>" not in wrong.text
        assert visit.post("/tasks/desk/rollback", {"csrf": csrf}).status_code == 409
        assert visit.post("/tasks/none/rollback", {"csrf": csrf}).status_code == 404
        assert active(visit) == "v0001"


def test_the_kill_switch_holds_until_it_is_turned(opened: Open) -> None:
    with opened() as visit:
        visit.login()
        csrf = visit.csrf("/")
        assert visit.post("/off", {"csrf": csrf, "off": "1"}).headers["location"] == "/?done=off"
        assert (visit.served.task / "OFF").exists()
        assert "Switched off" in visit.get().text
        assert visit.served.post(asked("where is my parcel")).headers["x-tracer-decision"] != "handled"
        visit.post("/off", {"csrf": csrf, "off": "0"})
        assert not (visit.served.task / "OFF").exists()


def test_who_sits_at_a_gateway_without_keys_reads_and_changes_nothing(opened: Open) -> None:
    with opened("") as visit:
        texts, page = texts_of(visit.served.task), visit.get("/tasks/desk").text
        assert sum(text.split("\n")[0][:25].replace("'", "&#39;") in page for text in texts) >= 8
        assert "<form" not in page
        assert visit.post("/tasks/desk/pause", {"csrf": ""}).status_code == 403
        assert visit.login().headers["location"] == "/"
        port = visit.served.url.rpartition(":")[2]
        for good in (f"localhost:{port}", f"[::1]:{port}", f"127.0.0.1:{port}"):
            assert visit.get("/", host=good).status_code == 200
        for bad in ("evil.example", f"evil.example:{port}", "127.0.0.1.evil.example", "localhost.evil.example", "["):
            reply = visit.get("/tasks/desk", host=bad)
            assert (reply.status_code, texts[0][:20] in reply.text) == (421, False)
            assert visit.post("/off", {"off": "1"}, host=bad).status_code == 421
        for way in ("x-forwarded-for", "forwarded", "via"):
            assert not any(text[:40] in visit.get("/tasks/desk", **{way: "for=1.2.3.4"}).text for text in texts)


def test_with_keys_and_no_token_nobody_reads(opened: Open) -> None:
    with opened("keys: {one: {hash: 'sha256:" + "2" * 64 + "'}}") as visit:
        texts, reply = texts_of(visit.served.task), visit.get("/tasks/desk", host="gateway.example")
        assert reply.status_code == 200
        assert not any(text[:40] in reply.text for text in texts)
        assert visit.get("/tasks/desk/report").status_code == 403


@pytest.mark.parametrize("path", ["/", "/tasks/desk", "/tasks/none", "/login", "/assets/x/page.css", "/assets/x/none"])
def test_no_page_runs_frames_or_fetches_what_is_not_ours(opened: Open, path: str) -> None:
    with opened() as visit:
        reply = visit.get(path)
        policy = reply.headers["content-security-policy"]
        assert policy.startswith("default-src 'none'")
        assert "unsafe" not in policy
        assert "frame-ancestors 'none'" in policy
        assert reply.headers["x-frame-options"] == "DENY"
        assert path.endswith("page.css") or HEADERS.items() <= dict(reply.headers).items()
        for tag, attrs in Elements(reply.text).found if "html" in reply.headers["content-type"] else []:
            assert not any(name.startswith("on") or name == "style" for name in attrs), (tag, attrs)
            for name in ("src", "href", "action"):
                assert (attrs.get(name) or "/").startswith(("/", "#", "?"))


def test_what_strangers_wrote_stays_text(opened: Open) -> None:
    with opened() as visit:
        rows = [
            Trace("a" * 32, EVIL, EVIL, teacher=EVIL, origin="audit", seen=Seen("v0001", EVIL + "!", True, 0.9)),
            Trace("b" * 32, EVIL, EVIL, teacher=EVIL, origin="deferred", seen=Seen("v0001", EVIL, False, 0.1)),
        ]
        visit.served.gateway.serving.lines["desk"].store.append(rows)
        PolicyRegistry(visit.served.task).record("note", note=EVIL, version=EVIL)
        plain = Elements(visit.get("/tasks/none").text).found
        scripts = [attrs for tag, attrs in plain if tag == "script"]
        visit.login()
        for path in (
            "/",
            "/tasks/desk",
            f"/tasks/desk?range={quote(EVIL)}&done={quote(EVIL)}",
            f"/?done={quote(EVIL)}",
        ):
            page = visit.get(path).text
            found = Elements(page).found
            assert [attrs for tag, attrs in found if tag == "script"] == scripts
            assert not any(tag == "img" or any(name.startswith("on") for name in attrs) for tag, attrs in found)
            assert "\x1b" not in page
            assert "49" not in re.findall(r"alert\(2\)&gt;&#39;(\d+)", page)
        assert "&lt;script&gt;alert(1)&lt;/script&gt;" in visit.get("/tasks/desk").text


def test_the_log_holds_no_token_and_no_text(opened: Open, caplog: Any) -> None:
    caplog.set_level("DEBUG", "tracer")
    with opened() as visit:
        visit.login("a-wrong-token")
        visit.login()
        visit.get("/tasks/desk")
        visit.post("/tasks/desk/pause", {"csrf": visit.csrf(), "note": "my own words"})
        told = " ".join(record.getMessage() for record in caplog.records)
        assert "an admin logged in" in told
        assert "pause by an admin" in told
        secrets = [TOKEN, "a-wrong-token", "my own words", *visit.cookies.values(), *texts_of(visit.served.task)]
        assert not any(secret in told for secret in secrets)
    assert ADMIN not in told
