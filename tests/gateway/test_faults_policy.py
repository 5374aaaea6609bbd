"""A home that is damaged, at the start or while it serves: the old policy or the teacher, and no wrong label."""

from __future__ import annotations

import hashlib
import json
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx2
import pytest

from tests.gateway.conftest import Known
from tests.gateway.loading import ask, check_labels, check_traces, drive, quiet, stored, teachers
from tests.gateway.serving import Served, place, serve, settings
from tests.gateway.standin import Standin
from tracer.policies.serving_settings import ServingSettings

PLAIN = ServingSettings(audit_rate=0.0)


def policy_of(folder: Path) -> Path:
    return folder / "policies" / "v0001"


def truncated(folder: Path) -> None:
    """Cut short by a few bytes, which leaves the mapped pages in place: they read as zeros from there on."""
    file = policy_of(folder) / "arrays.safetensors"
    with file.open("r+b") as opened:
        opened.truncate(file.stat().st_size - 9)


def overwritten(folder: Path) -> None:
    """Other weights in the same place, seen at once by whoever mapped the file."""
    file = policy_of(folder) / "arrays.safetensors"
    with file.open("r+b") as opened:
        content = opened.read()
        opened.seek(len(content) // 2)
        opened.write(bytes(255 - byte for byte in content[len(content) // 2 :]))


def other_digest(folder: Path) -> None:
    file = policy_of(folder) / "manifest.json"
    file.write_bytes(file.read_bytes().replace(b"sha256", b"sha255"))


def no_folder(folder: Path) -> None:
    shutil.rmtree(policy_of(folder))


def points_nowhere(folder: Path) -> None:
    (folder / "ACTIVE").write_text("v0099\n")


def points_at_nonsense(folder: Path) -> None:
    (folder / "ACTIVE").write_bytes(b"\xff\xfe../../etc")


def unreadable(folder: Path) -> None:
    """A folder in its place: nobody can read that as a file, not even root."""
    (folder / "ACTIVE").unlink()
    (folder / "ACTIVE").mkdir()


def bad_settings(folder: Path) -> None:
    (folder / "serving.json").write_text('{"mode": "fast", "audit_rate": 2}')


def deep_settings(folder: Path) -> None:
    (folder / "serving.json").write_text("[" * 100_000)


def bad_home_settings(folder: Path) -> None:
    (folder / "settings.json").write_text("{")


def history_gone(folder: Path) -> None:
    (folder / "history.jsonl").write_bytes(b"\x00\xff not a line\n")


DAMAGES = [truncated, overwritten, other_digest, no_folder, points_nowhere, points_at_nonsense, unreadable,
           bad_settings, deep_settings, bad_home_settings, history_gone]  # fmt: skip
CASES = [pytest.param(damage, id=damage.__name__, marks=[pytest.mark.slow] if i not in (1, 4) else [])
         for i, damage in enumerate(DAMAGES)]  # fmt: skip


@pytest.fixture(scope="module")
def api(known: Known) -> Iterator[Standin]:
    with Standin(teachers([*known.handled, *known.left])) as api:
        yield api


def restore(known: Known, folder: Path) -> None:
    """An operator puts back what was there; the store and its log go on."""
    for name in ("ACTIVE", "serving.json", "settings.json", "history.jsonl"):
        if (folder / name).is_dir():
            (folder / name).rmdir()
        if (known.home / name).exists():
            (folder / name).write_bytes((known.home / name).read_bytes())
    PLAIN.write(folder)
    shutil.rmtree(folder / "policies")
    shutil.copytree(known.home / "policies", folder / "policies")


def until_handled(served: Served, text: str, seconds: float = 10.0) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if ask(served.client, served.url, text, {}).decision == "handled":
            return True
        time.sleep(0.05)
    return False


@pytest.mark.parametrize("damage", CASES)
def test_a_home_that_is_damaged_at_the_start(
    known: Known, tmp_path: Path, api: Standin, damage: Callable[[Path], None]
) -> None:
    folder = place(known.home, tmp_path, PLAIN)
    damage(folder)
    texts = [*list(known.handled)[:15], *known.left[:15]]
    labels = teachers(texts)
    with serve(settings(api.url, tmp_path), tmp_path, tend_s=0.05) as served:
        got = drive(served.url, texts)
        assert {one.status for one in got} == {200}
        check_labels(got, known, labels)
        for path in ("/health", "/metrics", "/", "/tasks/desk"):
            assert httpx2.get(served.url + path).status_code < 500, path
        quiet(served)
        restore(known, folder)
        assert until_handled(served, texts[0])
        again = drive(served.url, texts)
        assert sum(one.decision == "handled" for one in again) == 15
        check_labels(again, known, labels)
        check_traces([t for t in served.traces() if t.id in {one.id for one in (*got, *again)}], [*got, *again], labels)


@pytest.mark.parametrize("damage", CASES)
def test_a_home_that_is_damaged_while_it_serves(
    known: Known, tmp_path: Path, api: Standin, damage: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tracer.serving.states.RETRY_S", 0.2)
    folder = place(known.home, tmp_path, PLAIN)
    texts = [*list(known.handled)[:15], *known.left[:15]]
    labels = teachers(texts)
    with serve(settings(api.url, tmp_path), tmp_path, tend_s=0.05) as served:
        check_labels(drive(served.url, texts), known, labels)
        # It is looked at once a second; until then nobody asks, for what is mapped changes at once.
        damage(folder)
        time.sleep(1.1)
        got = drive(served.url, texts)
        assert {one.status for one in got} == {200}
        check_labels(got, known, labels)
        assert httpx2.get(served.url + "/tasks/desk").status_code < 500
        n_handled = sum(one.decision == "handled" for one in got)
        in_place = damage in (truncated, overwritten)
        assert n_handled == (0 if in_place else 15), "the old policy goes on, where it is what it was"
        restore(known, folder)
        time.sleep(1.3)
        assert until_handled(served, texts[0])
        again = drive(served.url, texts)
        check_labels(again, known, labels)
        assert sum(one.decision == "handled" for one in again) == 15


def test_a_damaged_home_does_not_hide_the_others_from_the_admin(known: Known, tmp_path: Path, api: Standin) -> None:
    folder = place(known.home, tmp_path, PLAIN)
    digest = "sha256:" + hashlib.sha256(b"token").hexdigest()
    config = settings(api.url, tmp_path, more=f"admin: {{token_hash: '{digest}'}}")
    config = config.replace("tasks:", "tasks:\n  other: {match: {models: [other-router]}}")
    with serve(config, tmp_path) as served:
        points_at_nonsense(folder)
        headers = {"authorization": "Bearer token"}
        told = httpx2.get(served.url + "/admin/tasks", headers=headers)
        assert [task["name"] for task in told.json()["tasks"]] == ["other", "desk"]
        problem = httpx2.get(served.url + "/admin/policies/desk", headers=headers)
        assert problem.status_code in (400, 503)
        assert "error" in problem.json()
        body = json.dumps({"version": "v0001"}).encode()
        assert httpx2.post(served.url + "/admin/policies/desk/promote", headers=headers, content=body).status_code in (
            200, 400,
        )  # fmt: skip


@pytest.mark.slow
def test_a_reload_that_cannot_be_used_changes_nothing_under_load(known: Known, tmp_path: Path, api: Standin) -> None:
    folder = place(known.home, tmp_path, PLAIN)
    digest = "sha256:" + hashlib.sha256(b"token").hexdigest()
    good = settings(api.url, tmp_path, more=f"admin: {{token_hash: '{digest}'}}")
    blocked = tmp_path / "blocked"
    blocked.write_text("a file where a folder should be")
    bad = [
        "", "[", good + "nonsense: 1\n", good.replace("mode: live", "mode: fast"), "a: &a [*a, *a]\n", "\x00",
        good.replace(f"home: {tmp_path}", f"home: {blocked}"), good.replace("tasks:", "tasks:\n  desk: {}"),
        good + "database: ${NOT_SET}\n", "x" * 200_000, "{" * 5_000,
    ]  # fmt: skip
    now = [good]
    texts = [*list(known.handled)[:100], *known.left[:100]]
    labels = teachers(texts)
    statuses: list[int] = []
    with serve(good, tmp_path, reader=lambda: now[0]) as served:
        serving = served.gateway.serving

        def reload() -> None:
            for one in bad:
                now[0] = one
                told = httpx2.post(served.url + "/admin/reload", headers={"authorization": "Bearer token"})
                statuses.append(told.status_code)
                assert set(told.json()) == {"error"}

        thread = threading.Thread(target=reload)
        thread.start()
        got = drive(served.url, texts)
        thread.join(30)
        assert statuses == [400] * len(bad)
        assert served.gateway.serving is serving
        assert {one.status for one in got} == {200}
        check_labels(got, known, labels)
        quiet(served)
        # Good ones, back and forth: a request is answered wholly by the one that it began with.
        done = threading.Event()

        def swap() -> None:
            while not done.is_set():
                now[0] = (
                    good.replace("mode: live", "mode: live\n    redact: ['never-there']") if now[0] == good else good
                )
                assert (
                    httpx2.post(served.url + "/admin/reload", headers={"authorization": "Bearer token"}).status_code
                    == 200
                )

        swapper = threading.Thread(target=swap)
        swapper.start()
        again = drive(served.url, texts)
        done.set()
        swapper.join(30)
        assert {one.status for one in again} == {200}
        check_labels(again, known, labels)
    check_traces([t for t in stored(folder) if t.id in {one.id for one in (*got, *again)}], [*got, *again], labels)
