"""Several processes behind one port: a supervisor that starts them, starts again what died, and ends them all.

The supervisor binds one socket a worker to the same address, and the kernel spreads connections over them
(``SO_REUSEPORT``). It holds them itself, so that what comes to a worker that died waits for the next in its place;
where that one dies young too, the place's socket takes nothing until somebody accepts from it again. A worker starts on
the settings that the others serve by, whatever has been written into the file since.
"""

from __future__ import annotations

import errno
import json
import logging
import math
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import FrameType
from typing import Self

from tracer.errors import ConfigError, TracerError
from tracer.gateway import pooling
from tracer.gateway.settings import GatewayConfig

log = logging.getLogger("tracer.gateway")

VARIABLE = "TRACER_WORKER"
_POLL_S = 0.1
_TEND_S = 1.0
_STEADY_S = 10.0
_BACKOFF_S = 0.5
_MAX_BACKOFF_S = 30.0


@dataclass(frozen=True, slots=True)
class Place:
    """A worker's place: which of how many, its socket, a pipe that ends with the supervisor, and the shared folder."""

    index: int
    n: int
    accepting: int
    lifeline: int
    folder: str

    @classmethod
    def found(cls, environ: Mapping[str, str]) -> Self | None:
        """From the environment of a process that a supervisor started; None in any other."""
        told = environ.get(VARIABLE)
        return None if told is None else cls(**json.loads(told))

    def pool(self) -> pooling.Pool:
        """What is shared with the other workers."""
        return pooling.Pool(Path(self.folder), self.index)

    def listening(self) -> socket.socket:
        """The socket to accept from."""
        return socket.socket(fileno=self.accepting)

    def orphaned(self, then: Callable[[], None]) -> None:
        """Call ``then``, from another thread, when the supervisor is no more."""

        def wait() -> None:
            os.read(self.lifeline, 1)
            then()

        threading.Thread(target=wait, name="tracer-lifeline", daemon=True).start()


def shared_out(config: GatewayConfig, n: int) -> GatewayConfig:
    """The settings of one of n workers: rates and bounds of the whole gateway, divided. The queue is each one's own.

    Raises ConfigError for what several processes cannot do.
    """
    if n == 1:
        return config
    for task in config.tasks:
        if task.labelled and task.capture == "features":
            raise ConfigError(
                f"task {task.name}: with capture: features and callers_label there must be one worker: the texts of"
                " calls that wait for a label are in its memory alone"
            )

    def part(rate: float | None) -> float | None:
        return None if rate is None else rate / n

    limits = config.limits
    return replace(
        config,
        keys=tuple(replace(key, requests_per_s=part(key.requests_per_s)) for key in config.keys),
        limits=replace(
            limits,
            requests_per_s=part(limits.requests_per_s),
            concurrency=math.ceil(limits.concurrency / n),
            upstream_concurrency=math.ceil(limits.upstream_concurrency / n),
            upstream_waiting=math.ceil(limits.upstream_waiting / n),
        ),
    )


def bound(host: str, port: int, n: int) -> list[socket.socket]:
    """n sockets on one address, not yet listening. Raises ConfigError where it is taken; port 0 is any free one."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family) as probe:
            # Two gateways must not share a port unnoticed, which the option below would let them.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
            port = probe.getsockname()[1]
        if not hasattr(socket, "SO_REUSEPORT"):
            return [_bound(family, host, port, socket.SO_REUSEADDR)] * n
        return [_shared(family, host, port) for _ in range(n)]
    except OSError as error:
        raise ConfigError(f"cannot listen on {host}:{port}: {error.strerror or error}") from error


@dataclass(slots=True)
class _Slot:
    socket: socket.socket
    process: subprocess.Popen[bytes] | None = None
    begun: float = 0.0
    failures: int = 0
    due: float = field(default=0.0)


class Supervisor:
    """Runs ``command`` once a worker. ``grace_s``: seconds that workers have to end when they are asked to.

    ``settings``: the text that they start on, until one of them has read another.
    """

    def __init__(
        self,
        command: Sequence[str],
        sockets: Sequence[socket.socket],
        *,
        grace_s: float,
        settings: str = "",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._command, self._grace_s, self._clock = tuple(command), grace_s, clock
        self._slots = [_Slot(one) for one in sockets]
        self._settings, self._tended = settings, -math.inf
        self._asked, self._reload, self._served = 0, False, False
        self._stop = threading.Event()

    def run(self) -> int:
        """Until SIGTERM or SIGINT, or until the first workers cannot start. The exit code. For the main thread.

        SIGHUP lets all workers read the settings again.
        """
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._on_signal)
        folder = Path(tempfile.mkdtemp(prefix="tracer-workers-"))
        lifeline, held = os.pipe()
        try:
            return self._supervise(folder, lifeline)
        finally:
            os.close(held)
            os.close(lifeline)
            shutil.rmtree(folder, ignore_errors=True)

    def _supervise(self, folder: Path, lifeline: int) -> int:
        failed = False
        while not self._stop.is_set():
            self._has_served(folder)
            if self._clock() - self._tended >= _TEND_S:
                self._tend(folder)
            for index, slot in enumerate(self._slots):
                if slot.process is None:
                    if self._clock() >= slot.due:
                        self._start(index, folder, lifeline)
                elif (code := slot.process.poll()) is not None:
                    log.error("worker %d (process %d) ended with %d", index, slot.process.pid, code)
                    slot.process = None
                    if not self._has_served(folder):  # a look since: it may have answered and died
                        failed = True
                        self._stop.set()
                        break
                    self._gone(index, folder)
            if self._reload:
                self._announce(folder)
            self._stop.wait(_POLL_S)
        return self._end() or int(failed)

    def _has_served(self, folder: Path) -> bool:
        """Whether a worker ever came as far as to answer; once seen it stays so, whatever becomes of the folder."""
        self._served = self._served or pooling.served(folder)
        return self._served

    def _announce(self, folder: Path) -> None:
        try:
            pooling.announce(folder)
        except OSError:
            return  # at the next round: the folder is made anew
        self._reload = False

    def _tend(self, folder: Path) -> None:
        """Make the folder anew where it is gone; remember which settings are in force, and put them there."""
        self._tended = self._clock()
        try:
            pooling.made(folder)
            found = pooling.kept(folder)
            if found is not None:
                self._settings = found
            elif self._settings:
                pooling.keep(folder, self._settings)
            pooling.count(folder, [slot.process is not None for slot in self._slots])
        except OSError as error:
            log.error("the folder that the workers share cannot be used: %s", type(error).__name__)

    def _start(self, index: int, folder: Path, lifeline: int) -> None:
        slot = self._slots[index]
        place = Place(index, len(self._slots), slot.socket.fileno(), lifeline, str(folder))
        slot.process = subprocess.Popen(
            self._command,
            env=os.environ | {VARIABLE: json.dumps(asdict(place))},
            pass_fds=(place.accepting, lifeline),
            start_new_session=True,  # a Ctrl-C is for the supervisor, which tells them
        )
        slot.begun = self._clock()

    def _gone(self, index: int, folder: Path) -> None:
        """Keep what a worker had counted, and say when the next takes its place: at once, unless they die young."""
        slot, now = self._slots[index], self._clock()
        try:
            pooling.made(folder)
            pooling.bury(folder, index)
        except (OSError, TracerError, ValueError) as error:
            log.error("what worker %d had counted is lost: %s", index, type(error).__name__)
        slot.failures = 0 if now - slot.begun >= _STEADY_S else slot.failures + 1
        wait = min(_BACKOFF_S * 2.0 ** (slot.failures - 2), _MAX_BACKOFF_S) if slot.failures > 1 else 0.0
        slot.due = now + wait
        if slot.failures and hasattr(socket, "SO_REUSEPORT"):
            self._set_aside(slot)

    def _set_aside(self, slot: _Slot) -> None:
        """Let the other places have all connections: in this one they would wait for nobody."""
        old = slot.socket
        try:
            host, port = old.getsockname()[:2]
            slot.socket = _bound(old.family, host, port, socket.SO_REUSEPORT)
        except OSError as error:
            log.error("the place of a worker that died goes on listening: %s", type(error).__name__)
        else:
            old.close()

    def _end(self) -> int:
        """Ask all to end, and wait: first for their requests, then no longer. 1 where one had to be killed."""
        running = [slot.process for slot in self._slots if slot.process is not None]
        for process in running:
            process.terminate()
        until, hurried, code = self._clock() + self._grace_s, 1, 0
        while any(process.poll() is None for process in running):
            if self._clock() >= until:
                for process in running:
                    process.kill()
                code = 1
            elif self._asked > hurried:  # asked once more: they cut their requests short
                hurried = self._asked
                for process in running:
                    process.send_signal(signal.SIGINT)
            time.sleep(_POLL_S / 2)
        return code

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        if number == signal.SIGHUP:
            self._reload = True
            return
        self._asked += 1
        self._stop.set()


def _shared(family: socket.AddressFamily | int, host: str, port: int) -> socket.socket:
    """One of several sockets on an address."""
    try:
        return _bound(family, host, port, socket.SO_REUSEPORT)
    except OSError as error:
        # What a gateway of one process has closed of late stands in the way for a minute. Only then: with both options
        # a second gateway would find the address free until the first one listens.
        if error.errno != errno.EADDRINUSE:
            raise
        return _bound(family, host, port, socket.SO_REUSEADDR, socket.SO_REUSEPORT)


def _bound(family: socket.AddressFamily | int, host: str, port: int, *options: int) -> socket.socket:
    made = socket.socket(family)
    try:
        for option in options:
            made.setsockopt(socket.SOL_SOCKET, option, 1)
        made.bind((host, port))
    except BaseException:
        made.close()
        raise
    return made
