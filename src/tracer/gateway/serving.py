"""All that a request is answered with, as one object that a reload swaps whole; and the gateway that holds it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from tracer.cost import price_of
from tracer.errors import TracerError
from tracer.gateway import reloading
from tracer.gateway import upstream as upstreams
from tracer.gateway.admission import Admission
from tracer.gateway.auth import Gate, check_bind
from tracer.gateway.calls import Call, Wire
from tracer.gateway.discovery import Discovery
from tracer.gateway.headers import Auth
from tracer.gateway.lines import TaskLine
from tracer.gateway.metrics import Metrics
from tracer.gateway.modes import tell_apart
from tracer.gateway.pooling import Pool
from tracer.gateway.retrying import Retries
from tracer.gateway.settings import GatewayConfig, TaskConfig, Upstream
from tracer.gateway.speaking import of_no_task
from tracer.gateway.switches import GatewaySwitch
from tracer.gateway.targets import stands_for_v1
from tracer.gateway.tasks import Accepted, TaskSet
from tracer.gateway.telemetry import Telemetry
from tracer.gateway.upstream import Chain, Client, Timeouts, Watch
from tracer.gateway.watching import Watched, WatchQueue, masked
from tracer.serving.coins import Rng
from tracer.types import Usage

if TYPE_CHECKING:
    from tracer.gateway.pages.looks import Look, Looks
    from tracer.gateway.pages.reports import Report, Reports

log = logging.getLogger("tracer.gateway")

TEND_S = 30.0
_LOOK_S = 0.5
_SHARE_S = 1.0
_RETIRE_S = 600.0
_CONNECTIONS = 200
_WORSE = ("closed", "half_open", "open")


class Chains:
    """The chains of a config: one for each upstream, and one more for each name that a task's teacher goes by there.

    Made as they are needed; raises ConfigError for upstreams that cannot be asked in turn.
    """

    def __init__(self, config: GatewayConfig, watch: Watch | None = None) -> None:
        self._config, self._watch = config, watch
        self._made: dict[tuple[str, str | None, bool], tuple[Chain, list[Client]]] = {}
        for known in config.upstreams:
            self.of(known.name, None, other=True)
        for task in config.tasks:
            self.of(task.upstream, task.teacher)

    def of(self, name: str, model: str | None, *, other: bool = False) -> Chain:
        """The chain that begins with an upstream; ``model`` in place of the request's. ``other`` traffic than that of
        tasks has connections and breakers of its own: no task suffers from what comes back there."""
        if (name, model, other) not in self._made:
            first = self._config.upstream(name)
            order = [first, *(self._config.upstream(other) for other in first.fallbacks)]
            clients = [Client(_settings(one, model, self._config.limits.upstream_concurrency)) for one in order]
            self._made[name, model, other] = Chain(clients, watch=self._watch), clients
        return self._made[name, model, other][0]

    def default(self, wire: Wire, *, known: bool) -> Chain:
        """The chain for traffic of no task, as `speaking.of_no_task` has it."""
        return self.of(of_no_task(self._config.upstreams, wire, known=known).name, None, other=True)

    @property
    def breakers(self) -> dict[str, str]:
        """State of each upstream's breaker; of the worst, where it is asked for several models."""
        found: dict[str, str] = {}
        for chain, _ in self._made.values():
            for name, state in chain.breakers.items():
                found[name] = max(found.get(name, "closed"), state, key=_WORSE.index)
        return found

    async def aclose(self) -> None:
        """Close all connections."""
        for _, clients in self._made.values():
            for client in clients:
                await client.aclose()


@dataclass(slots=True, eq=False)
class Serving:
    """One state of the configuration. A request takes it at its start and is answered wholly by it."""

    config: GatewayConfig
    tasks: TaskSet
    lines: Mapping[str, TaskLine]
    chains: Chains
    gate: Gate
    running: int = field(default=0)

    def accepted(self, task: str) -> Accepted:
        """The (teacher, prompt) pairs that a task's policy in force was fitted under."""
        return self.lines[task].accepted

    @classmethod
    def make(
        cls,
        config: GatewayConfig,
        before: Serving | None = None,
        rng: Rng | None = None,
        watch: Watch | None = None,
        switch: GatewaySwitch | None = None,
    ) -> Serving:
        """From a config; lines of tasks that are as they were go on. Raises ConfigError, StoreError."""
        chains = Chains(config, watch)
        same = before is not None and (before.config.home, before.config.database, before.config.limits.queue) == (
            config.home, config.database, config.limits.queue
        )  # fmt: skip
        old = before.lines if before is not None and same else {}
        lines: dict[str, TaskLine] = {}
        try:
            for task in config.tasks:
                kept = old.get(task.name)
                unchanged = kept is not None and kept.task == task
                lines[task.name] = (
                    kept if kept is not None and unchanged else TaskLine(config, task, rng=rng, switch=switch)
                )
        except BaseException:
            for line in lines.values():
                if line not in old.values():
                    line.close(0.0)
            raise
        for name, line in lines.items():
            earlier = before.lines.get(name) if before is not None else None
            if earlier is not None and earlier is not line and earlier.home == line.home:
                line.succeed(earlier)
        tell_apart(config)
        return cls(
            config,
            TaskSet(config.tasks),
            lines,
            chains,
            Gate(config, before=before.gate if before is not None else None),
        )


class Gateway:
    """What an app holds from its start to its end. ``reader`` reads the config again for a reload, from ``path``."""

    def __init__(
        self,
        config: GatewayConfig,
        *,
        reader: Callable[[], GatewayConfig] | None = None,
        path: Path | None = None,
        clock: Callable[[], float] = time.perf_counter,
        now: Callable[[], float] = time.time,
        rng: Rng | None = None,
        tend_s: float = TEND_S,
        pool: Pool | None = None,
    ) -> None:
        self._first, self._reader, self._path, self._rng, self._tend_s = config, reader, path, rng, tend_s
        self.clock, self.now, self._pool = clock, now, pool
        self.metrics, self.discovery = Metrics(), Discovery()
        self.admission = Admission(self.metrics.upstreams)
        self.switch = GatewaySwitch()
        self.telemetry: Telemetry | None = None
        self._looks: Looks | None = None
        self._reports: Reports | None = None
        self.ready = False
        self.bound: str | None = None
        """The address that it listens on, where that is known; else it is taken for that of the settings."""
        self.outdated = False
        """Whether the config was to be read again and could not be used: an older one is in force."""
        self.unwatched = 0
        self.workers: tuple[int, int] = (1, 1)
        """How many processes answer behind this port, a second or two ago, and how many are to."""
        self._reloading = asyncio.Lock()
        self._deaf: Callable[[], None] = lambda: None
        self._serving: Serving | None = None
        self._watched = WatchQueue()
        self._work: set[asyncio.Task[None]] = set()

    @property
    def serving(self) -> Serving:
        """The state in force."""
        if self._serving is None:
            raise RuntimeError("the gateway has not started")
        return self._serving

    @property
    def config(self) -> GatewayConfig:
        """The settings in force."""
        return self._serving.config if self._serving is not None else self._first

    def open(self) -> None:
        """Open stores and load policies; once. Raises TracerError."""
        if self._serving is None:
            price_of("gpt-4o-mini")  # reads the price list, for which no request is to wait
            self._serving = Serving.make(self._first, None, self._rng, self.metrics.upstreams, self.switch)

    async def start(self) -> None:
        """Open, where nobody did, and begin. Raises TracerError."""
        await asyncio.to_thread(self.open)
        if self._first.telemetry.enabled and self.telemetry is None:
            self.telemetry = await asyncio.to_thread(Telemetry.start, self._first.telemetry)
        if self._pool is not None:
            self.background(self._share(self._pool))
        self.background(self._look())
        self.background(self._every())
        self.background(self._discover())
        if self._reader is not None:
            self._deaf = reloading.on_hangup(self.background, self.reload)
        if self._path is not None and self._first.reload:
            anew = self._pool is not None and await asyncio.to_thread(self._pool.differs, self._path)
            self.background(reloading.watched(self._path, self._reload, anew=anew))  # each worker watches it
        self.ready = True

    async def stop(self) -> None:
        """Write what waits and let go of everything; requests are over by now."""
        self.ready = False
        self._deaf()
        for task in tuple(self._work):
            task.cancel()
        await asyncio.gather(*self._work, return_exceptions=True)
        for one in self._watched.drain():
            self._observe(one)
        await asyncio.to_thread(self._save)
        await asyncio.gather(*(asyncio.to_thread(line.close) for line in self.serving.lines.values()))
        if self._looks is not None:
            self._looks.close()
        if self._reports is not None:
            await self._reports.close()
        await self.serving.chains.aclose()
        if self.telemetry is not None:
            await asyncio.to_thread(self.telemetry.close)

    async def reload(self) -> None:
        """Take up the config file as it is now, in all workers; on an error the old goes on. Raises TracerError."""
        await self._reload()
        if self._pool is not None:
            await asyncio.to_thread(self._pool.announce)

    async def _reload(self) -> None:
        async with self._reloading:
            old, self.outdated = self.serving, True
            config = await asyncio.to_thread(self._reader) if self._reader is not None else old.config
            check_bind(config, self.bound or config.listen.host)
            new = await asyncio.to_thread(Serving.make, config, old, self._rng, self.metrics.upstreams, self.switch)
            self._serving, self.outdated = new, False
            if self._pool is not None:
                await asyncio.to_thread(self._pool.keep)
        self.background(self._retire(old, new))

    def switch_off(self, off: bool) -> list[str]:
        """Everything to the teacher in all tasks, or no longer; what `GatewaySwitch.turn` could not write."""
        tasks = [(name, line.home) for name, line in self.serving.lines.items()]
        return self.switch.turn(off, self.serving.config.home, tasks)

    def watch(self, call: Call, output: str | None, usage: Usage | None, task: TaskConfig | None = None) -> None:
        """Let discovery see a call, unless its task keeps no texts; one that finds no room is left out and counted."""
        if task is not None and task.capture != "full":
            return
        redact = () if task is None else task.redact
        if not self._watched.put(Watched(call, output, self.now(), usage, redact)):
            self.unwatched += 1

    def background(self, work: Awaitable[None]) -> None:
        """Run beside the requests, until it ends or the gateway does."""
        task: asyncio.Task[None] = asyncio.ensure_future(work)
        self._work.add(task)
        task.add_done_callback(self._work.discard)

    async def tend(self) -> None:
        """What is done every 30 seconds: tallies and discoveries are written, and the audits looked at."""
        await self.write()
        try:
            for look in await (await self.looks()).tend(tuple(self.serving.lines.values())):
                self._tell(look)
        except Exception as error:  # what cannot be read must not stop what is written
            log.warning("the tasks could not be looked at: %s", type(error).__name__)
            log.debug("the failure", exc_info=error)

    async def write(self) -> None:
        """Write tallies and discoveries."""
        for line in self.serving.lines.values():
            try:
                await asyncio.to_thread(line.tend)
                await asyncio.to_thread(line.settle, self.clock())
            except TracerError as error:
                log.warning("tallies of task %s wait: %s", line.task.name, type(error).__name__)
        await asyncio.to_thread(self._save)

    async def looks(self) -> Looks:
        """What is known of the tasks, for people. Loaded when it is first wanted: no request is to wait for it."""
        if self._looks is None:
            made = await asyncio.to_thread(_make_looks, self.now)
            self._looks = self._looks or made
        return self._looks

    async def report(self, line: TaskLine, wait_s: float | None = None) -> Report | None:
        """The report of a task's policy in force; None where it is not ready in ``wait_s`` seconds, and goes on.

        Raises TracerError where no policy is in force, or no report can be made.
        """
        if self._reports is None:
            self._reports = await asyncio.to_thread(_make_reports)
        (look,) = await (await self.looks()).of([line])
        database = self.config.database
        return await self._reports.of(line, look, None if database is None else database.reveal(), wait_s)

    def _tell(self, look: Look) -> None:
        found = look.agreement
        if found is None or not found.behind:
            self.metrics.live(
                look.name,
                None if found is None else found.agreement,
                None if found is None or not found.n_handled else (found.low, found.high),
                None if found is None else found.target,
                0 if found is None else found.n_handled,
                found is not None and found.status == "alarm",
                0 if found is None else len(found.warnings) + (found.status == "warn"),
            )

    async def _look(self) -> None:
        """Policies and settings are taken up beside the requests: loading takes longer than many of them."""
        while True:
            await asyncio.sleep(_LOOK_S)
            for line in tuple(self.serving.lines.values()):
                await asyncio.to_thread(line.look)

    async def exposition(self) -> bytes:
        """The metrics as Prometheus reads them, those of all workers."""
        own = self._exposition()
        return own if self._pool is None else await asyncio.to_thread(self._pool.merged, own)

    def _exposition(self) -> bytes:
        self.metrics.upstreams.states(self.serving.chains.breakers)
        self.metrics.fleet(*self.workers)
        return self.metrics.exposition(self.serving.lines.values())

    async def _share(self, pool: Pool) -> None:
        """Tell the other workers one's numbers, and do what one of them was told to do."""
        while True:
            try:
                await asyncio.to_thread(pool.publish, self._exposition())
                if (living := await asyncio.to_thread(pool.living)) is not None:
                    self.workers = living
                if await asyncio.to_thread(pool.asked):
                    await reloading.reload_logged(self._reload, "a worker was told to")
            except (TracerError, OSError) as error:
                log.warning("what the workers share cannot be used: %s", type(error).__name__)
            await asyncio.sleep(_SHARE_S)

    async def _every(self) -> None:
        while True:
            await asyncio.sleep(self._tend_s)
            await self.tend()

    async def _discover(self) -> None:
        while True:
            await asyncio.to_thread(self._observe, await self._watched.get())

    def _observe(self, one: Watched) -> None:
        self.discovery.observe(*masked(one), at=one.at, usage=one.usage)

    def _save(self) -> None:
        home: Path = self.serving.config.home
        try:
            if self.discovery.proposals():
                home.mkdir(parents=True, exist_ok=True)
                self.discovery.save(home)
        except (TracerError, OSError) as error:
            log.warning("discovered tasks could not be saved: %s", type(error).__name__)

    async def _retire(self, old: Serving, new: Serving) -> None:
        begun = self.clock()
        with contextlib.suppress(asyncio.CancelledError):
            while old.running and self.clock() - begun < _RETIRE_S:
                await asyncio.sleep(0.05)
        kept = set(map(id, new.lines.values()))
        for line in old.lines.values():
            if id(line) not in kept:
                await asyncio.to_thread(line.close)
                self.metrics.retire(line)
        await old.chains.aclose()


def _make_looks(now: Callable[[], float]) -> Looks:
    from tracer.gateway.pages.looks import Looks

    return Looks(now)


def _make_reports() -> Reports:
    from tracer.gateway.pages.reports import Reports

    return Reports()


def _settings(one: Upstream, model: str | None, most: int) -> upstreams.Upstream:
    key = one.api_key.reveal() if one.api_key is not None else None
    auth: Auth | None = None
    if key is not None:
        auth = "x-api-key" if one.kind == "anthropic" else "bearer"
    times = Timeouts(one.connect_timeout_s, one.timeout_s, max(Timeouts().total_s, one.timeout_s))
    return upstreams.Upstream(
        one.name, one.base_url, key, auth, model, timeouts=times, retries=Retries(attempts=1 + one.retries),
        max_connections=max(_CONNECTIONS, most), instead=stands_for_v1(one.base_url, one.kind),
    )  # fmt: skip
