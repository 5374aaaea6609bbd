"""One thread for the linear algebra while anyone wants it, and the old number afterwards."""

from __future__ import annotations

import threading
from collections.abc import Sequence

from threadpoolctl import threadpool_info, threadpool_limits

from tracer.learning.threads import n_workers, one_thread_each


def blas() -> Sequence[int]:
    return [pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"]


def test_the_number_comes_back() -> None:
    with threadpool_limits(2, user_api="blas"):
        before = blas()
        assert set(before) == {2}
        with one_thread_each(), one_thread_each():
            assert set(blas()) == {1}
        assert blas() == before


def test_the_last_one_to_leave_leaves_everything_as_it_was() -> None:
    entered, leave = threading.Event(), threading.Event()
    seen: list[Sequence[int]] = []

    def other() -> None:
        with one_thread_each():
            entered.set()
            assert leave.wait(10)
            seen.append(blas())
        seen.append(blas())

    with threadpool_limits(2, user_api="blas"):
        thread = threading.Thread(target=other)
        with one_thread_each():
            thread.start()
            assert entered.wait(10)
            assert set(blas()) == {1}
        assert set(blas()) == {2}, "this thread is out, whatever the other does"
        leave.set()
        thread.join(10)
        assert set(blas()) == {2}
    assert set(seen[1]) == {2}


def test_threads_started_inside_have_one_thread_too() -> None:
    seen: list[Sequence[int]] = []
    with threadpool_limits(2, user_api="blas"), one_thread_each():
        thread = threading.Thread(target=lambda: seen.append(blas()))
        thread.start()
        thread.join(10)
    assert set(seen[0]) == {1}


def test_there_is_always_a_worker_and_never_more_than_tasks() -> None:
    assert n_workers(0) == 1
    assert n_workers(1) == 1
    assert 1 <= n_workers(1000) <= 1000
