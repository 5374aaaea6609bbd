"""Strangers share a page: as many as ask, it is made once in a while."""

from __future__ import annotations

import asyncio

import pytest

from tests.gateway.pages.conftest import Open
from tracer.gateway.pages import views
from tracer.gateway.pages.rendered import Rendered


def test_a_page_is_made_once_in_a_while_for_all_who_ask() -> None:
    now, made = [0.0], 0
    pages = Rendered(3.0, lambda: now[0])

    async def make() -> str:
        nonlocal made
        made += 1
        await asyncio.sleep(0.01)
        return f"page {made}"

    async def fail() -> str:
        raise ValueError("nothing to show")

    async def run() -> None:
        assert set(await asyncio.gather(*(pages.of("a", make) for _ in range(20)))) == {"page 1"}
        now[0] = 2.9
        assert await pages.of("a", make) == "page 1"
        now[0] = 3.0
        assert await pages.of("a", make) == "page 2"
        with pytest.raises(ValueError, match="nothing"):
            await pages.of("b", fail)
        assert await pages.of("b", make) == "page 3", "a failure is not kept"

    asyncio.run(run())


def test_strangers_cost_one_page_and_an_admin_sees_its_own(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[bool] = []
    whole = views.task_page

    def counted(gateway, line, look, texts, visitor, **more):  # type: ignore[no-untyped-def]
        made.append(visitor.admin)
        return whole(gateway, line, look, texts, visitor, **more)

    monkeypatch.setattr(views, "task_page", counted)
    with opened() as visit:
        pages = {visit.get(f"/tasks/desk?done=x{i}").text for i in range(8)}
        assert len(pages) <= 2
        assert len(made) <= 2, "whatever they write into the address"
        visit.login()
        assert "Log out" in visit.get("/tasks/desk").text
        assert made[-1]
