"""The kill switch holds for all tasks, whatever has become of their folders."""

from __future__ import annotations

import shutil
from pathlib import Path

from tests.gateway.conftest import Known
from tests.gateway.serving import asked, place, serve, settings
from tests.gateway.standin import Standin
from tests.gateway.test_app_operating import ADMIN, admin, digest
from tracer.gateway.switches import GatewaySwitch, TaskSwitch
from tracer.policies.serving_settings import ServingSettings

TOKEN = f"admin: {{token_hash: '{digest(ADMIN)}'}}"


def test_off_holds_with_a_home_that_is_gone_and_for_tasks_that_come_later(known: Known, tmp_path: Path) -> None:
    plain = ServingSettings(audit_rate=0.0)
    place(known.home, tmp_path, plain)
    shutil.copytree(tmp_path / "tasks" / "desk", tmp_path / "tasks" / "late")
    text = next(iter(known.handled))
    with Standin() as api:
        first = settings(api.url, tmp_path, more=TOKEN).replace("tasks:\n", "tasks:\n  aaa: {match: {models: [aaa]}}\n")
        now = [first]
        with serve(first, tmp_path, reader=lambda: now[0]) as served:

            def decisions() -> list[str]:
                models = ("desk-router", "late") if "late" in now[0] else ("desk-router",)
                answers = [served.post({**asked(text), "model": model}) for model in models]
                native = served.post({"task": "desk", "text": text}, "/v1/classify")
                return [answer.headers["x-tracer-reason"] for answer in answers] + [native.json()["reason"]]

            assert decisions() == ["handled", "handled"]
            shutil.rmtree(tmp_path / "tasks" / "aaa")
            answer = admin(served, "POST", "off", {"off": True})
            assert (answer.status_code, answer.json()) == (200, {"off": True, "failed": ["aaa"]})
            assert decisions() == ["kill_switch", "kill_switch"]
            now[0] = first.replace("tasks:\n", "tasks:\n  late: {match: {models: [late]}, mode: live, target: 0.8}\n")
            assert admin(served, "POST", "reload").status_code == 200
            assert decisions() == ["kill_switch"] * 3
            assert admin(served, "POST", "off", {"off": False}).json() == {"off": False}
            assert decisions() == ["handled"] * 3


def test_a_file_that_cannot_be_written_leaves_the_flag_up(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("no folder")
    switch = GatewaySwitch()
    one = TaskSwitch(switch, blocked)
    assert switch.turn(True, blocked, []) == ["*"]
    assert one.exists()
    assert switch.turn(False, tmp_path, []) == []
    assert not one.exists()


def test_processes_agree_by_the_file(tmp_path: Path) -> None:
    ours, theirs = GatewaySwitch(), GatewaySwitch()
    ours.turn(True, tmp_path, [])
    assert TaskSwitch(theirs, tmp_path, tmp_path / "none").exists()
    theirs.turn(False, tmp_path, [])
    assert not TaskSwitch(ours, tmp_path).exists()
