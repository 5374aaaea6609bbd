"""What ``tracer.yaml`` says, as frozen dataclasses. ``config.load`` reads and checks them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from tracer.gateway.calls import Wire
from tracer.gateway.credentials import HIDDEN, KeyHash, Secret

UpstreamKind = Literal["openai", "anthropic", "decisions", "systemone"]
Mode = Literal["observe", "shadow", "canary", "live"]
WhenDown = Literal["error", "degraded"]
Capture = Literal["full", "features", "hash", "off"]
LogLevel = Literal["debug", "info", "warning", "error"]
History = Literal["prompt", "ignore"]
SPOKEN: Mapping[UpstreamKind, tuple[Wire, ...]] = {
    "openai": ("openai.chat", "openai.responses", "decisions"),
    "anthropic": ("anthropic.messages",),
    "decisions": ("decisions",),
    "systemone": ("systemone",),
}
"""The formats of each kind of upstream, unless it says otherwise."""


@dataclass(frozen=True, slots=True)
class Listen:
    """Where the gateway listens, and with how many processes."""

    host: str = "127.0.0.1"
    port: int = 4000
    workers: int = 1


@dataclass(frozen=True, slots=True)
class Upstream:
    """An endpoint that answers what no policy does. ``fallbacks`` are names of others, tried in this order.

    ``timeout_s`` is the longest silence, not the whole answer; ``retries`` are tried before the first byte only.
    ``formats`` are what it speaks, where that is not what its kind does.
    """

    name: str
    base_url: str
    kind: UpstreamKind = "openai"
    api_key: Secret | None = None
    connect_timeout_s: float = 5.0
    timeout_s: float = 600.0
    retries: int = 2
    fallbacks: tuple[str, ...] = ()
    formats: tuple[Wire, ...] = ()

    @property
    def speaks(self) -> tuple[Wire, ...]:
        """The formats that it speaks: those of its kind unless ``formats`` names others."""
        return self.formats or SPOKEN[self.kind]


@dataclass(frozen=True, slots=True)
class InputSelector:
    """Where the variable text of a call is: by default the whole last user message.

    ``regex`` (RE2) searches the last user message, or the system prompt where ``source`` says so; ``group`` is the
    text. What its other groups match is variable too and is no part of the prompt: write ``(?:...)`` for groups that
    are. ``json`` is the path of the text in a user message that is a JSON object or list; the fields at the ``ignore``
    paths are no part of the prompt, all others are. ``history`` says whether earlier messages are part of it.
    """

    source: Literal["user", "system"] = "user"
    regex: str | None = None
    group: str | int = 1
    json: tuple[str, ...] | None = None
    ignore: tuple[tuple[str, ...], ...] = ()
    history: History = "prompt"


@dataclass(frozen=True, slots=True)
class Asking:
    """How the gateway itself asks the teacher for calls of ``/v1/classify``: the call that a client would have sent.

    ``system`` is the system prompt, ``user`` the user message with ``{text}`` in it. Where the task declares labels and
    ``field`` is not empty, the answer has a JSON schema in which this field is an enum of them; else it is the label as
    text. ``upstream`` None is the task's. ``at_once`` texts of one batch are asked side by side.
    """

    system: str
    user: str = "{text}"
    field: str = "label"
    upstream: str | None = None
    at_once: int = 8


@dataclass(frozen=True, slots=True)
class TaskConfig:
    """A classification task, whose home folder is ``home/tasks/<name>``.

    It is matched by ``models`` (aliases that no other traffic uses: whatever comes under one is taken for the task), by
    the header ``x-tracer-task: <name>``, or by ``fingerprints``. ``labels``, where declared, are all there are.
    ``label_field`` is the path of the label in a JSON answer that names it by no schema. ``teacher`` is the model that
    the upstream is asked for in place of the alias.

    ``fallback`` asks the teacher for native calls. ``labelled`` says that callers hand in a label for each native call
    that is left to them, within ``label_wait_s`` seconds. ``stateless`` says that no client refers to an answer later.
    """

    name: str
    upstream: str
    models: tuple[str, ...] = ()
    fingerprints: tuple[str, ...] = ()
    input: InputSelector = field(default_factory=InputSelector)
    labels: tuple[str, ...] | None = None
    label_field: tuple[str, ...] | None = None
    teacher: str | None = None
    target: float = 0.95
    delta: float = 0.05
    audit_rate: float = 0.02
    mode: Mode = "observe"
    share: float = 1.0
    embedder: str | None = None
    on_upstream_down: WhenDown = "error"
    capture: Capture = "full"
    redact: tuple[str, ...] = ()
    fallback: Asking | None = None
    labelled: bool = False
    label_wait_s: float = 600.0
    stateless: bool = False


@dataclass(frozen=True, slots=True)
class Key:
    """An API key of the gateway, by its digest. ``tasks`` None is all, and traffic of no task."""

    name: str
    digest: KeyHash
    tasks: tuple[str, ...] | None = None
    requests_per_s: float | None = None


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds on what one gateway takes: bytes of a body that is read here (others pass piece by piece), requests a
    second of all keys together, traces that wait.

    ``concurrency`` is how many requests may be under way. Of those, ``upstream_concurrency`` may ask one upstream, with
    its fall-backs, at a time; ``upstream_waiting`` more wait for that, each ``upstream_wait_s`` seconds at most.
    """

    body_bytes: int = 32 << 20
    requests_per_s: float | None = None
    queue: int = 10_000
    concurrency: int = 10_000
    upstream_concurrency: int = 200
    upstream_waiting: int = 1_000
    upstream_wait_s: float = 10.0


@dataclass(frozen=True, slots=True)
class TelemetrySettings:
    """OpenTelemetry. Where it goes to, and how, is said by the ``OTEL_*`` variables of the environment, as is the name
    of the service where ``service_name`` is None; ``tracer``, where neither says one."""

    enabled: bool = False
    service_name: str | None = None


@dataclass(frozen=True, slots=True)
class GatewayConfig:
    """All of ``tracer.yaml``. ``database`` None is SQLite in each task's home.

    The first upstream is the default one. ``metrics`` is the token that ``/metrics`` asks for. ``reload``: whether a
    changed file is taken up by itself. No ``repr`` and no ``redacted`` shows a secret.
    """

    listen: Listen
    home: Path
    database: Secret | None
    upstreams: tuple[Upstream, ...]
    tasks: tuple[TaskConfig, ...] = ()
    keys: tuple[Key, ...] = ()
    admin: KeyHash | None = None
    metrics: KeyHash | None = None
    limits: Limits = field(default_factory=Limits)
    log_level: LogLevel = "info"
    reload: bool = False
    telemetry: TelemetrySettings = field(default_factory=TelemetrySettings)

    def task_home(self, task: str) -> Path:
        """The home folder of a task."""
        return self.home / "tasks" / task

    def upstream(self, name: str) -> Upstream:
        """An upstream by name; a KeyError for one that there is not."""
        return {known.name: known for known in self.upstreams}[name]

    def redacted(self) -> dict[str, Any]:
        """The settings in force as JSON-ready values, each secret as ``***``."""
        return {name: _plain(getattr(self, name)) for name in self.__slots__}


def _plain(value: object) -> Any:
    if isinstance(value, Secret | KeyHash):
        return HIDDEN
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    if hasattr(value, "__dataclass_fields__"):
        return {name: _plain(getattr(value, name)) for name in value.__dataclass_fields__}
    return value
