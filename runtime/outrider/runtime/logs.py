"""Structured logs on stderr, as text or JSON lines, with the last ones kept for the fleet's `logs` command.

Fields are given as `log.info("enrolled", extra={"device": "till-7"})`.
"""

from __future__ import annotations

import collections
import logging
import sys
import time
from typing import Any

import msgspec

from outrider.runtime.config import LogFormat, LogLevel

TAIL_LINES = 500
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class TextFormatter(logging.Formatter):
    """`2025-01-31T12:00:00Z INFO link: connected session=ab12`."""

    def format(self, record: logging.LogRecord) -> str:
        """One line, then the traceback where there is one."""
        fields = "".join(f" {key}={value}" for key, value in _fields(record).items())
        line = f"{_time(record)} {record.levelname} {_name(record)}: {record.getMessage()}{fields}"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


class JsonFormatter(logging.Formatter):
    """`{"at": …, "level": "info", "from": "link", "message": …, …fields}`."""

    def format(self, record: logging.LogRecord) -> str:
        """One line of JSON."""
        entry: dict[str, Any] = {
            "at": _time(record),
            "level": record.levelname.lower(),
            "from": _name(record),
            "message": record.getMessage(),
            **_fields(record),
        }
        if record.exc_info:
            entry["traceback"] = self.formatException(record.exc_info)
        return msgspec.json.encode(entry, enc_hook=str).decode("utf-8")


class Tail(logging.Handler):
    """Keeps the last lines in memory."""

    def __init__(self, lines: int = TAIL_LINES) -> None:
        super().__init__()
        self._lines: collections.deque[str] = collections.deque(maxlen=lines)

    def emit(self, record: logging.LogRecord) -> None:
        """Keep one line."""
        self._lines.append(self.format(record))

    def last(self, lines: int) -> list[str]:
        """Up to the last `lines` lines, oldest first."""
        return list(self._lines)[-lines:] if lines > 0 else []


def set_up_logging(log_format: LogFormat, level: LogLevel) -> Tail:
    """Send the `outrider` loggers to stderr and to the returned tail, replacing any earlier set-up."""
    formatter = JsonFormatter() if log_format == "json" else TextFormatter()
    stream, tail = logging.StreamHandler(sys.stderr), Tail()
    root = logging.getLogger("outrider")
    for old in list(root.handlers):
        root.removeHandler(old)
    for handler in (stream, tail):
        handler.setFormatter(formatter)
        root.addHandler(handler)
    root.setLevel(level.upper())
    root.propagate = False
    return tail


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    return {key: value for key, value in vars(record).items() if key not in _STANDARD}


def _name(record: logging.LogRecord) -> str:
    return record.name.removeprefix("outrider.runtime.")


def _time(record: logging.LogRecord) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z"
