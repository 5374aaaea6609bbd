"""Whose labels a policy imitates: the task's fingerprint."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple


class Fingerprint(NamedTuple):
    """Whose labels they are: the teacher's model and the version of its prompt, as far as the traces say."""

    teacher: str | None
    prompt: str | None

    def __str__(self) -> str:
        return f"teacher {self.teacher or '(not named)'}" + (f", prompt {self.prompt}" if self.prompt else "")


def belongs(known: Iterable[Fingerprint], one: Fingerprint) -> bool:
    """Whether labels of ``one`` may be those of the known task: it names no teacher or prompt that is another.

    What is not named contradicts nothing: a log without model names, and then a router that names its teacher, are one
    task. Once a name is known, another name is another task.
    """
    fingerprints = tuple(known)
    for mine, theirs in (
        (one.teacher, {f.teacher for f in fingerprints} - {None}),
        (one.prompt, {f.prompt for f in fingerprints} - {None}),
    ):
        if mine is not None and theirs and mine not in theirs:
            return False
    return True
