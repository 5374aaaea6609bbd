"""Serving settings: defaults, what cannot be, and writing at once."""

from __future__ import annotations

from pathlib import Path

import pytest

from tracer.errors import PolicyError
from tracer.policies.serving_settings import SERVING, ServingSettings


def test_a_home_that_says_nothing_audits_two_percent_live(tmp_path: Path) -> None:
    assert ServingSettings.read(tmp_path) == ServingSettings("live", 1.0, 0.02)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    for settings in (ServingSettings("canary", 0.1, 0.0), ServingSettings("shadow", audit_rate=1.0)):
        settings.write(tmp_path / "home")
        assert ServingSettings.read(tmp_path / "home") == settings
        assert [p.name for p in (tmp_path / "home").iterdir()] == [SERVING]


def test_what_is_not_said_is_the_default(tmp_path: Path) -> None:
    (tmp_path / SERVING).write_text('{"mode": "shadow"}', encoding="utf-8")
    assert ServingSettings.read(tmp_path) == ServingSettings("shadow")


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ('{"mode": "dark"}', "mode = 'dark': is not one of shadow, canary, live"),
        ('{"mode": ["live"]}', r"mode = \['live'\]: is not one of"),
        ('{"share": 1.5}', r"share = 1\.5: must be a number in \[0, 1\]"),
        ('{"audit_rate": -0.1}', r"audit_rate = -0\.1: must be"),
        ('{"audit_rate": NaN}', "audit_rate = nan: must be"),
        ('{"audit_rate": true}', "audit_rate = True: must be"),
        ('{"audit_rate": "0.1"}', r"audit_rate = '0\.1': must be"),
        ('{"audit": 0.1}', r"audit = 0\.1: is no setting; there are mode, share, audit_rate"),
        ("[1]", r"must be an object, not \[1\]"),
        ("{", "is no JSON"),
        (b"\xff\xfe\xfa", "is no JSON"),
    ],
)
def test_what_cannot_be_is_refused_by_file_key_and_value(content: str | bytes, told: str, tmp_path: Path) -> None:
    (tmp_path / SERVING).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(PolicyError, match=rf"serving\.json: .*{told}"):
        ServingSettings.read(tmp_path)
