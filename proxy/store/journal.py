"""Requests that the database does not have yet, in a file that outlives a kill.

Rule: a request is in the file from its arrival, and with all but its energy from its
end, until its note or its record is in the database. So whatever the database or the
settlement does, a request that was answered is known after a `kill -9`. The event loop
only appends to a queue; a thread writes.
The file is locked for as long as its process lives: one that nobody holds was left
behind by a dead one, and whoever starts next on the same store makes records of it.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import msgspec
from sqlalchemy import URL

from proxy.meter.ledger import RequestRecord
from proxy.process.files import PRIVATE, private_folder
from proxy.process.supervise import Seldom
from proxy.store.address import shown_url
from proxy.wire.events import RequestOpened
from proxy.wire.facts import well_formed

log = logging.getLogger("servewatt.store")

GATHER_SECONDS = 0.005
"""Requests that arrive within so long share one write."""
RETRY_SECONDS = 1.0
"""Before a disk that failed is tried again."""
SPENT_BYTES = 1 << 20
"""Beyond so much that is in the database by now the file is written anew."""
MAX_REQUESTS = 200_000
"""In memory and file, 0.3 KB each; beyond them, the oldest are left to the database."""
SUFFIX = "-requests-"
"""Between the store's name and the run's in the name of a file."""


class OpenRequest(msgspec.Struct, frozen=True, gc=False, tag="open"):
    """A line of the file: a request that an engine is about to get."""

    engine: str
    key: int
    request_id: str
    route: str
    model: str
    kind: str
    tenant: str
    arrived_unix_seconds: float
    leg: str | None = None


class EndedRequest(msgspec.Struct, frozen=True, gc=False, tag="end"):
    """A line of the file: what is known of a request but for its energy."""

    engine: str
    key: int
    model: str
    tenant: str
    outcome: str
    error: str | None
    status: int | None
    finished_unix_seconds: float
    scheduled_unix_seconds: float | None
    first_token_unix_seconds: float | None
    last_token_unix_seconds: float | None
    prompt_tokens: int | None
    cached_tokens: int | None
    output_tokens: int | None
    is_output_lower_bound: bool


class StoredRequests(msgspec.Struct, frozen=True, tag="stored"):
    """A line of the file: the database has these, by engine and key."""

    requests: list[tuple[str, int]]


class JournalHead(msgspec.Struct, frozen=True, tag="head"):
    """The first line of the file."""

    run: str
    instance: str
    upstreams: dict[str, str]
    """Addresses by engine, as the records have them."""
    policy: str
    """By which its records are divided."""


Line = OpenRequest | EndedRequest | StoredRequests | JournalHead
"""What the file is made of, as JSON."""
_LINE: msgspec.json.Decoder[Line] = msgspec.json.Decoder(Line)


def journal_base(url: URL, folder: Path | None) -> Path | None:
    """What the names of this store's files begin with.

    Beside an SQLite file, for they belong together; for a server in `folder`. None,
    and a line in the log, where no file can be made there.
    """
    path = url.database or "file:"
    if url.get_backend_name() == "sqlite" and not path.startswith("file:"):
        return Path(path).absolute()
    try:
        if folder is None:
            raise OSError("there is no home folder")
        private_folder(folder)
        if not os.access(folder, os.W_OK | os.X_OK):
            raise OSError(f"{folder} cannot be written")
    except OSError as error:
        log.warning(
            "requests are not journaled: %s; a `kill -9` may lose those of the last "
            "half second, or set XDG_STATE_HOME", error.strerror or error,
        )  # fmt: skip
        return None
    digest = hashlib.sha256(shown_url(url).encode()).hexdigest()[:12]
    return folder / f"{url.get_backend_name()}-{digest}"


class Journal:
    """The file of one run, from its first request to the last that is stored."""

    def __init__(self, base: Path, run: str, policy: str) -> None:
        self.path = base.with_name(f"{base.name}{SUFFIX}{run}")
        self._head = JournalHead(run, "", {}, policy)
        self._queue: deque[Line] = deque()
        """Appended by the loop and by the writer's thread."""
        self._open: dict[tuple[str, int], bytes] = {}
        """Lines of requests that the database does not have; the thread's own."""
        self._file: int | None = None
        self._spent_bytes = 0
        self._failed_seconds: float | None = None
        self._seldom = Seldom(every_seconds=60.0)
        self._encoder = msgspec.json.Encoder()
        self._wake = threading.Event()
        self._is_stopping = False
        self._thread = threading.Thread(target=self._run, name="journal", daemon=True)

    def start(self, instance: str, upstreams: Mapping[str, str]) -> None:
        """Begin to write; nothing is made before the first request."""
        self._head = msgspec.structs.replace(
            self._head, instance=instance, upstreams=dict(upstreams)
        )
        self._thread.start()

    def take_upstreams(self, upstreams: Mapping[str, str]) -> None:
        """Requests may be of these engines too."""
        known = self._head.upstreams | dict(upstreams)
        self._head = msgspec.structs.replace(self._head, upstreams=known)
        self._put(self._head)

    def add(self, engine: str, event: RequestOpened) -> None:
        """A request is on its way to an engine; never blocks."""
        labels = event.labels
        self._put(
            OpenRequest(
                engine, event.key, event.request_id, event.facts.route,
                well_formed(labels.stored_model or labels.model), labels.kind,
                well_formed(labels.stored_tenant or labels.tenant),
                event.at_seconds + (time.time() - time.monotonic()),
                event.facts.leg,
            )
        )  # fmt: skip

    def end(self, record: RequestRecord) -> None:
        """A request has ended, and its energy is not known; never blocks."""
        unix = time.time() - time.monotonic()

        def at(seconds: float | None) -> float | None:
            return None if seconds is None else seconds + unix

        self._put(
            EndedRequest(
                record.engine, record.key,
                well_formed(record.stored_model or record.model),
                well_formed(record.stored_tenant or record.tenant),
                record.outcome, record.error and well_formed(record.error),
                record.status, record.finished_seconds + unix,
                at(record.scheduled_seconds), at(record.first_token_seconds),
                at(record.last_token_seconds),
                record.prompt_tokens, record.cached_tokens, record.output_tokens,
                record.is_output_lower_bound,
            )
        )  # fmt: skip

    def forget(self, requests: list[tuple[str, int]]) -> None:
        """The database has these now, or never will; from any thread."""
        if requests:
            self._put(StoredRequests(requests))

    def stop(self, *, is_all_stored: bool) -> None:
        """No request comes any more; the file goes where nothing is left in it."""
        self._is_stopping = True
        self._wake.set()
        self._thread.join(RETRY_SECONDS)
        if self._file is not None:
            if is_all_stored:
                with suppress(OSError):
                    self.path.unlink()
            os.close(self._file)
            self._file = None

    def turn(self) -> None:
        """Write what has come since; a disk that cannot is tried again later."""
        lines: list[bytes] = []
        while self._queue:
            lines.append(self._noted(self._queue.popleft()))
        now = time.monotonic()
        if self._failed_seconds is not None:
            if now < self._failed_seconds + RETRY_SECONDS:
                return
            lines = []  # what is still open is written whole
        try:
            if self._file is None or self._failed_seconds is not None:
                if self._open or self._file is not None:
                    self._write_anew()
            elif lines:
                _write_all(self._file, b"".join(lines))
                if self._spent_bytes > SPENT_BYTES:
                    self._write_anew()
            self._failed_seconds = None
        except OSError as error:
            self._failed_seconds = now
            if self._seldom.count("write") is not None:
                log.warning(
                    "%s: %s; a `kill -9` may lose the requests of the last second",
                    self.path, error.strerror or error,
                )  # fmt: skip

    def _put(self, message: Line) -> None:
        self._queue.append(message)
        if not self._wake.is_set():
            self._wake.set()

    def _run(self) -> None:
        while not self._is_stopping:
            self._wake.wait(None if self._failed_seconds is None else RETRY_SECONDS)
            self._wake.clear()
            try:
                self.turn()
            except Exception as error:  # the thread's outermost loop: it must live on
                if self._seldom.count("turn") is not None:
                    log.exception("the journal failed, and goes on: %r", error)
            time.sleep(GATHER_SECONDS)
        self.turn()

    def _noted(self, message: Line) -> bytes:
        line = self._encoder.encode(message) + b"\n"
        if isinstance(message, OpenRequest):
            self._open[message.engine, message.key] = line
            if len(self._open) > MAX_REQUESTS:
                self._spent_bytes += len(self._open.pop(next(iter(self._open))))
        elif isinstance(message, EndedRequest):
            whose = message.engine, message.key
            if whose in self._open:
                self._open[whose] += line
        elif isinstance(message, StoredRequests):
            self._spent_bytes += len(line)
            for request in message.requests:
                self._spent_bytes += len(self._open.pop(request, b""))
        return line

    def _write_anew(self) -> None:
        """A file with what is open alone, locked before it has its name."""
        part = self.path.with_name(f".{self.path.name}.part")
        with suppress(FileNotFoundError):
            part.unlink()
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND
        file = os.open(part, flags, PRIVATE)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            head = self._encoder.encode(self._head) + b"\n"
            _write_all(file, b"".join([head, *self._open.values()]))
            os.replace(part, self.path)
        except OSError:
            os.close(file)
            with suppress(OSError):
                part.unlink()
            raise
        if self._file is not None:
            os.close(self._file)
        self._file, self._spent_bytes = file, 0


@dataclass(frozen=True, slots=True)
class LeftBehind:
    """What a process that is dead had not stored."""

    path: Path
    run: str
    instance: str
    upstreams: Mapping[str, str]
    policy: str
    requests: Sequence[tuple[OpenRequest, EndedRequest | None]]
    written_unix_seconds: float
    """The last sign of life."""


@contextmanager
def left_behind(base: Path) -> Iterator[list[LeftBehind]]:
    """Files of dead processes, held so that no other one takes them meanwhile.

    They go when the block ends well. One that cannot be read is logged and stays.
    """
    held: list[int] = []
    found: list[LeftBehind] = []
    try:
        for path in _files(base):
            with _logged(path):
                file = _taken(path)
                if file is not None:
                    held.append(file)
                    found.append(_read(path, file))
        yield found
        for left in found:
            with _logged(left.path):
                left.path.unlink()
    finally:
        for file in held:
            os.close(file)


def _files(base: Path) -> list[Path]:
    with _logged(base.parent):
        names = sorted(os.listdir(base.parent))
        return [base.with_name(n) for n in names if n.startswith(base.name + SUFFIX)]
    return []


def _taken(path: Path) -> int | None:
    """The file, locked; None if its process lives, or has just given it up."""
    file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    with suppress(OSError):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(file), path.stat()):
            return file
    os.close(file)
    return None


def _read(path: Path, file: int) -> LeftBehind:
    """All that a file tells; what the kill cut, or nobody wrote, is passed over."""
    head = JournalHead("", "", {}, "")
    requests: dict[tuple[str, int], tuple[OpenRequest, EndedRequest | None]] = {}
    with os.fdopen(os.dup(file), "rb") as lines:
        for line in lines:
            try:
                message = _LINE.decode(line)
            except (msgspec.MsgspecError, UnicodeDecodeError):
                continue
            if isinstance(message, JournalHead):
                head = message
            elif isinstance(message, OpenRequest):
                requests[message.engine, message.key] = (message, None)
            elif isinstance(message, EndedRequest):
                whose = message.engine, message.key
                if whose in requests:
                    requests[whose] = (requests[whose][0], message)
            else:
                for stored in message.requests:
                    requests.pop(stored, None)
    return LeftBehind(
        path, head.run, head.instance, head.upstreams, head.policy,
        list(requests.values()) if head.run else [], os.fstat(file).st_mtime,
    )  # fmt: skip


@contextmanager
def _logged(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        log.warning("%s: %s", path, error.strerror or error)


def _write_all(file: int, content: bytes) -> None:
    rest = memoryview(content)
    while rest:
        rest = rest[os.write(file, rest) :]
