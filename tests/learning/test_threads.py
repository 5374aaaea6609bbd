"""One thread for the linear algebra while anyone wants it, and the old number afterwards."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence

import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from tracer.learning import threads
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
    assert set(seen[0]) == {2}


def test_threads_started_inside_have_one_thread_too() -> None:
    seen: list[Sequence[int]] = []
    with threadpool_limits(2, user_api="blas"), one_thread_each():
        thread = threading.Thread(target=lambda: seen.append(blas()))
        thread.start()
        thread.join(10)
    assert set(seen[0]) == {1}


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_child_of_a_fork_waits_for_nobody() -> None:
    """The parent's other thread is inside while it forks; in the child it does not live, and holds nothing."""
    entered, leave = threading.Event(), threading.Event()

    def other() -> None:
        with one_thread_each(), threads._BLAS._lock:
            entered.set()
            leave.wait(20)

    thread = threading.Thread(target=other)
    thread.start()
    assert entered.wait(10)
    child = os.fork()
    if child == 0:
        signal.alarm(10)  # a child that waits is killed
        with one_thread_each():
            os._exit(7)
    _, status = os.waitpid(child, 0)
    leave.set()
    thread.join(20)
    assert os.waitstatus_to_exitcode(status) == 7


def test_a_library_that_comes_later_is_found() -> None:
    code = """
import numpy, threadpoolctl
from tracer.learning.threads import one_thread_each
with one_thread_each():
    pass
import scipy.linalg
with threadpoolctl.threadpool_limits(2, user_api="blas"), one_thread_each():
    print({p["num_threads"] for p in threadpoolctl.threadpool_info() if p["user_api"] == "blas"})
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "{1}"


def test_there_is_always_a_worker_and_never_more_than_tasks() -> None:
    assert n_workers(0) == 1
    assert n_workers(1) == 1
    assert 1 <= n_workers(1000) <= 1000
