from __future__ import annotations

import asyncio

import pytest

from tracer.gateway.waiting import Within


async def after(seconds: float, result: str = "done") -> str:
    if seconds:
        await asyncio.sleep(seconds / 2)
        await asyncio.sleep(seconds / 2)
    return result


def test_what_comes_in_time_is_returned() -> None:
    async def test() -> None:
        assert await Within(after(0.0), 0.0) == "done"
        assert await Within(after(0.02), 5.0) == "done"

    asyncio.run(test())


@pytest.mark.parametrize("seconds", [0.01, 0.08])
def test_what_does_not_is_given_up_and_the_task_goes_on(seconds: float) -> None:
    async def test() -> None:
        with pytest.raises(TimeoutError):
            await Within(after(0.1), seconds)
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0
        await asyncio.sleep(0.1)

    asyncio.run(test())


def test_a_cancellation_of_others_stays_one() -> None:
    async def test() -> None:
        task = asyncio.create_task(after_within())
        await asyncio.sleep(0.02)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    async def after_within() -> str:
        return await Within(after(5.0), 1.0)

    asyncio.run(test())


def test_an_error_passes() -> None:
    async def failing() -> str:
        await asyncio.sleep(0.01)
        raise ValueError("its own")

    async def test() -> None:
        with pytest.raises(ValueError, match="its own"):
            await Within(failing(), 1.0)

    asyncio.run(test())
