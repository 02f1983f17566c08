"""The one thread that makes and writes lines; the event loop only appends to a queue.

Rule: whatever the disk does, requests flow. Lines that cannot be written wait within
bounds, and are counted once they no longer fit; prompts that come faster than they are
read are not kept. A defect here is counted, said now and then, and past.
"""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections import Counter, deque
from dataclasses import dataclass

from proxy.meter.ledger import RequestRecord
from proxy.process.files import os_reason, readable_name
from proxy.process.supervise import Seldom
from proxy.recording.config import RecordOptions
from proxy.recording.files import RecordingFiles, compressor
from proxy.recording.traffic import Arrival, Traffic
from proxy.security.secrets import read_secret
from proxy.wire.events import RequestOpened
from proxy.wire.headers import Headers, value_of

log = logging.getLogger("servewatt.recording")

GATHER_SECONDS = 0.1
"""Requests that end within so long share a write, and a frame of a compressed file."""
RETRY_SECONDS = 1.0
"""Before a disk that failed is tried again."""
QUEUE_BYTES = 64 * 1024 * 1024
"""Of prompts that wait to be read."""
QUEUE_EVENTS = 100_000
WAITING_BYTES = 8 * 1024 * 1024
"""Of lines that wait for a disk: some ten thousand requests."""
STOP_SECONDS = 3.0
SAID_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class _Ended:
    key: int
    at_seconds: float
    record: RequestRecord | None


@dataclass(frozen=True, slots=True)
class RecordingState:
    """How a recording goes."""

    is_up: bool
    written_total: int
    lost_total: Counter[str]
    """Requests that are not in it, by why: `file`, `behind`, `defect`."""


class Recorder:
    """Carries what arrives and ends from the event loop into files."""

    def __init__(self, options: RecordOptions, session_header: str) -> None:
        """Raises ConfigError for a missing secret or library."""
        assert options.record is not None
        path = options.record_key_file
        if path is None:
            key = secrets.token_bytes(32)
        else:
            key = read_secret("--record-key-file", path).encode()
        self.has_random_key = path is None
        self.path = readable_name(options.record)
        self._traffic = Traffic(
            key, secrets.token_hex(8), time.monotonic(), time.time()
        )
        self._files = RecordingFiles(
            options.record, self._traffic.header,
            max_bytes=options.record_max_bytes, max_files=options.record_max_files,
            compress=compressor(options.record),
        )  # fmt: skip
        self._session_header = session_header.lower().encode()
        self._queue: deque[Arrival | _Ended] = deque()
        self._put_bytes = self._taken_bytes = 0
        self._waiting: list[tuple[bytes, bool]] = []
        """Lines, and whether each is a request's last."""
        self._waiting_bytes = 0
        self._written = 0
        self._is_up = False
        self._failed_seconds: float | None = None
        self._lost: Counter[str] = Counter()
        self._behind = 0
        """Counted by the loop, as the others are by the thread."""
        self._seldom = Seldom(every_seconds=SAID_SECONDS)
        self._wake = threading.Event()
        self._is_stopping = False
        self._thread = threading.Thread(target=self._run, name="recording", daemon=True)

    def start(self) -> None:
        """Begin the file, and the thread; one that cannot be begun is said and tried
        again."""
        try:
            self._files.open()
            self._is_up = True
            log.info(
                "recording to %s%s", self.path,
                ", hashes under a random key: other recordings have others "
                "(--record-key-file)" if self.has_random_key else "",
            )  # fmt: skip
        except OSError as error:
            self._failed(error)
        self._thread.start()

    def opened(
        self, opened: RequestOpened, headers: Headers, body: bytes | bytearray
    ) -> list[str] | None:
        """A request is on its way; the list that takes its reply's text. Never blocks.

        None where it is not recorded, since too much waits. From the event loop only.
        """
        is_full = (
            self._put_bytes - self._taken_bytes + len(body) > QUEUE_BYTES
            or len(self._queue) >= QUEUE_EVENTS
        )
        if is_full:
            self._behind += 1
            return None
        texts: list[str] = []
        self._put_bytes += len(body)
        session = value_of(headers, self._session_header) or None
        self._queue.append(Arrival(opened, session, body, texts))
        if not self._wake.is_set():
            self._wake.set()
        return texts

    def ended(self, key: int, at_seconds: float, record: RequestRecord | None) -> None:
        """It ended; `record` is what the meter knows. Never blocks."""
        self._queue.append(_Ended(key, at_seconds, record))
        if not self._wake.is_set():
            self._wake.set()

    def state(self) -> RecordingState:
        """How it goes, from any thread."""
        lost = Counter(self._lost)
        lost["behind"] += self._behind
        return RecordingState(self._is_up, self._written, lost)

    def stop(self) -> None:
        """Write what is left, once more and within a time."""
        self._is_stopping = True
        self._wake.set()
        if self._thread.ident is not None:
            self._thread.join(STOP_SECONDS)
        if self._thread.is_alive():
            log.error("%s: the last requests could not be recorded in time", self.path)

    def turn(self) -> None:
        """Make lines of what has come since, and write them."""
        while self._queue:
            event = self._queue.popleft()
            try:
                self._take(event)
            except Exception as error:  # one request's defect is not the others'
                self._lost["defect"] += isinstance(event, Arrival)
                if self._seldom.count("defect") is not None:
                    log.exception("a request could not be recorded: %r", error)
        for line in self._traffic.still_open(time.monotonic()):
            self._hold(line, is_last=False)
        self._write()

    def _run(self) -> None:
        while not self._is_stopping:
            # requests in flight get their line before they end
            self._wake.wait(GATHER_SECONDS if self._is_busy else None)
            self._wake.clear()
            self._turn()
            if not self._is_stopping:
                time.sleep(GATHER_SECONDS)
        self._failed_seconds = None
        self._turn()
        if self._waiting:
            self._lose(self._waiting)
        self._files.close()

    def _turn(self) -> None:
        try:
            self.turn()
        except Exception as error:  # the thread's outermost loop: it must live on
            self._lost["defect"] += 1
            if self._seldom.count("turn") is not None:
                log.exception("the recording failed, and goes on: %r", error)

    @property
    def _is_busy(self) -> bool:
        return len(self._traffic) > 0 or bool(self._waiting)

    def _take(self, event: Arrival | _Ended) -> None:
        if isinstance(event, Arrival):
            self._taken_bytes += len(event.body)
            self._traffic.arrive(event)
            return
        line = self._traffic.end(event.key, event.at_seconds, event.record)
        if line is not None:
            self._hold(line, is_last=True)

    def _hold(self, line: bytes, *, is_last: bool) -> None:
        if self._waiting_bytes + len(line) > WAITING_BYTES and self._is_failing:
            self._lost["file"] += is_last
            return
        self._waiting.append((line, is_last))
        self._waiting_bytes += len(line)
        if self._waiting_bytes > WAITING_BYTES:
            self._write()

    @property
    def _is_failing(self) -> bool:
        return self._failed_seconds is not None

    def _write(self) -> None:
        now = time.monotonic()
        failed = self._failed_seconds
        if failed is not None and now < failed + RETRY_SECONDS:
            return
        if not self._waiting:
            return
        try:
            self._files.write([line for line, _ in self._waiting])
        except OSError as error:
            self._failed(error)
            return
        if not self._is_up:
            log.warning("%s: recording goes on", self.path)
        self._is_up, self._failed_seconds = True, None
        self._written += sum(is_last for _, is_last in self._waiting)
        self._waiting, self._waiting_bytes = [], 0

    def _failed(self, error: OSError) -> None:
        self._is_up, self._failed_seconds = False, time.monotonic()
        if self._seldom.count("write") is not None:
            log.warning(
                "%s: %s; requests flow, and are not recorded once %d MiB of them wait",
                self.path, os_reason(error), WAITING_BYTES // 2**20,
            )  # fmt: skip

    def _lose(self, lines: list[tuple[bytes, bool]]) -> None:
        self._lost["file"] += sum(is_last for _, is_last in lines)
        log.error("%s: %d requests could not be recorded", self.path, len(lines))
