"""``tracer key``: what it prints opens a gateway, and no two are alike."""

from __future__ import annotations

import json
from typing import Any

from typer.testing import CliRunner

from tracer.cli.app import app
from tracer.gateway.auth import Gate
from tracer.gateway.config import parse


def run(*arguments: str) -> Any:
    # A narrow terminal: a key that is broken over two lines cannot be copied.
    result = CliRunner(env={"COLUMNS": "40", "NO_COLOR": "1"}).invoke(app, ["key", *arguments])
    assert result.exit_code == 0, result.output
    return result


def test_the_hash_lets_the_key_in_and_no_other() -> None:
    lines = dict(line.split(":", 1) for line in run().stdout.splitlines())
    key, digest = lines["key"].strip(), lines["hash"].strip()
    config = "upstreams: {main: {base_url: http://127.0.0.1:9/v1}}\nkeys: {web: {hash: '${KEY_HASH}'}}\n"
    config += "admin: {token_hash: '${KEY_HASH}'}\n"
    read = parse(config, {"KEY_HASH": digest})
    gate = Gate(read)
    caller = gate.caller({"authorization": f"Bearer {key}"})
    assert caller is not None
    assert caller.name == "web"
    assert read.admin is not None
    assert read.admin.check(key)
    assert gate.caller({"authorization": f"Bearer {key[:-1]}"}) is None


def test_as_json_and_each_time_another() -> None:
    first, second = (json.loads(run("--json").stdout) for _ in range(2))
    assert set(first) == {"key", "hash"}
    assert first["key"] != second["key"]
    assert first["hash"] != second["hash"]


def test_the_key_stands_on_standard_output_alone() -> None:
    result = run()
    key = result.stdout.split()[1]
    assert key.startswith("tr-")
    assert key not in result.stderr
    assert "not shown again" in " ".join(result.stderr.split())
