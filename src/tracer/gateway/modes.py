"""The mode of a task stands in two places, of which ``serving.json`` counts: whoever changed the other one is told."""

from __future__ import annotations

import logging
import shlex

from tracer.errors import PolicyError
from tracer.gateway.settings import GatewayConfig
from tracer.policies.serving_settings import ServingSettings

log = logging.getLogger("tracer.gateway")


def tell_apart(config: GatewayConfig) -> None:
    """Warn of each task whose mode in the config is not the one in force, with the command that changes that."""
    for task in config.tasks:
        if task.mode == "observe":
            continue  # it alone holds wherever it stands
        home = config.task_home(task.name)
        try:
            mode = ServingSettings.read(home).mode
        except (PolicyError, OSError):
            continue  # the router says so
        if mode != task.mode:
            share = " --share SHARE" if task.mode == "canary" else ""
            log.warning(
                "task %s: the mode in force is %s, and %s in the settings changes nothing: "
                "tracer mode %s%s --home %s would",
                task.name, mode, task.mode, task.mode, share, shlex.quote(str(home)),
            )  # fmt: skip
