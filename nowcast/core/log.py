"""Where log lines go: to standard error, as lines for people or as JSON for programs.

Every module logs by ``logging.getLogger(__name__)``; a failure that is survived is logged with its traceback. Flows
leave the set-up to Prefect.
"""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from enum import StrEnum

OURS = "nowcast"
"""Logger above all of ours."""


class LogFormat(StrEnum):
    """How a line looks."""

    TEXT = "text"
    JSON = "json"


class JsonLines(logging.Formatter):
    """One JSON object per line: time (UTC), level, logger, message, and traceback where there is one."""

    def format(self, record: logging.LogRecord) -> str:
        """Write a record as JSON."""
        entry = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info and record.exc_info[0]:
            entry["traceback"] = self.formatException(record.exc_info)
        return json.dumps(entry, ensure_ascii=False)


FORMATTERS = {LogFormat.TEXT: logging.Formatter("%(levelname)s %(name)s: %(message)s"), LogFormat.JSON: JsonLines()}


class Stderr(logging.Handler):
    """Writes to what is standard error at the time, which tests and notebooks replace."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record and flush."""
        try:
            print(self.format(record), file=sys.stderr, flush=True)
        except Exception:
            self.handleError(record)


def configure(level: int = logging.WARNING, form: LogFormat = LogFormat.TEXT) -> None:
    """Send our log lines from ``level`` upward, and warnings of libraries, to standard error.

    Args:
        level: ``logging.INFO`` tells of every step, ``logging.DEBUG`` of more.
        form: Lines for people, or JSON.
    """
    handler = Stderr()
    handler.setFormatter(FORMATTERS[form])
    root = logging.getLogger()
    for old in [each for each in root.handlers if isinstance(each, Stderr)]:
        root.removeHandler(old)
    root.addHandler(handler)
    logging.getLogger(OURS).setLevel(level)
    logging.captureWarnings(form is LogFormat.JSON)  # of Python, which would be no JSON
