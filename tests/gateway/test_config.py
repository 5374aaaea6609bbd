"""tracer.yaml: what it may say, and errors word for word."""
# ruff: noqa: E501

from __future__ import annotations

import hashlib
import json
import traceback
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tracer.errors import ConfigError
from tracer.gateway.config import load, parse
from tracer.gateway.credentials import KeyHash, Secret
from tracer.gateway.printing import written
from tracer.gateway.settings import InputSelector

UP = "upstreams: {openai: {base_url: 'https://api.openai.com/v1'}}\n"
DIGEST = "sha256:" + hashlib.sha256(b"key-1").hexdigest()
FULL = f"""
listen: {{host: 0.0.0.0, port: 8080}}
home: ${{STATE:-/var/lib/tracer}}
database: ${{DB:-}}
upstreams:
  openai:
    base_url: ${{OPENAI_BASE_URL:-https://api.openai.com/v1}}
    api_key: ${{OPENAI_API_KEY}}
    retries: 3
    fallbacks: [claude]
  claude: {{base_url: "https://api.anthropic.com", kind: anthropic, api_key: os.environ/ANTHROPIC_KEY}}
tasks:
  desk:
    match: {{models: [support-desk], fingerprints: abcd}}
    input: {{regex: '(?s)Message: (?P<text>.*)', group: text}}
    label: {{options: [no, yes], field: result.desk}}
    teacher: gpt-4o-mini
    target: 0.9
    mode: live
    redact: ['\\d{{6,}}']
    capture: hash
    on_upstream_down: degraded
keys:
  shop: {{hash: "{DIGEST}", tasks: [desk], requests_per_s: 20}}
admin: {{token_hash: "{DIGEST}"}}
limits: {{body_bytes: 65536, queue: 50}}
log_level: debug
"""
SECRETS = {"OPENAI_API_KEY": "sk-very-secret-1", "ANTHROPIC_KEY": "ak-very-secret-2", "DB": "postgresql://u:pw3@h/d"}


def test_a_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "tracer.yaml"
    path.write_text(FULL, encoding="utf-8")
    config = load(path, SECRETS)
    assert (config.listen.host, config.listen.port, config.log_level) == ("0.0.0.0", 8080, "debug")  # noqa: S104
    assert config.task_home("desk") == Path("/var/lib/tracer/tasks/desk")
    assert config.database == Secret("postgresql://u:pw3@h/d")
    openai, claude = config.upstreams
    assert (openai.base_url, openai.api_key, openai.retries, openai.fallbacks) == (
        "https://api.openai.com/v1", Secret("sk-very-secret-1"), 3, ("claude",),
    )  # fmt: skip
    assert (claude.kind, claude.api_key, config.upstream("claude")) == ("anthropic", Secret("ak-very-secret-2"), claude)
    (task,) = config.tasks
    assert task.labels == ("no", "yes"), "words that YAML may read as booleans are labels"
    assert (task.models, task.fingerprints, task.upstream) == (("support-desk",), ("abcd",), "openai")
    assert task.input == InputSelector("user", "(?s)Message: (?P<text>.*)", "text")
    assert (task.label_field, task.target, task.delta, task.audit_rate) == (("result", "desk"), 0.9, 0.05, 0.02)
    (key,) = config.keys
    assert (key.tasks, key.requests_per_s, key.digest.check("key-1"), key.digest.check("key-2")) == (
        ("desk",), 20.0, True, False,
    )  # fmt: skip


def test_the_defaults_are_safe() -> None:
    config = parse(UP, {})
    assert (config.listen.host, config.listen.port, config.home) == ("127.0.0.1", 4000, Path(".tracer"))
    assert (config.database, config.keys, config.admin, config.tasks) == (None, (), None, ())
    assert parse(UP + "tasks: {a: {}}", {}).tasks[0].mode == "observe"
    assert parse(UP, {"DATABASE_URL": "postgresql://h/d"}).database == Secret("postgresql://h/d")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "tracer.yaml: is empty"),
        ("home: x", "tracer.yaml: upstreams: there must be at least one"),
        ("home: x\nupstreams: {}", "tracer.yaml:2: upstreams = {...}: there must be at least one"),
        ("a: [", "tracer.yaml:1: is no YAML: expected the node content"),
        ("a: {b: 1, c: 2\nd: 3", "tracer.yaml:2: is no YAML: expected ',' or '}', but got ':'"),
        ("a: [b\nc: d}", "tracer.yaml:2: is no YAML: expected ',' or ']', but got ':'"),
        ("a: *secret-name", "tracer.yaml:1: is no YAML: found undefined alias ***"),
        ("- a", "tracer.yaml:1:  = [...]: must be a mapping"),
        (UP + "tasks:\n  desk:\n    traget: 0.9", "tracer.yaml:4: tasks.desk.traget = 0.9: is no setting of a task; did you mean 'target'?"),
        (UP + "lisen: {port: 1}", "tracer.yaml:2: lisen = {...}: is no setting of the gateway; did you mean 'listen'?"),
        (UP + "limits: {zzz: 3}", "tracer.yaml:2: limits.zzz = 3: is no setting of limits; there are body_bytes, queue, concurrency, upstream_concurrency, upstream_waiting, requests_per_s, upstream_wait_s"),
        (UP + "listen: {port: 99999}", "tracer.yaml:2: listen.port = 99999: must be a whole number between 0 and 65535"),
        (UP + "listen: {port: 1.5}", "tracer.yaml:2: listen.port = 1.5: must be a whole number between 0 and 65535"),
        (UP + "listen: {port: .nan}", "tracer.yaml:2: listen.port = .nan: must be a number"),
        (UP + "log_level: loud", "tracer.yaml:2: log_level = loud: must be one of debug, info, warning, error"),
        (UP + "tasks: {a: {mode: lvie}}", "tracer.yaml:2: tasks.a.mode = lvie: must be one of observe, shadow, canary, live; did you mean 'live'?"),
        (UP + "tasks: {a: {target: 1}}", "tracer.yaml:2: tasks.a.target = 1: must lie strictly between 0 and 1"),
        (UP + "tasks: {a: {share: 2}}", "tracer.yaml:2: tasks.a.share = 2: must lie between 0 and 1"),
        (UP + "tasks: {../a: {}}", "tracer.yaml:2: tasks.../a = {...}: a name has up to 64 letters, digits, dots, dashes and underscores, and begins with no dash"),
        (UP + "tasks: {a: {}, a: {}}", "tracer.yaml:2: tasks.a = {...}: is written twice, first in line 2"),
        (UP + "tasks: {a: {label: {options: [x]}}}", "tracer.yaml:2: tasks.a.label.options = [...]: a task needs at least two labels"),
        (UP + "tasks: {a: {label: {options: [x, x]}}}", "tracer.yaml:2: tasks.a.label.options[1] = x: is written twice"),
        (UP + "tasks: {a: {teacher: '${X}'}}", "tracer.yaml:2: tasks.a.teacher = '${X}': only urls, secrets and folders come from the environment"),
        (UP + "tasks: {a: {match: {models: m}}, b: {match: {models: m}}}", "tracer.yaml:2: tasks.b = {...}: model 'm' belongs to task 'a' already"),
        (UP + "tasks: {a: {upstream: azure}}", "tracer.yaml:2: tasks.a.upstream = azure: must be one of openai"),
        (UP + "tasks: {a: {input: {regex: '(a)\\1'}}}", "tracer.yaml:2: tasks.a.input.regex = '(a)\\1': is no RE2 pattern: invalid escape sequence: \\1"),
        (UP + "tasks: {a: {input: {regex: 'a+'}}}", "tracer.yaml:2: tasks.a.input.regex = 'a+': there is no group 1: the pattern has no group"),
        (UP + "tasks: {a: {input: {regex: '(a)', group: text}}}", "tracer.yaml:2: tasks.a.input.group = text: there is no group 'text': the pattern has 1 to 1"),
        (UP + "tasks: {a: {input: {json: a..b}}}", "tracer.yaml:2: tasks.a.input.json = a..b: must be a dotted path of at most 32 parts, such as ticket.body"),
        (UP + "tasks: {a: {input: {json: a, regex: b}}}", "tracer.yaml:2: tasks.a.input.json = a: give a regex or a json path, not both"),
        (UP + "tasks: {a: {input: {from: system}}}", "tracer.yaml:2: tasks.a.input = {...}: needs a regex"),
        (UP + "keys: {k: {}}", "tracer.yaml:2: keys.k = {...}: needs hash"),
        (UP + "keys: {k: {hash: plain}}", "tracer.yaml:2: keys.k.hash = ***: must be sha256:HEX of the key, or scrypt:N:R:P:SALT:DIGEST"),
        (UP + f"keys: {{k: {{hash: '{DIGEST}', tasks: [b]}}}}", "tracer.yaml:2: keys.k.tasks = [...]: there is no task 'b'"),
        (UP + "database: postgresql://u:pw@h/d", "tracer.yaml:2: database = ***: secrets come from the environment alone: write ${NAME}"),
        ("upstreams: {a: {kind: openai}}", "tracer.yaml:1: upstreams.a = {...}: needs base_url"),
        ("upstreams: {a: {base_url: 'ftp://x'}}", "tracer.yaml:1: upstreams.a.base_url = ***: must be an http or https url without query"),
        ("upstreams: {a: {base_url: 'https://u:pw@x'}}", "tracer.yaml:1: upstreams.a.base_url = ***: must hold no user and no password: use api_key"),
        ("upstreams: {a: {base_url: '${NOT_SET}'}}", "tracer.yaml:1: upstreams.a.base_url = ***: the environment variable NOT_SET is not set"),
        ("upstreams: {a: {base_url: 'http://x', fallbacks: [a]}}", "tracer.yaml:1: upstreams.a.fallbacks = [...]: 'a' is no other upstream; there are a"),
    ],
)  # fmt: skip
def test_errors_name_file_line_key_and_value(content: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(content, {})
    assert str(caught.value).startswith(message) if "no YAML" in message else str(caught.value) == message


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.yaml: cannot be read: No such file or directory"):
        load(tmp_path / "none.yaml", {})


def test_no_secret_shows_in_any_form() -> None:
    config = parse(FULL, SECRETS)
    shown = " ".join([repr(config), str(config), f"{config!s:>10}", json.dumps(written(config))])
    for secret in (*SECRETS.values(), "pw3", DIGEST[7:]):
        assert secret not in shown
    assert written(config)["upstreams"]["openai"]["api_key"] == "***"


def test_settings_are_printed_as_the_file_has_them_and_can_be_read_again() -> None:
    more = """
  json: {match: {models: b}, input: {json: a.b, ignore: [c.d], history: ignore}, callers_label: true, callers_label_within_s: 60}
  asked: {teacher: m, upstream: claude, label: {options: [x, y]}, fallback: {system: "Which?", field: "", upstream: openai, at_once: 3}}
keys:
"""
    config = parse(FULL.replace("\nkeys:\n", more), SECRETS)
    shown = written(config)
    assert shown["tasks"]["desk"]["label"] == {"options": ["no", "yes"], "field": "result.desk"}
    assert shown["tasks"]["desk"]["input"] == {
        "from": "user",
        "regex": "(?s)Message: (?P<text>.*)",
        "history": "prompt",
        "group": "text",
    }
    assert (shown["tasks"]["json"]["callers_label"], shown["tasks"]["json"]["callers_label_within_s"]) == (True, 60.0)
    assert shown["upstreams"]["claude"]["speaks"] == ["messages"]
    again = json.dumps(shown).replace('"***"', '"${HIDDEN}"')
    assert written(parse(again, {"HIDDEN": DIGEST})) == shown


@pytest.mark.parametrize(
    "line",
    [
        "    api_key: SECRET", "    api_kye: SECRET", "    apikey: ['x', {SECRET: 1}]", "    token: SECRET", "    x: sk-SECRET",
        "    api_key: '${K:-SECRET}'", "    api_key: *SECRET", "    api_key: 'SECRET", "    fallbacks: ${K}", "    retries: ${K}",
    ],
)  # fmt: skip
def test_no_error_shows_a_secret(line: str) -> None:
    content = "upstreams:\n  a:\n    base_url: http://x\n" + line + "\n"
    with pytest.raises(ConfigError) as caught:
        parse(content, {"K": "SECRET"})
    shown: traceback.TracebackException | None = traceback.TracebackException.from_exception(caught.value)
    while shown is not None:
        assert "SECRET" not in "".join(shown.format_exception_only())
        shown = shown.__cause__ or (None if shown.__suppress_context__ else shown.__context__)


@given(st.text(max_size=80))
def test_any_text_is_a_config_or_a_config_error(content: str) -> None:
    said: list[str] = []
    for document in (content, UP + content, UP + "tasks: {a: {input: {regex: " + json.dumps(content) + "}}}"):
        try:
            parse(document, {})
        except ConfigError as error:
            said.append(str(error))
    assert all(message.startswith("tracer.yaml:") for message in said)


def test_nesting_and_aliases_do_no_harm() -> None:
    with pytest.raises(ConfigError, match="is no YAML: RecursionError"):
        parse(UP + "tasks: " + "[" * 100_000, {})
    bomb = "\n".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 30))
    with pytest.raises(ConfigError, match="a0 = "):
        parse(UP + "a0: &a0 x\n" + bomb, {})


def test_key_digests() -> None:
    import base64

    salt, digest = b"saltsalt", hashlib.scrypt(b"word", salt=b"saltsalt", n=16, r=8, p=1, dklen=32)
    text = f"scrypt:16:8:1:{base64.b64encode(salt).decode()}:{base64.b64encode(digest).decode()}"
    assert KeyHash(text).check("word")
    assert not KeyHash(text).check("Word")
    assert KeyHash(text) == KeyHash(text) != KeyHash(DIGEST)
    assert repr(KeyHash(text)) == "***"
    with pytest.raises(ConfigError, match="power of two"):
        KeyHash(text.replace("16:8", "17:8"))
    with pytest.raises(ConfigError, match="64 MiB"):
        KeyHash(text.replace("16:8", "1048576:8"))
