"""The settings in force in the words and the structure of ``tracer.yaml``, without secrets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from tracer.gateway.credentials import HIDDEN
from tracer.gateway.settings import WIRES, Asking, GatewayConfig, InputSelector, Key, TaskConfig, Upstream

_NAMES = {wire: name for name, wire in WIRES.items()}


def written(config: GatewayConfig) -> dict[str, Any]:
    """The settings as JSON-ready values, defaults included, each secret as ``***``; what is not set is left out.

    Read again they are the same settings, but for the secrets.
    """
    return _set(
        listen=_fields(config.listen),
        home=str(config.home),
        database=_hidden(config.database),
        upstreams={upstream.name: _upstream(upstream) for upstream in config.upstreams},
        tasks={task.name: _task(task) for task in config.tasks},
        keys={key.name: _key(key) for key in config.keys},
        admin=None if config.admin is None else {"token_hash": HIDDEN},
        metrics=None if config.metrics is None else {"token_hash": HIDDEN},
        limits=_fields(config.limits),
        telemetry=_fields(config.telemetry),
        reload=config.reload,
        log_level=config.log_level,
    )


def _upstream(upstream: Upstream) -> dict[str, Any]:
    known = _without(_fields(upstream), "name", "formats", "api_key")
    speaks = [_NAMES[wire] for wire in upstream.speaks]
    return _set(**known, api_key=_hidden(upstream.api_key), speaks=speaks)


def _key(key: Key) -> dict[str, Any]:
    return _set(hash=HIDDEN, tasks=_list(key.tasks), requests_per_s=key.requests_per_s)


def _task(task: TaskConfig) -> dict[str, Any]:
    other = _without(
        _fields(task), "name", "models", "fingerprints", "input", "labels", "label_field", "fallback", "labelled",
        "label_wait_s",
    )  # fmt: skip
    return _set(
        match={"models": list(task.models), "fingerprints": list(task.fingerprints)},
        input=_input(task.input),
        label=_set(options=_list(task.labels), field=_path(task.label_field)),
        **other,
        fallback=None if task.fallback is None else _fallback(task.fallback),
        callers_label=task.labelled,
        callers_label_within_s=task.label_wait_s,
    )


def _fallback(asking: Asking) -> dict[str, Any]:
    return {key: value for key, value in _fields(asking).items() if value != "" or key == "field"}


def _input(selector: InputSelector) -> dict[str, Any]:
    known = _set(regex=selector.regex, json=_path(selector.json), history=selector.history)
    if selector.regex is not None:
        known["group"] = selector.group
    if selector.json is not None:
        known["ignore"] = [_path(path) for path in selector.ignore]
    return {"from": selector.source, **known}


def _fields(value: Any) -> dict[str, Any]:
    """What a dataclass of settings holds, as plain values, but for what is not set."""
    found = {known.name: getattr(value, known.name) for known in fields(value)}
    return _set(**{name: list(at) if isinstance(at, tuple) else at for name, at in found.items()})


def _set(**values: Any) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _without(values: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name not in names}


def _path(parts: tuple[str, ...] | None) -> str | None:
    return None if parts is None else ".".join(parts)


def _list(values: tuple[str, ...] | None) -> list[str] | None:
    return None if values is None else list(values)


def _hidden(secret: object) -> str | None:
    return None if secret is None else HIDDEN
