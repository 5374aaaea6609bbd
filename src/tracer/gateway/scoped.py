"""What a key with ``tasks`` may send on: calls of its tasks, in the task's own words or by its own model."""

from __future__ import annotations

from tracer.gateway.calls import Call
from tracer.gateway.renaming import names_one_model
from tracer.gateway.tasks import Accepted, Match

__all__ = ["beyond"]


def beyond(call: Call, match: Match, accepted: Accepted, body: bytes) -> tuple[int, str] | None:
    """Why a call goes beyond its task, as status and words; None where it does not.

    The header ``x-tracer-task`` alone proves nothing: it could put any prompt to any model under the upstream's key.
    So the call asks for an alias of the task, or for its teacher, or has a prompt that is known to be the task's; and
    the model that is asked upstream is the task's teacher, an alias, or one that its policy was fitted on.
    """
    task = match.task
    named = call.model in task.models
    fitted = any(prompt == match.prompt and teacher in (None, match.teacher) for teacher, prompt in accepted)
    if not (named or call.model == task.teacher or fitted or match.prompt in task.fingerprints):
        return 403, "this key does not reach other models or prompts than its task's: ask for the task's model"
    if task.teacher is None and not named and not any(teacher == call.model for teacher, _ in accepted):
        return 403, "this key does not choose the model: the task must name its teacher"
    if not names_one_model(body):
        return 400, "the request must be a JSON object in UTF-8 that names one model"
    return None
