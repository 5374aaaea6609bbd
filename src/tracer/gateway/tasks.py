"""Which task a call belongs to, and whether the policy in force was fitted under its prompt."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass

from tracer.gateway.calls import Call
from tracer.gateway.selecting import fingerprint, select
from tracer.gateway.settings import InputSelector, TaskConfig

HEADER = "x-tracer-task"
Accepted = Collection[tuple[str | None, str | None]]
"""The (teacher, prompt) pairs that a policy in force was fitted under: a line's ``fingerprints``."""


@dataclass(frozen=True, slots=True)
class Match:
    """A call of a task. ``teacher`` and ``prompt`` belong on its trace as they stand here.

    ``known_prompt`` is false where the policy in force was fitted under others: it must not answer then.
    """

    task: TaskConfig
    text: str
    teacher: str
    prompt: str
    known_prompt: bool


class TaskSet:
    """The tasks of a config, ready to be matched."""

    def __init__(self, tasks: Collection[TaskConfig]) -> None:
        self._by_name = {task.name: task for task in tasks}
        self._by_model = {model: task for task in tasks for model in task.models}
        self._printed: dict[InputSelector, dict[str, TaskConfig]] = {}
        for task in tasks:
            for digest in task.fingerprints:
                self._printed.setdefault(task.input, {})[digest] = task

    def match(self, call: Call, headers: Mapping[str, str], accepted: Callable[[str], Accepted]) -> Match | None:
        """The task of a call, or None: it passes through. ``accepted`` says what holds for a task, by name.

        The first that fits of the model's alias, the header ``x-tracer-task`` (``headers`` have lower-case names), and
        the fingerprint. A call that allows other labels than the task declares is not the task, nor is one without
        text where the task has it. A header that names no task ends the search: nothing is guessed.
        """
        for task in self._candidates(call, headers):
            if task.labels is not None and call.options is not None and set(call.options) != set(task.labels):
                continue
            if (match := matched(task, call, accepted(task.name))) is not None:
                return match
        return None

    def _candidates(self, call: Call, headers: Mapping[str, str]) -> Iterator[TaskConfig]:
        if (named := self._by_model.get(call.model)) is not None:
            yield named
        if HEADER in headers:
            if (asked := self._by_name.get(headers[HEADER])) is not None:
                yield asked
            return
        for selector, tasks in self._printed.items():
            selection = select(call, selector)
            if selection is not None and (found := tasks.get(fingerprint(selection))) is not None:
                yield found


def matched(task: TaskConfig, call: Call, accepted: Accepted) -> Match | None:
    """The call as one of this task; None where its text is not where the task has it."""
    selection = select(call, task.input)
    if selection is None:
        return None
    prompt, teacher = fingerprint(selection), task.teacher or call.model
    return Match(task, selection.text, teacher, prompt, _known(teacher, prompt, accepted))


def _known(teacher: str, prompt: str, accepted: Accepted) -> bool:
    """Whether a policy of these labels may answer. What none of them names, as in an imported log, contradicts nothing;
    once one of them names a teacher or a prompt, labels without it open the door to no other."""
    teachers, prompts = {t for t, _ in accepted}, {p for _, p in accepted}
    any_teacher, any_prompt = teachers == {None}, prompts == {None}
    return any((any_teacher or t == teacher) and (any_prompt or p == prompt) for t, p in accepted)
