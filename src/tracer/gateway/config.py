"""Reading ``tracer.yaml``. Unknown keys are errors; each error names file, line, key and value, and no secret.

``${NAME}`` and ``${NAME:-default}`` (and LiteLLM's ``os.environ/NAME``) stand for variables of the environment in urls,
secrets and folders. A secret that is written out is refused: it would be in every copy of the file.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args
from urllib.parse import urlsplit

from tracer.errors import ConfigError
from tracer.gateway import patterns
from tracer.gateway.composing import is_selected
from tracer.gateway.credentials import KeyHash, Secret
from tracer.gateway.documents import Node, parsed
from tracer.gateway.settings import (
    WIRES,
    Asking,
    Capture,
    GatewayConfig,
    History,
    InputSelector,
    Key,
    Limits,
    Listen,
    LogLevel,
    Mode,
    TaskConfig,
    TelemetrySettings,
    Upstream,
    UpstreamKind,
    WhenDown,
)

__all__ = ["GatewayConfig", "InputSelector", "Key", "Limits", "Listen", "TaskConfig", "Upstream", "load", "parse"]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_TOP = (
    "listen", "home", "database", "upstreams", "tasks", "keys", "admin", "limits", "log_level", "telemetry", "reload",
    "metrics",
)  # fmt: skip
_UPSTREAM = ("base_url", "kind", "api_key", "connect_timeout_s", "timeout_s", "retries", "fallbacks", "speaks")
_TASK = (
    "match", "input", "label", "upstream", "teacher", "target", "delta", "audit_rate", "mode", "share", "embedder",
    "on_upstream_down", "capture", "redact", "fallback", "callers_label", "callers_label_within_s", "stateless",
)  # fmt: skip
_FALLBACK = ("system", "user", "field", "upstream", "at_once")
_FLAGS = {"callers_label": "labelled", "stateless": "stateless"}
_COUNTS = {
    "body_bytes": (1024, 1 << 30), "queue": (1, 10_000_000), "concurrency": (1, 1_000_000),
    "upstream_concurrency": (1, 100_000), "upstream_waiting": (0, 1_000_000),
}  # fmt: skip
_RATES = {"requests_per_s": (0.001, 1e6), "upstream_wait_s": (0.0, 600.0)}
_INPUT = ("from", "regex", "group", "json", "ignore", "history")


def load(path: str | Path, environ: Mapping[str, str]) -> GatewayConfig:
    """The settings in a file. Raises ConfigError that names file, line, key and value."""
    return parse(read(path), environ, source=str(path))


def read(path: str | Path) -> str:
    """The text of a file of settings. Raises ConfigError where there is none."""
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or 'is not UTF-8'}") from error


def parse(content: str, environ: Mapping[str, str], *, source: str = "tracer.yaml") -> GatewayConfig:
    """The settings in a document. A relative ``home`` is relative to the working folder. Raises ConfigError."""
    root = parsed(content, source, environ)
    top = root.mapping("the gateway", _TOP)
    if "upstreams" not in top:
        raise ConfigError(f"{source}: upstreams: there must be at least one")
    if not (named := top["upstreams"].entries()):
        top["upstreams"].fail("there must be at least one")
    upstreams = tuple(_upstream(name, node, tuple(named)) for name, node in named.items())
    _check_alike(upstreams, named)
    tasks = tuple(_task(_named(n, node), node, upstreams) for n, node in _entries(top.get("tasks")))
    _check_apart(tasks, top.get("tasks"))
    names = tuple(task.name for task in tasks)
    keys = tuple(_key(_named(n, node), node, names) for n, node in _entries(top.get("keys")))
    return GatewayConfig(
        listen=_listen(top.get("listen")),
        home=Path(top["home"].expanded() if "home" in top else ".tracer").expanduser(),
        database=_database(top.get("database"), environ),
        upstreams=upstreams,
        tasks=tasks,
        keys=keys,
        admin=_token("admin", top.get("admin")),
        metrics=_token("metrics", top.get("metrics")),
        limits=_limits(top.get("limits")),
        log_level=_word(top, "log_level", get_args(LogLevel), "info"),
        reload=_yes(top, "reload"),
        telemetry=_telemetry(top.get("telemetry")),
    )


def _listen(node: Node | None) -> Listen:
    at = node.mapping("listen", ("host", "port", "workers")) if node is not None else {}
    given: dict[str, Any] = {"host": at["host"].text()} if "host" in at else {}
    for key, low, high in (("port", 0, 65535), ("workers", 1, 256)):
        if key in at:
            given[key] = at[key].integer(low, high)
    return Listen(**given)


def _database(node: Node | None, environ: Mapping[str, str]) -> Secret | None:
    if node is None:
        url = environ.get("DATABASE_URL", "")
        return Secret(url) if url else None
    return node.secret()


def _limits(node: Node | None) -> Limits:
    at = node.mapping("limits", (*_COUNTS, *_RATES)) if node is not None else {}
    given: dict[str, Any] = {key: at[key].integer(*_COUNTS[key]) for key in at if key in _COUNTS}
    given |= {key: at[key].number(*_RATES[key]) for key in at if key in _RATES}
    return Limits(**given)


def _telemetry(node: Node | None) -> TelemetrySettings:
    at = node.mapping("telemetry", ("enabled", "service_name")) if node is not None else {}
    name = at["service_name"].text() if "service_name" in at else None
    return TelemetrySettings(_yes(at, "enabled"), name)


def _token(what: str, node: Node | None) -> KeyHash | None:
    if node is None:
        return None
    at = node.mapping(what, ("token_hash",))
    return _hash(at["token_hash"]) if "token_hash" in at else node.fail("needs token_hash")


def _hash(node: Node) -> KeyHash:
    try:
        return KeyHash(node.expanded())
    except ConfigError as error:
        node.fail(str(error), hide=True)


def _key(name: str, node: Node, tasks: tuple[str, ...]) -> Key:
    at = node.mapping("a key", ("hash", "tasks", "requests_per_s"))
    if "hash" not in at:
        node.fail("needs hash")
    scope = at["tasks"].strings() if "tasks" in at else None
    for task in scope or ():
        if task not in tasks:
            at["tasks"].fail(f"there is no task {task!r}")
    rate = at["requests_per_s"].number(0.001, 1e6) if "requests_per_s" in at else None
    return Key(name, _hash(at["hash"]), scope, rate)


def _upstream(name: str, node: Node, known: tuple[str, ...]) -> Upstream:
    _named(name, node)
    at = node.mapping("an upstream", _UPSTREAM)
    if "base_url" not in at:
        node.fail("needs base_url")
    fallbacks = at["fallbacks"].strings() if "fallbacks" in at else ()
    for other in fallbacks:
        if other not in known or other == name:
            at["fallbacks"].fail(f"{other!r} is no other upstream; there are {', '.join(known)}")
    given: dict[str, Any] = {}
    for key, low, high in (("connect_timeout_s", 0.01, 600), ("timeout_s", 0.01, 3600)):
        if key in at:
            given[key] = at[key].number(low, high)
    if "speaks" in at:
        given["formats"] = tuple(WIRES[item.choice(tuple(WIRES))] for item in at["speaks"].items())
    if "retries" in at:
        given["retries"] = at["retries"].integer(0, 10)
    secret = at["api_key"].secret() if "api_key" in at else None
    kind = _word(at, "kind", get_args(UpstreamKind), "openai")
    return Upstream(name, _url(at["base_url"]), kind, secret, fallbacks=fallbacks, **given)


def _url(node: Node) -> str:
    url = node.expanded().rstrip("/")
    try:
        parts = urlsplit(url)
        sound = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        sound = False
    if not sound or parts.query or parts.fragment:
        node.fail("must be an http or https url without query", hide=True)
    if parts.username or parts.password:
        node.fail("must hold no user and no password: use api_key", hide=True)
    return url


def _task(name: str, node: Node, upstreams: tuple[Upstream, ...]) -> TaskConfig:
    at = node.mapping("a task", _TASK)
    match = at["match"].mapping("match", ("models", "fingerprints")) if "match" in at else {}
    label = at["label"].mapping("label", ("options", "field")) if "label" in at else {}
    given: dict[str, Any] = {key: match[key].strings() for key in match}
    known = tuple(upstream.name for upstream in upstreams)
    if "options" in label:
        given["labels"] = label["options"].strings()
        if len(given["labels"]) < 2:
            label["options"].fail("a task needs at least two labels")
    if "field" in label:
        given["label_field"] = _path(label["field"])
    if "input" in at:
        given["input"] = _input(at["input"])
    for key in ("target", "delta", "audit_rate", "share"):
        if key in at:
            given[key] = at[key].number(0, 1, open_ends=key in ("target", "delta"))
    given |= {key: at[key].text() for key in ("embedder", "teacher") if key in at}
    words = {"mode": Mode, "on_upstream_down": WhenDown, "capture": Capture}
    given |= {key: at[key].choice(get_args(words[key])) for key in words if key in at}
    if given.get("capture") == "features" and "embedder" not in given:
        at["capture"].fail("needs an embedder, whose vectors are what is kept")
    if "redact" in at:
        given["redact"] = tuple(_pattern(item) for item in at["redact"].items())
    given |= {field: _flag(at[key]) for key, field in _FLAGS.items() if key in at}
    if "callers_label_within_s" in at:
        given["label_wait_s"] = at["callers_label_within_s"].number(1, 86_400)
    task = TaskConfig(name, _word(at, "upstream", known, known[0]), **given)
    return replace(task, fallback=_fallback(at["fallback"], task, known)) if "fallback" in at else task


def _fallback(node: Node, task: TaskConfig, known: tuple[str, ...]) -> Asking:
    at = node.mapping("a fallback", _FALLBACK)
    if task.teacher is None:
        node.fail("needs the task's teacher: the model that is asked")
    if task.labelled:
        node.fail("the gateway asks the teacher, or the callers do: give callers_label or a fallback")
    given: dict[str, Any] = {key: at[key].text() for key in ("system", "user") if key in at}
    if "field" in at:
        given["field"] = at["field"].text()
    if "upstream" in at:
        given["upstream"] = at["upstream"].choice(known)
    if "at_once" in at:
        given["at_once"] = at["at_once"].integer(1, 1000)
    asking = Asking(given.pop("system", ""), **given)
    if asking.user.count("{text}") != 1:
        at.get("user", node).fail("must hold {text} once")
    if not is_selected(task, asking):
        node.fail("the task's input does not find {text} in this prompt")
    return asking


def _flag(node: Node) -> bool:
    return node.choice(("true", "false")) == "true"


def _input(node: Node) -> InputSelector:
    at = node.mapping("input", _INPUT)
    source = _word(at, "from", ("user", "system"), "user")
    history = _word(at, "history", get_args(History), "prompt")
    if "regex" in at and "json" in at:
        at["json"].fail("give a regex or a json path, not both")
    if "json" in at:
        if source == "system" or "group" in at:
            node.fail("a json path reads the last user message, and has no group")
        ignored = tuple(_path(item) for item in at["ignore"].items()) if "ignore" in at else ()
        return InputSelector(json=_path(at["json"]), ignore=ignored, history=history)
    if "ignore" in at:
        at["ignore"].fail("goes with a json path")
    if "regex" not in at:
        if source == "system" or "group" in at:
            node.fail("needs a regex")
        return InputSelector(history=history)
    regex = _pattern(at["regex"])
    wanted = at["group"].text() if "group" in at else "1"
    group = int(wanted) if wanted.isascii() and wanted.isdigit() else wanted
    try:
        patterns.group_number(regex, group)
    except ConfigError as error:
        at.get("group", at["regex"]).fail(f"there is no group {group!r}: {error}")
    return InputSelector(source, regex, group, history=history)


def _path(node: Node) -> tuple[str, ...]:
    """A dotted path, such as ``ticket.messages.0.body``."""
    parts = tuple(node.text().split("."))
    if not all(parts) or len(parts) > 32:
        node.fail("must be a dotted path of at most 32 parts, such as ticket.body")
    return parts


def _pattern(node: Node) -> str:
    pattern = node.text()
    try:
        patterns.compiled(pattern)
    except ConfigError as error:
        node.fail(str(error))
    return pattern


def _named(name: str, node: Node) -> str:
    if not _NAME.fullmatch(name):
        node.fail("a name has up to 64 letters, digits, dots, dashes and underscores, and begins with no dash")
    return name


def _entries(node: Node | None) -> list[tuple[str, Node]]:
    return list(node.entries().items()) if node is not None else []


def _word(at: Mapping[str, Node], key: str, allowed: tuple[str, ...], default: Any) -> Any:
    return at[key].choice(allowed) if key in at else default


def _yes(at: Mapping[str, Node], key: str) -> bool:
    return bool(_word(at, key, ("true", "false"), "false") == "true")


def _check_apart(tasks: tuple[TaskConfig, ...], node: Node | None) -> None:
    """No alias and no fingerprint belongs to two tasks."""
    owner: dict[tuple[str, str], str] = {}
    for task in tasks:
        for kind, values in (("model", task.models), ("fingerprint", task.fingerprints)):
            for value in values:
                other = owner.setdefault((kind, value), task.name)
                if other != task.name and node is not None:
                    node.entries()[task.name].fail(f"{kind} {value!r} belongs to task {other!r} already")


def _check_alike(upstreams: tuple[Upstream, ...], nodes: Mapping[str, Node]) -> None:
    """A request is translated once, for the first upstream: what answers questions falls back to its own kind."""
    asked = {"decisions", "systemone"}
    known = {upstream.name: upstream for upstream in upstreams}
    for upstream in upstreams:
        for name in upstream.fallbacks:
            kinds = {upstream.kind, known[name].kind}
            if kinds & asked and (len(kinds) > 1 or upstream.speaks[0] != known[name].speaks[0]):
                nodes[upstream.name].fail(f"a fallback of kind {known[name].kind} does not go with {upstream.kind}")
