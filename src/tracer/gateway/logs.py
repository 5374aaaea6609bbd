"""Logs as JSON, a line each, without content and without secrets, whoever writes them."""

from __future__ import annotations

import json
import logging
import sys
import threading
from datetime import UTC, datetime

REQUESTS = "tracer.gateway.requests"
_OURS = ("tracer", "uvicorn")


class JsonLines(logging.Formatter):
    """One JSON object a line.

    Of exceptions only their kind is told, and of the messages of other libraries only the first line before anything
    is put into it: what they quote may be a request.
    """

    def format(self, record: logging.LogRecord) -> str:
        """The line of a record."""
        ours = record.name.partition(".")[0] in _OURS
        message = record.getMessage() if ours else str(record.msg).partition("\n")[0]
        time = datetime.fromtimestamp(record.created, UTC).isoformat()
        if record.name == REQUESTS:  # its message is JSON already
            return f'{{"time": "{time}", "level": "{record.levelname.lower()}", {message[1:]}'
        facts = {"time": time, "level": record.levelname.lower()}
        if record.exc_info is not None and record.exc_info[0] is not None:
            facts["error"] = record.exc_info[0].__name__
        return json.dumps(facts | {"event": record.name, "message": message})


def log_as_json(level: str) -> None:
    """Log this process to standard error; ``level`` is Tracer's and the server's, others tell warnings alone."""
    # What no line shows need not be found out for each (logging HOWTO, "Optimization").
    logging._srcfile = None
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    for name in _OURS:
        logging.getLogger(name).setLevel(level.upper())
    logging.captureWarnings(True)
    logging.raiseExceptions = False  # it would print what was to be logged
    threading.excepthook = _ended


def _ended(what: threading.ExceptHookArgs) -> None:
    """A thread that ended by an exception: its traceback, printed by default, may quote anything."""
    logging.getLogger("tracer.gateway").error("a thread ended by %s", what.exc_type.__name__)
