"""The two forms of a log line: text for people, one JSON object per line for programs.

Nothing that a user sends can begin a new line or steer a terminal: control and bidirectional characters are escaped,
and lines of a traceback are indented.
"""

from __future__ import annotations

import json
import logging
import re
from datetime import UTC, datetime
from typing import Any

from tandem.cluster.telemetry.context import FIELDS, TRACEPARENT, current_ids
from tandem.cluster.telemetry.redaction import without_secrets

_UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_UNSAFE_IN_TRACEBACK = re.compile(_UNSAFE.pattern.replace("\x00-\x1f", "\x00-\x09\x0b-\x1f"))
_SHOWN = {"request_id": "request", "job_id": "job", "model_id": "model", "trace_id": "trace"}
TRACEBACK_INDENT = "    | "


def _escaped(found: re.Match[str]) -> str:
    return found[0].encode("unicode_escape").decode()


def one_line(text: str) -> str:
    """Return the text without secrets, with control and bidirectional characters as escapes."""
    return _UNSAFE.sub(_escaped, without_secrets(text))


class _Format(logging.Formatter):
    """Collects what a line says. `about` are facts of the process, like its name and the rank of a learner."""

    def __init__(self, **about: str | int):
        super().__init__()
        self._about = about

    def _ids(self, record: logging.LogRecord) -> dict[str, str | int]:
        ids = current_ids()
        if "request_id" not in ids and isinstance(of_serve := getattr(record, "request_id", None), str):
            ids["request_id"] = of_serve  # Ray Serve's own lines
        if TRACEPARENT in ids:
            ids["trace_id"] = str(ids[TRACEPARENT])[3:35]
        return {name: ids[name] for name in FIELDS if name in ids}

    def _traceback(self, record: logging.LogRecord) -> str | None:
        text = record.exc_text
        if not text and record.exc_info and record.exc_info[0] is not None:
            text = self.formatException(record.exc_info)
        if record.stack_info:
            text = f"{text}\n{record.stack_info}" if text else record.stack_info
        return without_secrets(text) if text else None


class TextFormat(_Format):
    """`2026-11-30 19:23:01,250 INFO learner tandem.cluster.learners.worker: message [job ..., request ...]`"""

    def format(self, record: logging.LogRecord) -> str:
        ids = ", ".join(f"{_SHOWN.get(name, name)} {one_line(str(id))}" for name, id in self._ids(record).items())
        about = " ".join(one_line(str(fact)) for fact in self._about.values())
        head = f"{self.formatTime(record)} {record.levelname} {about + ' ' if about else ''}{record.name}: "
        line = head + one_line(record.getMessage()) + (f" [{ids}]" if ids else "")
        if traceback := self._traceback(record):
            safe = _UNSAFE_IN_TRACEBACK.sub(_escaped, traceback)
            line += "".join(f"\n{TRACEBACK_INDENT}{part}" for part in safe.split("\n"))
        return line


class JsonFormat(_Format):
    """One object per line: time, level, logger, message, facts of the process, ids, and an exception."""

    def format(self, record: logging.LogRecord) -> str:
        fields: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": without_secrets(record.getMessage()),
            **self._about,
            "pid": record.process,
        }
        fields |= {name: without_secrets(id) if isinstance(id, str) else id for name, id in self._ids(record).items()}
        if traceback := self._traceback(record):
            kind = record.exc_info[0] if record.exc_info else None
            if kind is not None:
                fields["exception_type"] = kind.__name__
            fields["exception"] = traceback
        return json.dumps(fields)  # which escapes all but ASCII


FORMATS: dict[str, type[_Format]] = {"text": TextFormat, "json": JsonFormat}
