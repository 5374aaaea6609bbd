"""Door 2: versions of policies as folders, and which one is active.

A version is written beside, synced and renamed, so it exists whole or not at all. ``ACTIVE`` is a small file
replaced by an atomic rename; promoting and rolling back are the same operation.
"""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

from tracer import storage
from tracer.errors import PolicyError
from tracer.policies import archive
from tracer.policies.policy import Policy

SETTINGS = "settings.json"
"""File in a home folder that says how its policy was fitted."""
OFF = "OFF"
"""File in a home folder whose presence sends everything to the teacher."""

_VERSION = re.compile(r"v\d{4,}")


class PolicyRegistry:
    """Policies under ``home/policies`` and the pointer ``home/ACTIVE``."""

    def __init__(self, home: str | Path) -> None:
        self.home = Path(home)
        self.folder = self.home / "policies"
        self.pointer = self.home / "ACTIVE"

    def versions(self) -> tuple[str, ...]:
        """All versions, oldest first."""
        if not self.folder.is_dir():
            return ()
        found = [p.name for p in self.folder.iterdir() if _VERSION.fullmatch(p.name)]
        return tuple(sorted(found, key=lambda name: int(name[1:])))

    def active_version(self) -> str | None:
        """The active version, or None where there is none."""
        try:
            text = self.pointer.read_text(encoding="utf-8").strip()
        except FileNotFoundError:
            return None
        except UnicodeDecodeError as error:
            raise PolicyError(f"{self.pointer}: is not text: {error}") from error
        if not text:
            return None
        if not _VERSION.fullmatch(text):
            raise PolicyError(f"{self.pointer}: {text[:40]!r} is no version such as v0001")
        return text

    def embedder_name(self) -> str | None:
        """The embedder that the home's settings name, not one that an archive brings along."""
        try:
            named = json.loads((self.home / SETTINGS).read_text(encoding="utf-8"))["embedder"]
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError) as error:
            raise PolicyError(f"{self.home / SETTINGS}: cannot be read: {error}") from error
        return named if isinstance(named, str) else None

    def load(self, version: str | None = None) -> Policy:
        """Load a version, by default the active one. Raises PolicyError or ArchiveError."""
        name = version or self.active_version()
        if name is None:
            raise PolicyError(f"{self.home}: no policy is active: nothing was fitted here, or the gate refused")
        if name not in self.versions():
            known = ", ".join(self.versions()) or "none"
            raise PolicyError(f"{self.home}: there is no policy {name!r}; versions: {known}")
        return archive.load(archive.read_files(self.folder / name), str(self.folder / name))

    def save(self, policy: Policy) -> Policy:
        """Write a policy as the next version and give it back with its version."""
        while True:
            number = max((int(v[1:]) for v in self.versions()), default=0) + 1
            named = replace(policy, version=f"v{number:04d}")
            # False: another process took the number in the meantime. Take the next.
            if storage.write_folder(self.folder / named.version, archive.dump(named)):
                return named

    def activate(self, version: str | None) -> None:
        """Make a version the active one; None leaves everything to the teacher."""
        if version is not None and version not in self.versions():
            raise PolicyError(f"{self.home}: there is no policy {version!r} to activate")
        storage.write_atomic(self.pointer, f"{version or ''}\n".encode())
