"""docs/settings.md says what `tracer.yaml` may say: every key with its default, and no other."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from tracer.errors import ConfigError
from tracer.gateway import config as reading
from tracer.gateway.credentials import sha256_of
from tracer.gateway.documents import Node
from tracer.gateway.printing import written

PAGE = Path(__file__).parents[2] / "docs" / "settings.md"
HEADINGS = {
    "the gateway": "The file", "an upstream": "An upstream", "a task": "A task", "a key": "A key",
    "a fallback": "fallback",
}  # fmt: skip
UPSTREAM = 'upstreams: {u: {base_url: "http://u"}}'
LACKING = {"The file": "home: x", "An upstream": "upstreams: {u: {}}", "A key": f"keys: {{k: {{}}}}\n{UPSTREAM}"}
ROW = re.compile(r"\| `([a-z_]+)` \| (.+?) \| .+ \|")


def tables() -> dict[str, dict[str, str]]:
    """The default of each key, as it is written, by heading."""
    parts = re.split(r"^##+ (.+)$", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    found = {name: dict(ROW.findall(body)) for name, body in zip(parts[1::2], parts[2::2], strict=True)}
    return {name: rows for name, rows in found.items() if rows}


def example() -> str:
    found: list[str] = re.findall(r"```yaml\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    return found[-1]


def environ() -> Mapping[str, str]:
    digest = sha256_of("a key")
    return dict.fromkeys(re.findall(r"\$\{(\w+)\}", example()), digest) | {"DATABASE_URL": "postgresql://h/d"}


@pytest.fixture
def accepted(monkeypatch: pytest.MonkeyPatch) -> dict[str, tuple[str, ...]]:
    """The keys of each section, as the reader of the settings asks for them while it reads the example."""
    seen: dict[str, tuple[str, ...]] = {}
    mapping = Node.mapping

    def watched(node: Node, what: str, known: tuple[str, ...]) -> dict[str, Node]:
        seen[HEADINGS.get(what, what)] = known
        return mapping(node, what, known)

    monkeypatch.setattr(Node, "mapping", watched)
    reading.parse(example(), environ())
    return seen


def test_every_key_stands_in_the_page_and_no_other(accepted: dict[str, tuple[str, ...]]) -> None:
    asked = len(re.findall(r"\.mapping\(", inspect.getsource(reading)))
    assert len(accepted) == asked + 1, "the example has every section; admin and metrics are read by one line"
    told = {name: set(rows) for name, rows in tables().items()}
    assert told == {name: set(known) for name, known in accepted.items()}


def test_the_example_names_every_key() -> None:
    keys = {key for rows in tables().values() for key in rows}
    assert keys <= set(re.findall(r"(?:^|[ {])([a-z_]+):", example(), re.MULTILINE))


def defaults() -> dict[str, Any]:
    """What is in force, by heading, where only what is required is written."""
    digest = sha256_of("a key")
    least = f"""
upstreams: {{u: {{base_url: "http://u"}}}}
tasks:
  t: {{}}
  regex: {{input: {{regex: (.*)}}}}
  json: {{input: {{json: a}}}}
  asked: {{teacher: m, fallback: {{}}}}
keys: {{k: {{hash: "{digest}"}}}}
admin: {{token_hash: "{digest}"}}
metrics: {{token_hash: "{digest}"}}
"""
    shown = written(reading.parse(least, {}))
    tasks = shown["tasks"]
    inputs = tasks["regex"]["input"] | tasks["json"]["input"]
    return {
        "The file": written(reading.parse(UPSTREAM, {})),
        "An upstream": shown["upstreams"]["u"], "A task": tasks["t"], "match": tasks["t"]["match"],
        "input": {key: value for key, value in inputs.items() if key not in ("regex", "json")},
        "label": tasks["t"]["label"], "fallback": tasks["asked"]["fallback"], "A key": shown["keys"]["k"],
        "listen": shown["listen"], "admin": shown["admin"], "metrics": shown["metrics"], "limits": shown["limits"],
        "telemetry": shown["telemetry"],
    }  # fmt: skip


def test_defaults_are_those_of_the_code() -> None:
    known = defaults()
    assert set(known) == set(tables())
    for name, rows in tables().items():
        for key, told in rows.items():
            at = f"{name}: {key}"
            if told == "none":
                assert key not in known[name], at
            elif told.startswith("`"):
                assert known[name][key] == yaml.safe_load(told.strip("`")), at
            elif told == "see there":
                assert key in known, at
            elif told == "the first one":
                assert known[name][key] == "u", at
            else:
                assert told == "required", at
                with pytest.raises(ConfigError, match=key):
                    reading.parse(LACKING.get(name, f"{name}: {{}}\n{UPSTREAM}"), {})
