"""The kill switch of a gateway: a flag in this process, and files named ``OFF`` for others and the next start."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from pathlib import Path

from tracer.errors import TracerError
from tracer.policies.registry import OFF, PolicyRegistry
from tracer.serving.states import switched_off

__all__ = ["GatewaySwitch", "TaskSwitch"]

log = logging.getLogger("tracer.gateway")


class GatewaySwitch:
    """Holds for every task of a gateway, those of a later reload too. ``thrown`` is the flag of this process: up where
    the file could not be written."""

    __slots__ = ("thrown",)

    def __init__(self) -> None:
        self.thrown = False

    def turn(self, off: bool, home: Path, tasks: Iterable[tuple[str, Path]]) -> list[str]:
        """Everything to the teachers, or no longer. ``home`` is the gateway's; ``tasks`` are names and homes.

        The flag comes first, then the gateway's own file, then one in each task's home, for routers and commands that
        know that one alone. What could not be written is logged, and returned: names of tasks, ``*`` for the gateway.
        """
        self.thrown = off
        failed = []
        changed = []
        for name, folder in (("*", home), *tasks):
            try:
                if (folder / OFF).exists() != off and name != "*":
                    changed.append((name, folder))
                if off:
                    if name == "*":
                        folder.mkdir(parents=True, exist_ok=True)
                    (folder / OFF).touch()
                else:
                    (folder / OFF).unlink(missing_ok=True)
            except OSError as error:
                failed.append(name)
                log.error("the file OFF of %s cannot be turned: %s", name, type(error).__name__)
        # Where the file is there it alone counts: any process may take it away.
        self.thrown = off and "*" in failed
        for name, folder in changed:  # once all is switched: the history may have to be waited for
            if name not in failed:
                _record(name, folder, "off" if off else "on")
        return failed

    def is_off(self, home: Path) -> bool:
        """Whether everything goes to the teachers in all tasks; ``home`` is the gateway's."""
        return self.thrown or switched_off() or os.access(home / OFF, os.F_OK)


def _record(name: str, home: Path, event: str) -> None:
    try:
        PolicyRegistry(home).record(event, note="by the gateway's switch")
    except (TracerError, OSError) as error:
        log.error("the history of %s does not say that it was switched: %s", name, type(error).__name__)


class TaskSwitch:
    """What a task's router asks before each decision."""

    __slots__ = ("_files", "_gateway")

    def __init__(self, gateway: GatewaySwitch, *homes: Path) -> None:
        self._gateway, self._files = gateway, tuple(str(home / OFF) for home in homes)

    def exists(self) -> bool:
        """Whether everything goes to the teacher."""
        return self._gateway.thrown or any(os.access(file, os.F_OK) for file in self._files)
