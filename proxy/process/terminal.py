"""Text for a person's terminal: harmless, and no reason to fail.

Rule: whatever comes from outside (model names, errors, ids, labels, file names) is
`escaped` where it is shown, so that nothing moves a cursor, renames a window or turns
a line round. What cannot be written (a full disk, a pipe that was closed, letters that
the locale lacks) costs that text, never the run: `run_command` says so in its last
line and in the exit code.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable
from typing import Any, NoReturn, TextIO, cast

import click

EXIT_INTERRUPTED = 130
EXIT_PIPE_CLOSED = 141
"""As a shell tells SIGPIPE: the reader had enough, which is no fault."""


def escaped(text: str) -> str:
    """The text with what could move a cursor, or turn a line round, spelled out.

    Control characters (C0, C1, DEL), line separators, bidirectional and other
    invisible formats and lone surrogates: what Python calls not printable.
    """
    if text.isprintable():
        return text
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode() for c in text
    )


def escaped_lines(text: str) -> str:
    """`escaped`, but for the line ends that are our own."""
    return "\n".join(map(escaped, text.split("\n")))


def escaped_json(text: str, *, only_ascii: bool = False) -> str:
    """A JSON text whose strings are escaped, and still the same values."""
    return "".join(
        c
        if c == "\n" or (c.isprintable() and (c.isascii() or not only_ascii))
        else _as_json(c)
        for c in text
    )


def _as_json(character: str) -> str:
    data = character.encode("utf-16-be", "surrogatepass")
    units = (data[at : at + 2] for at in range(0, len(data), 2))
    return "".join(f"\\u{int.from_bytes(unit, 'big'):04x}" for unit in units)


def echo(text: str, *, err: bool = False) -> None:
    """Show lines, escaped; `err` on standard error."""
    click.echo(escaped_lines(text), err=err)


def echo_json(text: str | bytes) -> None:
    """Show a JSON text, escaped as JSON escapes."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    only_ascii = not encoding.lower().startswith("utf")
    shown = text if isinstance(text, str) else text.decode()
    click.echo(escaped_json(shown, only_ascii=only_ascii))


class Output:
    """A standard stream that fails once and is silent from then on.

    It has no `buffer`: nothing writes past it.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.error: OSError | None = None

    def __getattr__(self, name: str) -> Any:
        if name == "buffer":
            raise AttributeError(name)
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """All of it, or nothing after the first failure."""
        if self.error is None:
            try:
                return self._stream.write(text)
            except OSError as error:
                self.error = error
        return len(text)

    def flush(self) -> None:
        """Hand on what is held, unless it failed before."""
        if self.error is None:
            try:
                self._stream.flush()
            except OSError as error:
                self.error = error

    def give_up(self) -> None:
        """After a failure: what is still held goes nowhere, also as Python ends."""
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self._stream.fileno())
        os.close(nowhere)


def run_command(
    program: str, call: Callable[[], object], failure: type[Exception]
) -> NoReturn:
    """Run a command of click's and end the process by its outcome.

    `failure` is the program's own exception, one line and an `exit_code`.
    """
    _fill_descriptors()
    outputs = [_guarded("stdout"), _guarded("stderr")]
    try:
        code = call()
    except SystemExit as end:  # with the code of a program that was run inside
        code = end.code
    except click.exceptions.Abort:
        code = EXIT_INTERRUPTED
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except failure as error:
        echo(f"{program}: {escaped(str(error))}", err=True)
        code = getattr(error, "exit_code", 1)
    sys.exit(_ended(program, code if isinstance(code, int) else 0, outputs))


def _ended(program: str, code: int, outputs: list[Output | None]) -> int:
    """The exit code, once all that was shown is written or known to be lost."""
    for output in outputs:
        if output is not None:
            output.flush()
    out = outputs[0]
    if out is not None and out.error is not None:
        if out.error.errno == errno.EPIPE:
            code = code or EXIT_PIPE_CLOSED
        else:
            reason = (out.error.strerror or str(out.error)).lower()
            echo(f"{program}: cannot write to standard output: {reason}", err=True)
            code = code or 1
    for output in outputs:
        if output is not None and output.error is not None:
            output.give_up()
    return code


def _fill_descriptors() -> None:
    """Open what is closed of 0, 1 and 2, or the next file opened would be one."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)


def _guarded(name: str) -> Output | None:
    """Put a standard stream under guard; None where it was closed from the start."""
    stream = getattr(sys, name)
    if stream is None:
        return None
    if hasattr(stream, "reconfigure"):
        stream.reconfigure(errors="backslashreplace")
    output = Output(stream)
    setattr(sys, name, cast(TextIO, output))
    return output
