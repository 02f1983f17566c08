"""The log: never waited for, and harmless on a terminal."""

from __future__ import annotations

import json
import logging
import os

from hypothesis import given
from hypothesis import strategies as st

from proxy.process.logs import JsonFormatter, QueuedHandler, TextFormatter
from proxy.process.terminal import escaped


def record(message: str, *arguments: object) -> logging.LogRecord:
    return logging.LogRecord("a", logging.INFO, "f", 1, message, arguments, None)


def test_a_pipe_that_nobody_reads_holds_up_nobody() -> None:
    reader, writer = os.pipe()
    handler = QueuedHandler(writer, lines=100)
    for _ in range(5000):
        handler.emit(record("x" * 1000))
    assert handler.dropped > 1000
    os.set_blocking(reader, False)
    while handler._lines.unfinished_tasks:
        try:
            os.read(reader, 1 << 20)
        except BlockingIOError:
            continue
    os.close(reader)
    os.close(writer)


def test_a_log_that_is_closed_is_counted_and_no_error() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    handler = QueuedHandler(writer)
    handler.emit(record("gone"))
    handler.flush()
    assert handler.dropped == 1
    os.close(writer)


@given(st.text())
def test_a_line_of_the_log_moves_no_cursor(text: str) -> None:
    line = TextFormatter().format(record("request %s", text))
    assert line.isprintable()
    assert escaped("plain text") == "plain text"


@given(st.text())
def test_a_line_of_json_is_an_object(text: str) -> None:
    line = JsonFormatter().format(record("request %s", text))
    assert "\n" not in line
    assert json.loads(line)["message"] == f"request {text}"
