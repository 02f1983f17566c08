"""The one thread that writes records, in batches, and keeps trying when it cannot.

Rule: the event loop only appends to a bounded queue. Whatever the database does,
requests flow; records wait, and when they no longer fit the oldest are dropped
and counted.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from sqlalchemy.exc import DataError, DBAPIError, SQLAlchemyError, StatementError

from proxy.errors import ConfigError
from proxy.store.address import Retention
from proxy.store.database import Database
from proxy.store.stored_record import StoredRecord, cursor_at, row_of
from proxy.wire.api import StoreState

log = logging.getLogger("servewatt.store")

KEPT_RECORDS = 100_000
"""Records in memory, 1.3 KB each: a day at one request a second within 130 MB."""
BATCH_RECORDS = 1000
"""Per transaction: some 20 ms of SQLite."""
QUEUE_RECORDS = KEPT_RECORDS - BATCH_RECORDS
"""Records waiting to be written; all are in memory too, so they can be read."""
BATCH_SECONDS = 0.3
"""Of what ended longer ago than this, and the batch under way, the database has a note
or the record; of anything later the journal has the arrival."""
RETAIN_SECONDS = 60.0
RETAIN_RECORDS = 5000
"""Deleted per transaction."""
SANE_SECONDS = 6 * 3600.0
"""So long must the clock agree with the monotonic one before it deletes by age."""
SANE_DRIFT_SECONDS = 60.0
FIRST_BACKOFF_SECONDS = 0.5
LONGEST_BACKOFF_SECONDS = 30.0
STOP_SECONDS = 3.0


@dataclass(frozen=True, slots=True)
class WriterBounds:
    """The writer's bounds; tests make them small."""

    batch_records: int = BATCH_RECORDS
    batch_seconds: float = BATCH_SECONDS
    queue_records: int = QUEUE_RECORDS
    retain_seconds: float = RETAIN_SECONDS
    retain_records: int = RETAIN_RECORDS
    first_backoff_seconds: float = FIRST_BACKOFF_SECONDS
    longest_backoff_seconds: float = LONGEST_BACKOFF_SECONDS
    sane_seconds: float = SANE_SECONDS


class TrustedClock:
    """Whether the wall clock may decide what is old: not before it was sane for long.

    A clock that is set anew, by whatever, has to be sane for as long again.
    """

    def __init__(self, sane_seconds: float) -> None:
        self._sane_seconds = sane_seconds
        self._offset_seconds: float | None = None
        self._since_seconds = 0.0

    def is_sane(self, now_seconds: float, unix_seconds: float) -> bool:
        """Looks at both clocks, monotonic and wall; to be asked now and then."""
        offset = unix_seconds - now_seconds
        known = self._offset_seconds
        if known is None or abs(offset - known) > SANE_DRIFT_SECONDS:
            if known is not None:
                log.warning(
                    "the clock was set by %.0f s: nothing is deleted for its age for "
                    "%g hours", offset - known, self._sane_seconds / 3600,
                )  # fmt: skip
            self._offset_seconds, self._since_seconds = offset, now_seconds
        return now_seconds >= self._since_seconds + self._sane_seconds


class RecordWriter:
    """Carries records from the event loop into a database."""

    def __init__(
        self,
        database: Database,
        retention: Retention,
        *,
        is_open: bool = False,
        last_error: str | None = None,
        bounds: WriterBounds | None = None,
        unix_seconds: Callable[[], float] = time.time,
        on_stored: Callable[[list[tuple[str, int]]], None] | None = None,
    ) -> None:
        """`on_stored` is told whose note or record need not be kept elsewhere.

        It is called from both threads, with engine and key of each request.
        """
        self._database = database
        self._on_stored = on_stored or (lambda _: None)
        self._retention = retention
        self._bounds = bounds or WriterBounds()
        self._unix_seconds = unix_seconds
        # one thread appends, one pops: a deque needs no lock for that
        self._queue: deque[StoredRecord] = deque()
        self._batch: list[StoredRecord] = []
        self._is_open = is_open
        self._is_up = is_open
        self._last_error = last_error
        self._written = self._overflowed = self._refused = self._deleted = 0
        self._backoff_seconds = self._bounds.first_backoff_seconds
        self._retained_seconds = float("-inf")
        self._noted: dict[tuple[str, int], int] = {}
        """Cursors of notes in the database, by engine and key of the request."""
        self._clock = TrustedClock(self._bounds.sane_seconds)
        self._wake = threading.Event()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="store", daemon=True)

    def start(self) -> None:
        """Begin to write."""
        self._thread.start()

    def add(self, records: Iterable[StoredRecord]) -> None:
        """Queue these; never blocks. From the event loop only."""
        queue, room = self._queue, self._bounds.queue_records
        for stored in records:
            if len(queue) >= room:
                dropped = queue.popleft()
                self._overflowed += 1
                self._on_stored([_whose(dropped)])
            queue.append(stored)
        if len(queue) >= self._bounds.batch_records and self._is_up:
            self._wake.set()

    def stop(self, seconds: float = STOP_SECONDS) -> None:
        """Write what waits, once more and within this time; logs what stays behind."""
        self._stopping = True
        self._wake.set()
        self._thread.join(seconds)
        if left := self.waiting:
            log.error(
                "%d records could not be stored: %s", left, self._last_error or "late"
            )
        if not self._thread.is_alive():
            self._database.close()

    @property
    def waiting(self) -> int:
        """Records that are not in the database yet."""
        return len(self._queue) + len(self._batch)

    def state(self) -> StoreState:
        """State of the store at this moment, from any thread."""
        return StoreState(
            url=self._database.shown_url,
            is_up=self._is_up,
            last_error=self._last_error,
            queue_records=self.waiting,
            written_total=self._written,
            dropped_total=self._overflowed + self._refused,
            deleted_total=self._deleted,
        )

    def turn(self) -> float:
        """Write all that waits and clear away what is old; seconds until the next."""
        try:
            if not self._is_open:
                self._database.open()
                self._is_open = True
            self._write_all()
            self._retain()
        except Exception as error:  # the thread's outermost loop: it must live on
            return self._failed(error)
        if not self._is_up:
            log.warning("store %s is up", self._database.shown_url)
        self._is_up, self._last_error = True, None
        self._backoff_seconds = self._bounds.first_backoff_seconds
        return self._bounds.batch_seconds

    def _run(self) -> None:
        wait_seconds = self._bounds.batch_seconds
        while not self._stopping:
            self._wake.wait(wait_seconds)
            self._wake.clear()
            wait_seconds = self.turn()
        self.turn()

    def _write_all(self) -> None:
        while True:
            while self._queue and len(self._batch) < self._bounds.batch_records:
                try:
                    self._batch.append(self._queue.popleft())
                except IndexError:  # the loop has just dropped the last one
                    break
            if not self._batch:
                return
            self._write(self._batch)
            self._batch = []

    def _write(self, records: Sequence[StoredRecord]) -> None:
        """All in one transaction; one that no database takes must not block the rest.

        Raises SQLAlchemyError when it is the database that cannot.
        """
        notes, noted, rows = self._in_place_of_notes(records)
        try:
            self._database.write([row_of(stored) for stored in rows], notes)
        except (SQLAlchemyError, OverflowError) as error:
            if not _is_the_records_fault(error):
                raise
            if len(records) == 1:
                self._refused += 1
                self._on_stored([_whose(records[0])])
                log.error("record %s: %s", records[0].cursor, _first_line(error))
                return
            middle = len(records) // 2
            self._write(records[:middle])
            self._write(records[middle:])
        else:
            self._written += sum(not stored.is_note for stored in rows)
            was_noted, self._noted = self._noted, noted
            new = [w for w in map(_whose, rows) if w[1] and w not in was_noted]
            self._on_stored(new)

    def _in_place_of_notes(
        self, records: Sequence[StoredRecord]
    ) -> tuple[list[int], dict[tuple[str, int], int], list[StoredRecord]]:
        """Cursors of notes that these replace, the notes then left, and what to write.

        Records come after their notes, so a note and its record in one batch are
        the record alone.
        """
        noted = dict(self._noted)
        notes: list[int] = []
        rows: dict[int, StoredRecord] = {}
        for stored in records:
            whose = _whose(stored)
            rows[stored.cursor] = stored
            if stored.is_note:
                noted[whose] = stored.cursor
            elif stored.record.key and whose in noted:
                cursor = noted.pop(whose)
                if rows.pop(cursor, None) is None:
                    notes.append(cursor)
        return notes, noted, list(rows.values())

    def _retain(self) -> None:
        now = time.monotonic()
        is_sane = self._clock.is_sane(now, self._unix_seconds())
        if now < self._retained_seconds + self._bounds.retain_seconds:
            return
        cut = 0
        if self._retention.age_seconds is not None and is_sane:
            cut = cursor_at(self._unix_seconds() - self._retention.age_seconds)
        if self._retention.rows is not None:
            cut = max(cut, self._database.cursor_of_newest(self._retention.rows) or 0)
        batch = self._bounds.retain_records
        gone = self._database.delete_before(cut, batch) if cut else 0
        self._deleted += gone
        if gone:
            log.info("%d records beyond --retain deleted, to cursor %d", gone, cut)
        if gone < batch:  # else the next turn goes on, after writing
            self._retained_seconds = now

    def _failed(self, error: Exception) -> float:
        """Note it, log it once, and wait longer each time."""
        reason = _first_line(error)
        if self._is_up or self._last_error is None:
            log.warning(
                "store %s: %s; requests flow, records wait",
                self._database.shown_url, reason,
                exc_info=not isinstance(error, SQLAlchemyError | ConfigError),
            )  # fmt: skip
        self._is_up, self._last_error = False, reason
        wait_seconds = self._backoff_seconds
        longest = self._bounds.longest_backoff_seconds
        self._backoff_seconds = min(2 * wait_seconds, longest)
        return wait_seconds


def _whose(stored: StoredRecord) -> tuple[str, int]:
    return stored.record.engine, stored.record.key


def _is_the_records_fault(error: Exception) -> bool:
    """A value no database takes, such as a count beyond 64 bits."""
    if isinstance(error, DataError | OverflowError):
        return True
    # psycopg and sqlite3 refuse some values before they reach the database
    return isinstance(error, StatementError) and not isinstance(error, DBAPIError)


def _first_line(error: BaseException) -> str:
    """The error in one line, without the statement that SQLAlchemy shows with it."""
    cause = error.orig if isinstance(error, DBAPIError) else error
    text = str(cause or error).strip()
    return text.splitlines()[0] if text else type(error).__name__
