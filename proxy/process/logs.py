"""The log on standard error: never waited for, in lines that a terminal can take.

Rule: whoever logs only appends to a bounded queue; one thread writes. Where nobody
reads, lines are dropped and counted, and the process goes on.
"""

from __future__ import annotations

import json
import logging
import os
import queue
import threading
import time
from typing import Any

from proxy.process.terminal import escaped

LEVELS = ("debug", "info", "warning", "error")
FORMATS = ("text", "json")
QUEUED_LINES = 10_000
FLUSH_SECONDS = 1.0
"""At the end of the process: for lines that still wait."""


class QueuedHandler(logging.Handler):
    """Writes lines to a descriptor from a thread of its own."""

    def __init__(self, descriptor: int = 2, lines: int = QUEUED_LINES) -> None:
        super().__init__()
        self.dropped = 0
        """Lines that nobody took in time."""
        self._descriptor = descriptor
        self._lines: queue.Queue[str] = queue.Queue(lines)
        self._thread = threading.Thread(target=self._write, name="log", daemon=True)
        self._thread.start()

    def emit(self, record: logging.LogRecord) -> None:
        """Queue a line, or count it where there is no room."""
        try:
            self._lines.put_nowait(self.format(record))
        except queue.Full:
            self.dropped += 1
        except Exception:  # a line that cannot be formatted must not end a request
            self.dropped += 1

    def flush(self) -> None:
        """Wait for the lines so far, but not for long."""
        deadline = time.monotonic() + FLUSH_SECONDS
        while self._lines.unfinished_tasks and time.monotonic() < deadline:
            time.sleep(0.005)

    def _write(self) -> None:
        while True:
            line = self._lines.get()
            rest = line.encode("utf-8", "backslashreplace") + b"\n"
            try:
                while rest:
                    rest = rest[os.write(self._descriptor, rest) :]
            except OSError:  # closed, or a full disk
                self.dropped += 1
            self._lines.task_done()


class TextFormatter(logging.Formatter):
    """One line, its control characters escaped; a traceback follows in its lines."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:
        """The line without its traceback."""
        return escaped(super().formatMessage(record))

    def formatException(self, ei: Any) -> str:
        """The traceback, each of its lines escaped."""
        return "\n".join(map(escaped, super().formatException(ei).split("\n")))


class JsonFormatter(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        """Instant, level, logger, message, and the traceback where there is one."""
        fields: dict[str, object] = {
            "unix_seconds": round(record.created, 6),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        fields |= getattr(record, "fields", {})
        if record.exc_info:
            fields["traceback"] = self.formatException(record.exc_info)
        return json.dumps(fields)


def dropped_lines() -> int:
    """Lines of this process that nobody took."""
    handlers = logging.getLogger().handlers
    return sum(h.dropped for h in handlers if isinstance(h, QueuedHandler))


def log_to_stderr(level: str, form: str) -> QueuedHandler:
    """Send all logs there from now on."""
    handler = QueuedHandler()
    handler.setFormatter(JsonFormatter() if form == "json" else TextFormatter())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    # httpx logs every scrape of a sensor, fifty a second
    logging.getLogger("httpx").setLevel(logging.WARNING)
    return handler
