"""All records that can be asked for: the newest in memory, the others in a database.

Rule: what this run settled is read from memory as long as it is there, so a
reader with a cursor never misses a record that is not written yet, nor needs the
database for the newest. Each proxy answers for itself and for the past: records
that another proxy of the same upstream writes meanwhile show after a restart.
"""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from bisect import bisect_right
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec
from sqlalchemy import URL
from sqlalchemy.exc import SQLAlchemyError

from proxy.errors import ConfigError, StoreError
from proxy.meter.ledger import RequestRecord
from proxy.store.address import Retention
from proxy.store.database import Database
from proxy.store.journal import Journal, journal_base, left_behind
from proxy.store.stored_record import (
    EVERY_RECORD,
    RecordFilter,
    RecordNumbering,
    StoredRecord,
    cursor_at,
    reply_from,
    reply_of,
)
from proxy.store.writer import KEPT_RECORDS, RecordWriter, WriterBounds
from proxy.wire.api import RequestReply, StoreState
from proxy.wire.events import RequestOpened
from proxy.wire.facts import well_formed

log = logging.getLogger("servewatt.store")

KEPT_BESIDE_STORE = 5_000
"""Records kept in memory that a database has too: enough for a steady reader."""


class RecentRecords:
    """The newest records in order of settlement; the oldest make room, counted."""

    def __init__(self, kept: int = KEPT_RECORDS) -> None:
        self.kept = kept
        """Number of records that stay; may change at any time."""
        self._records: list[StoredRecord] = []
        self._by_id: dict[str, StoredRecord] = {}
        self.evicted = 0
        self.horizon = 0
        """Every record of this run above this cursor is here."""

    def add(self, records: Iterable[StoredRecord]) -> None:
        """Keep these, dropping the oldest beyond the bound."""
        for stored in records:
            self._records.append(stored)
            self._by_id[stored.record.request_id] = stored
        # trimmed now and then, not one by one
        if len(self._records) > self.kept + self.kept // 10 + 1:
            self._evict(len(self._records) - self.kept)

    def since(self, cursor: int, limit: int | None) -> list[StoredRecord]:
        """Records settled after `cursor`, oldest first, at most `limit`; None: all."""
        first = bisect_right(self._records, cursor, key=lambda f: f.cursor)
        return self._records[first : None if limit is None else first + limit]

    def last(self, count: int) -> list[StoredRecord]:
        """The newest `count`, newest first."""
        return self._records[: -count - 1 : -1]

    def by_id(self, request_id: str) -> StoredRecord | None:
        """The newest record of this id, if still kept."""
        return self._by_id.get(request_id)

    def __len__(self) -> int:
        return len(self._records)

    def _evict(self, count: int) -> None:
        for oldest in self._records[:count]:
            request_id = oldest.record.request_id
            if self._by_id[request_id] is oldest:
                del self._by_id[request_id]
        self.horizon = self._records[count - 1].cursor
        self.evicted += count
        del self._records[:count]


class Archive:
    """Stores what settles and finds it again; without a URL, in memory only."""

    def __init__(
        self,
        url: URL | None = None,
        *,
        upstream: str = "",
        upstreams: Mapping[str, str] | None = None,
        boundaries: Mapping[str, str] | None = None,
        retention: Retention | None = None,
        bounds: WriterBounds | None = None,
        run: str = "",
        policy: str = "phase",
        journal_folder: Path | None = None,
    ) -> None:
        """Opens the store. Raises ConfigError for a schema of another version.

        `upstream` is whose records these are; of several, `upstreams` has the
        addresses by engine, and `upstream` is the first; `boundaries` are those that
        the joules of records are measured inside, by engine. What is not in the
        database yet is journaled beside an SQLite file, or for a server in
        `journal_folder`.

        A store that does not answer is no error: it is tried again later.
        """
        self._numbering = RecordNumbering()
        self._recent = RecentRecords()
        self._instance: str | None = None
        self._database: Database | None = None
        self._writer: RecordWriter | None = None
        self._journal: Journal | None = None
        self._journal_base: Path | None = None
        if url is not None:
            run = run or uuid.uuid4().hex
            self._database = Database(url, upstream, run, upstreams, boundaries)
            is_open, error = self._open(self._database)
            self._journal_base = journal_base(url, journal_folder)
            if self._journal_base is not None:
                self._journal = Journal(self._journal_base, run, policy)
            self._writer = RecordWriter(
                self._database, retention or Retention(),
                is_open=is_open, last_error=error, bounds=bounds,
                on_stored=None if self._journal is None else self._journal.forget,
            )  # fmt: skip
        self._numbering.continue_from(cursor_at(time.time()))
        self._recent.horizon = self._numbering.last

    def start(self, instance: str = "", host: str | None = None) -> None:
        """Begin to write; notes that a dead run of this instance left are records."""
        self._instance = instance or None
        if self._writer is not None and self._database is not None:
            self._database.instance = instance
            self._database.host = host
            if self._writer.state().is_up:
                self._adopt(self._database)
            self._database.began = self._recent.horizon
            self._writer.start()
            if self._journal is not None:
                self._journal.start(instance, self._database.addresses)

    def take_upstreams(
        self,
        upstreams: Mapping[str, str],
        boundaries: Mapping[str, str] | None = None,
    ) -> None:
        """Store records of these engines, by name, under these addresses."""
        if self._database is not None:
            self._database.take_upstreams(upstreams, boundaries)
            if self._journal is not None:
                self._journal.take_upstreams(self._database.addresses)

    def stop(self) -> None:
        """Write what waits; blocks, but not without bound."""
        if self._writer is not None:
            self._writer.stop()
            if self._journal is not None:
                self._journal.stop(is_all_stored=not self._writer.waiting)

    def arrive(self, engine: str, event: RequestOpened) -> None:
        """A request is on its way to an engine: a killed proxy leaves that; no wait."""
        if self._journal is not None:
            self._journal.add(engine, event)

    def add(self, records: Iterable[RequestRecord]) -> None:
        """Store what has just settled; never blocks."""
        stored = self._numbering.number(records, time.time(), time.monotonic())
        if not stored:
            return
        if self._writer is not None:
            self._writer.add(stored)
            # what is not written yet stays, however much that is
            kept = KEPT_BESIDE_STORE + self._writer.waiting
            self._recent.kept = min(kept, KEPT_RECORDS)
        self._recent.add(stored)

    def note(self, records: Iterable[RequestRecord]) -> None:
        """Note what has ended and is not settled yet; never blocks."""
        if self._writer is not None:
            stored = self._numbering.number(records, time.time(), time.monotonic())
            self._writer.add([replace(each, is_note=True) for each in stored])

    def end(self, record: RequestRecord | None) -> None:
        """A request has ended; its energy is not known yet. No wait."""
        if self._journal is not None and record is not None:
            self._journal.end(record)

    def tell_end(
        self,
        request_id: str,
        outcome: str,
        status: int | None,
        error: str | None,
        at_seconds: float,
    ) -> None:
        """How a request ended whose record is from a dead process's journal. No wait.

        From the event loop only.
        """
        if self._database is not None:
            unix_seconds = at_seconds + (time.time() - time.monotonic())
            ending = asyncio.get_running_loop().run_in_executor(
                None,
                self._database.tell_end,
                request_id,
                outcome,
                status,
                None if error is None else well_formed(error),
                unix_seconds,
            )
            ending.add_done_callback(_log_failure)

    def last(self, count: int) -> list[RequestRecord]:
        """The newest `count` of this run, newest first."""
        return [stored.record for stored in self._recent.last(count)]

    def state(self) -> StoreState | None:
        """State of the store; None without one."""
        return None if self._writer is None else self._writer.state()

    def latest(self, count: int) -> list[RequestReply]:
        """The newest `count` of this run as they are shown, newest first."""
        return [self._reply_of(stored) for stored in self._recent.last(count)]

    async def lines(
        self, since: int, limit: int, wanted: RecordFilter = EVERY_RECORD
    ) -> bytes:
        """JSON lines of wanted records after `since`, oldest first, at most `limit`.

        Raises StoreError when some of them can be had only from a store that
        does not answer.
        """
        horizon = self._recent.horizon
        newest = self._recent.since(since, limit if wanted == EVERY_RECORD else None)
        database = self._database if since < horizon else None
        if database is not None:
            self._refuse_while_down()
        page = _Page(database, since, horizon, limit, newest, wanted, self._instance)
        return await asyncio.to_thread(page.read)

    async def line(self, request_id: str) -> bytes | None:
        """The newest record of this id as JSON. Raises StoreError as `lines`."""
        stored = self._recent.by_id(request_id)
        if stored is not None:
            return msgspec.json.encode(self._reply_of(stored))
        if self._database is None:
            return None
        self._refuse_while_down()
        row = await asyncio.to_thread(_find, self._database, request_id)
        return None if row is None else msgspec.json.encode(reply_from(row))

    def _reply_of(self, stored: StoredRecord) -> RequestReply:
        return reply_of(stored, self._instance)

    def _open(self, database: Database) -> tuple[bool, str | None]:
        try:
            highest = database.open()
        except ConfigError:
            database.close()
            raise
        except SQLAlchemyError as error:
            reason = str(getattr(error, "orig", None) or error).splitlines()[0]
            log.warning(
                "store %s: %s; records wait in memory", database.shown_url, reason
            )
            return False, reason
        self._numbering.continue_from(highest)
        ahead_seconds = (highest - cursor_at(time.time())) / 1e6
        if ahead_seconds > 0:
            log.warning(
                "the newest record in the store is %.0f s ahead of this clock; "
                "new ones are numbered above it", ahead_seconds,
            )  # fmt: skip
        return True, None

    def _adopt(self, database: Database) -> None:
        """Record what processes that are dead had not; none of it twice."""
        base = self._journal_base
        noted = journaled = 0
        try:
            with ExitStack() as held:
                found = [] if base is None else held.enter_context(left_behind(base))
                dead_runs = [left.run for left in found]
                noted = database.adopt(self._numbering.last, time.time(), dead_runs)
                self._numbering.continue_from(self._numbering.last + noted)
                for left in found:
                    count = database.adopt_open(left, self._numbering.last)
                    self._numbering.continue_from(self._numbering.last + count)
                    journaled += count
        except SQLAlchemyError as error:
            log.warning("store %s: %s", database.shown_url, error)
        if noted or journaled:
            log.warning(
                "a proxy was killed: %d requests that it had noted and %d of its "
                "journal are recorded without energy", noted, journaled,
            )  # fmt: skip
            self._recent.horizon = self._numbering.last

    def _refuse_while_down(self) -> None:
        state = self.state()
        if state is not None and not state.is_up:
            raise _unreachable(state.url, state.last_error, self._recent.horizon)


@dataclass(frozen=True, slots=True)
class _Page:
    """One reply in the making, read off the event loop."""

    database: Database | None
    since: int
    horizon: int
    """Cursor up to which the database is read; above it `newest` has all."""
    limit: int
    newest: list[StoredRecord]
    wanted: RecordFilter
    instance: str | None
    """Of what is in `newest`."""

    def read(self) -> bytes:
        replies: list[RequestReply] = []
        if self.database is not None:
            try:
                rows = self.database.page(
                    self.since, self.horizon, self.limit, self.wanted
                )
                replies += map(reply_from, rows)
                if rows and len(rows) < self.limit:  # a page may be short
                    last = rows[-1]["sequence"]
                    if self.database.page(last, self.horizon, 1, self.wanted):
                        return msgspec.json.Encoder().encode_lines(replies)
            except SQLAlchemyError as error:
                reason = str(error).splitlines()[0]
                shown = self.database.shown_url
                raise _unreachable(shown, reason, self.horizon) from None
        newest = filter(self.wanted.takes, self.newest)
        replies += [
            reply_of(stored, self.instance)
            for stored in islice(newest, max(0, self.limit - len(replies)))
        ]
        return msgspec.json.Encoder().encode_lines(replies)


def _log_failure(ending: asyncio.Future[None]) -> None:
    if not ending.cancelled() and (error := ending.exception()) is not None:
        reason = str(error).splitlines()[0]
        log.warning("the end of a request could not be stored: %s", reason)


def _find(database: Database, request_id: str) -> dict[str, Any] | None:
    try:
        return database.find(request_id)
    except SQLAlchemyError as error:
        reason = str(error).splitlines()[0]
        raise StoreError(f"store {database.shown_url}: {reason}") from None


def _unreachable(url: str, reason: str | None, horizon: int) -> StoreError:
    return StoreError(
        f"store {url}: {reason or 'not open yet'}; records of this run need no store: "
        f"ask with since={horizon}"
    )
