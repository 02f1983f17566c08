"""One database of records, SQLite or PostgreSQL: its tables and the statements.

Every call blocks and may raise `SQLAlchemyError`; none is for the event loop.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

from sqlalchemy import (
    URL,
    BigInteger,
    Boolean,
    Column,
    Connection,
    Double,
    Engine,
    Index,
    Insert,
    Integer,
    MetaData,
    Select,
    Table,
    Text,
    create_engine,
    delete,
    event,
    func,
    inspect,
    select,
    text,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import IntegrityError, SQLAlchemyError
from sqlalchemy.schema import CreateIndex, CreateTable

from proxy.errors import ConfigError, StoreError
from proxy.process.files import private_file
from proxy.store.address import shown_url
from proxy.store.journal import LeftBehind
from proxy.store.stored_record import (
    EVERY_RECORD,
    KILLED,
    NOTE,
    RecordFilter,
    left_records,
    row_of,
)

SCHEMA_VERSION = 5
"""What `ADDED` brings a store to."""
OLDEST_VERSION = 1
ORPHANED_SECONDS = 3600.0
"""Longer than any proxy waits for the energy of a request."""
SAME_ARRIVAL_SECONDS = 0.5
"""The same request, though the clock was slewed since it was journaled; two requests
of one id come further apart."""
MAX_IDS = 500
"""In one question: SQLite takes 999 values on its oldest builds."""
LOCK = 0x5E12_3A77
"""Advisory lock of PostgreSQL while tables are created; any number of our own."""

METADATA = MetaData()
META = Table(
    "servewatt_meta",
    METADATA,
    Column("name", Text, primary_key=True),
    Column("value", Integer, nullable=False),
)
RECORDS = Table(
    "servewatt_records",
    METADATA,
    # whose it is: proxies may share a database
    Column("upstream", Text, primary_key=True),
    Column("sequence", BigInteger, primary_key=True, autoincrement=False),
    Column("run", Text, primary_key=True),
    Column("request_id", Text, nullable=False),
    Column("route", Text, nullable=False),
    Column("model", Text, nullable=False),
    Column("kind", Text, nullable=False),
    Column("tenant", Text, nullable=False),
    Column("outcome", Text, nullable=False),
    Column("error", Text),
    Column("status", Integer),
    Column("arrived_unix_seconds", Double, nullable=False),
    Column("scheduled_unix_seconds", Double),
    Column("first_token_unix_seconds", Double),
    Column("last_token_unix_seconds", Double),
    Column("finished_unix_seconds", Double, nullable=False),
    Column("prompt_tokens", BigInteger),
    Column("cached_tokens", BigInteger),
    Column("output_tokens", BigInteger),
    Column("prefill_joules", Double),
    Column("decode_joules", Double),
    Column("idle_share_joules", Double),
    Column("energy_joules", Double),
    Column("policy", Text, nullable=False),
    Column("quality", Text, nullable=False),
    Column("policy_joules", Text, nullable=False),
    Column("boundaries", Text),
    Column("engine", Text),
    Column("instance", Text),
    Column("is_output_lower_bound", Boolean),
    Column("idle_share_by_time_joules", Double),
    Column("low_joules", Double),
    Column("high_joules", Double),
    Column("timing", Text),
    Column("grade", Text),
    Column("grade_reasons", Text),
    Column("inferred_cached_tokens", BigInteger),
    Column("host", Text),
    Column("boundary", Text),
    Column("leg", Text),
)
"""Instants in Unix seconds (UTC), energy in joules. `policy_joules` is a JSON object,
and so is `boundaries`, null where only one boundary was metered. `engine` is the
name of the upstream in the proxy's configuration, `instance` the host and port of
the proxy, `is_output_lower_bound` is true where the reply broke off and
`output_tokens` are those seen until then, `low_joules` and `high_joules` bound
`energy_joules`, `timing` and `grade` grade them, `grade_reasons` (a JSON array) says
why not better, `inferred_cached_tokens` are those of the prompt taken as cached that
the engine did not tell of, `host` is the machine of the proxy, `boundary` what
`energy_joules` was measured inside, `leg` is `prefill` or `decode` where two engines
served a request under one id and null for a whole one; each of them is null in records
older than it. A row of quality `pending` is no record yet: it notes a request whose
energy is still measured.
"""
ADDED: Mapping[int, tuple[Column[Any], ...]] = {
    2: (RECORDS.c.boundaries,),
    3: (RECORDS.c.engine,),
    4: (RECORDS.c.instance,),
    # not released yet: what is added before it is joins this line
    5: (
        RECORDS.c.is_output_lower_bound,
        RECORDS.c.idle_share_by_time_joules,
        RECORDS.c.low_joules,
        RECORDS.c.high_joules,
        RECORDS.c.timing,
        RECORDS.c.grade,
        RECORDS.c.grade_reasons,
        RECORDS.c.inferred_cached_tokens,
        RECORDS.c.host,
        RECORDS.c.boundary,
        RECORDS.c.leg,
    ),
}
"""Columns by the version that brought them: nullable, for the records before them.
A store of any version gets those that it lacks when it is opened."""

Index("servewatt_records_request_id", RECORDS.c.request_id)
Index("servewatt_records_finished", RECORDS.c.finished_unix_seconds)

BUSY_SECONDS = 5.0
"""Wait of a writer for another one on the same SQLite file."""
INSERTS: dict[str, Insert] = {
    # a commit whose answer was lost is written again: once is enough
    "sqlite": sqlite.insert(RECORDS).on_conflict_do_nothing(),
    "postgresql": postgresql.insert(RECORDS).on_conflict_do_nothing(),
}
"""The same statement, but SQLAlchemy keeps `on conflict` with the dialects."""
CONNECT_ARGUMENTS: dict[str, dict[str, Any]] = {
    "sqlite": {"timeout": BUSY_SECONDS},
    # a host that vanished must not hold the writer for TCP's quarter of an hour
    "postgresql": {
        "connect_timeout": 5,
        "tcp_user_timeout": 10_000,  # ms
        "options": "-c statement_timeout=30s -c lock_timeout=10s",
    },
}


class Database:
    """The records of one proxy's upstreams in a database that others may share."""

    def __init__(
        self,
        url: URL,
        upstream: str,
        run: str,
        upstreams: Mapping[str, str] | None = None,
        boundaries: Mapping[str, str] | None = None,
    ) -> None:
        """`upstreams` are addresses by engine; another engine's is `upstream`.

        `boundaries` are those of the records' joules, by engine.
        """
        self.shown_url = shown_url(url)
        self.engine = _engine(url)
        self._run = run
        self._upstream = upstream
        self.addresses: dict[str, str] = {}
        """Of upstreams, by engine."""
        self._addresses = {upstream}
        self._boundaries: dict[str, str] = {}
        self.take_upstreams(upstreams or {}, boundaries)
        self._settled = RECORDS.c.quality != NOTE
        self.instance = ""
        """Whose notes are taken over at once: no two have the same at one time."""
        self.host: str | None = None
        self.began: int | None = None
        """Cursor when this run began: later rows of other runs are theirs to tell."""
        self._insert = INSERTS[self.engine.dialect.name]

    def take_upstreams(
        self,
        upstreams: Mapping[str, str],
        boundaries: Mapping[str, str] | None = None,
    ) -> None:
        """Write for these from now on; records of earlier ones are still read."""
        self.addresses |= upstreams
        self._boundaries |= boundaries or {}
        self._addresses |= set(upstreams.values())
        self._own = (
            RECORDS.c.upstream == self._upstream
            if len(self._addresses) == 1
            else RECORDS.c.upstream.in_(sorted(self._addresses))
        )

    def open(self) -> int:
        """Create or check the tables; the highest cursor ever stored, or 0.

        Raises ConfigError for a schema of another version.
        """
        try:
            self._prepare()
        except IntegrityError:
            self._prepare()  # another proxy was creating the same tables
        with self.engine.connect() as connection:
            highest = select(func.max(RECORDS.c.sequence)).where(self._own)
            return int(connection.scalar(highest) or 0)

    def write(
        self, rows: Sequence[Mapping[str, Any]], notes: Sequence[int] = ()
    ) -> None:
        """All of these or none; those that are there already stay as they are.

        They take the place of the notes with these cursors.
        """
        with self.engine.begin() as connection:
            if notes:
                gone = RECORDS.c.sequence.in_(notes)
                is_ours = RECORDS.c.run == self._run
                connection.execute(delete(RECORDS).where(self._own, is_ours, gone))
            if rows:
                connection.execute(self._insert, [self._owned(row) for row in rows])

    def adopt(
        self, above: int, unix_seconds: float, dead_runs: Sequence[str] = ()
    ) -> int:
        """Make records of the notes of runs that are dead; how many there were.

        They get cursors above this one: a reader that passed their old ones sees
        them. Nobody settles a note that is older than `ORPHANED_SECONDS`.
        """
        is_dead = (
            (RECORDS.c.instance == self.instance)
            | RECORDS.c.run.in_(dead_runs)
            | (RECORDS.c.finished_unix_seconds < unix_seconds - ORPHANED_SECONDS)
        )
        is_note = RECORDS.c.quality == NOTE
        keys = (RECORDS.c.upstream, RECORDS.c.run, RECORDS.c.sequence)
        found = (
            select(*keys)
            .where(self._own, is_note, RECORDS.c.run != self._run, is_dead)
            .order_by(RECORDS.c.sequence)
        )
        with self.engine.begin() as connection:
            rows = connection.execute(found).all()
            for number, row in enumerate(rows, 1):
                is_it = [key == value for key, value in zip(keys, row, strict=True)]
                new = {"sequence": above + number, "quality": "unknown"}
                connection.execute(RECORDS.update().where(*is_it).values(new))
        return len(rows)

    def adopt_open(self, left: LeftBehind, above: int) -> int:
        """Make records of what a dead run left in its journal; how many there were.

        Those whose note or record is there are left out: the kill came before the
        journal was told.
        """
        there = self._arrivals(left.run, [each.request_id for each, _ in left.requests])
        missing = [
            (arrival, end)
            for arrival, end in left.requests
            if not any(
                abs(at - arrival.arrived_unix_seconds) < SAME_ARRIVAL_SECONDS
                for at in there.get(arrival.request_id, ())
            )
        ]
        # its journal is on this host
        whose = {"run": left.run, "instance": left.instance, "host": self.host}
        rows = [
            {
                **row_of(each),
                **whose,
                "boundary": self._boundaries.get(each.record.engine),
                "upstream": left.upstreams.get(each.record.engine, self._upstream),
            }
            for each in left_records(replace(left, requests=missing), above)
        ]
        if rows:
            with self.engine.begin() as connection:
                connection.execute(self._insert, rows)
        return len(rows)

    def tell_end(
        self,
        request_id: str,
        outcome: str,
        status: int | None,
        error: str | None,
        finished_unix_seconds: float,
    ) -> None:
        """How a request ended that was recorded by its arrival alone."""
        is_it = (
            (RECORDS.c.request_id == request_id)
            & (RECORDS.c.error == KILLED)
            & (RECORDS.c.instance == self.instance)
            & (RECORDS.c.arrived_unix_seconds <= finished_unix_seconds)
        )
        end = {
            "outcome": outcome,
            "status": status,
            "error": error,
            "finished_unix_seconds": finished_unix_seconds,
        }
        with self.engine.begin() as connection:
            connection.execute(RECORDS.update().where(self._own, is_it).values(end))

    def _arrivals(self, run: str, ids: Sequence[str]) -> dict[str, list[float]]:
        """When requests of these ids arrived, of those that a run stored."""
        columns = (RECORDS.c.request_id, RECORDS.c.arrived_unix_seconds)
        found: dict[str, list[float]] = {}
        with self.engine.connect() as connection:
            for first in range(0, len(ids), MAX_IDS):
                some = RECORDS.c.request_id.in_(ids[first : first + MAX_IDS])
                for name, arrived in connection.execute(
                    select(*columns).where(RECORDS.c.run == run, some)
                ):
                    found.setdefault(name, []).append(arrived)
        return found

    def page(
        self,
        since: int,
        until: int,
        limit: int,
        wanted: RecordFilter = EVERY_RECORD,
    ) -> list[dict[str, Any]]:
        """Records with `since < cursor <= until` that are wanted, oldest first.

        Proxies that share a store may have given the same cursor: such records are
        on one page, so a page may be shorter than the limit, or longer where it
        would hold nothing else.
        """
        sequence = RECORDS.c.sequence
        if wanted.until is not None:
            until = min(until, wanted.until)
        between = select(RECORDS).where(
            self._own, self._settled, sequence > since, sequence <= until
        )
        for name, value in wanted.equal.items():
            between = between.where(RECORDS.c[name] == value)
        if self.began is not None:
            is_mine = (sequence <= self.began) | (RECORDS.c.run == self._run)
            between = between.where(is_mine)
        rows = self._read(between.order_by(sequence, RECORDS.c.run).limit(limit + 1))
        if len(rows) <= limit:
            return rows
        cut = rows[limit]["sequence"]
        whole = [row for row in rows if row["sequence"] < cut]
        return whole or self._read(between.where(sequence == cut))

    def find(self, request_id: str) -> dict[str, Any] | None:
        """The newest record of this id."""
        rows = self._read(
            select(RECORDS)
            .where(self._own, self._settled, RECORDS.c.request_id == request_id)
            .order_by(RECORDS.c.sequence.desc())
            .limit(1)
        )
        return rows[0] if rows else None

    def count(self) -> int:
        """Number of records of these upstreams."""
        with self.engine.connect() as connection:
            counted = (
                select(func.count())
                .select_from(RECORDS)
                .where(self._own, self._settled)
            )
            return int(connection.scalar(counted) or 0)

    def cursor_of_newest(self, rank: int) -> int | None:
        """Cursor of the `rank`-th newest record, from 1; None if there are fewer."""
        with self.engine.connect() as connection:
            found: int | None = connection.scalar(
                select(RECORDS.c.sequence)
                .where(self._own)
                .order_by(RECORDS.c.sequence.desc())
                .offset(rank - 1)
                .limit(1)
            )
            return found

    def delete_before(self, cursor: int, at_most: int) -> int:
        """Delete the oldest records below a cursor; how many went.

        In one short transaction, so that other writers wait little.
        """
        oldest = (
            select(RECORDS.c.sequence)
            .where(self._own, RECORDS.c.sequence < cursor)
            .order_by(RECORDS.c.sequence)
            .limit(at_most)
            .subquery()
        )
        with self.engine.begin() as connection:
            last = connection.scalar(select(func.max(oldest.c.sequence)))
            if last is None:
                return 0
            gone = delete(RECORDS).where(self._own, RECORDS.c.sequence <= last)
            return connection.execute(gone).rowcount

    def close(self) -> None:
        """Let every connection go."""
        self.engine.dispose()

    def _owned(self, row: Mapping[str, Any]) -> dict[str, Any]:
        upstream = self.addresses.get(row["engine"], self._upstream)
        return {
            **row,
            "upstream": upstream,
            "run": self._run,
            "instance": self.instance,
            "host": self.host,
            "boundary": self._boundaries.get(row["engine"]),
        }

    def _prepare(self) -> None:
        with self.engine.begin() as connection:
            _create_tables(connection)

    def _read(self, query: Select[Any]) -> list[dict[str, Any]]:
        with self.engine.connect() as connection:
            return [dict(row) for row in connection.execute(query).mappings()]


# -- tables ---------------------------------------------------------------------


def _create_tables(connection: Connection) -> None:
    """Create what is missing. Raises ConfigError for a schema of another version."""
    if connection.dialect.name == "postgresql":
        # its `if not exists` can fail when two create the same at the same time
        connection.execute(select(func.pg_advisory_xact_lock(LOCK)))
    else:  # sqlite3 begins no transaction for these statements
        connection.exec_driver_sql("BEGIN IMMEDIATE")
    if inspect(connection).has_table(META.name):
        found = connection.scalar(select(META.c.value).where(META.c.name == "schema"))
        if found is not None:
            _check_version(found)
            _add_columns(connection)
            return
    for table in METADATA.sorted_tables:
        connection.execute(CreateTable(table, if_not_exists=True))
        for index in sorted(table.indexes, key=lambda index: str(index.name)):
            connection.execute(CreateIndex(index, if_not_exists=True))
    connection.execute(META.insert().values(name="schema", value=SCHEMA_VERSION))


def _add_columns(connection: Connection) -> None:
    """Up to this version, in the caller's transaction: what is there stays as it is."""
    there = {found["name"] for found in inspect(connection).get_columns(RECORDS.name)}
    for column in chain.from_iterable(ADDED.values()):
        if column.name not in there:  # else another proxy was faster, or killed here
            kind = column.type.compile(connection.dialect)
            added = f"ALTER TABLE {RECORDS.name} ADD COLUMN {column.name} {kind}"
            connection.execute(text(added))
    is_older = (META.c.name == "schema") & (META.c.value < SCHEMA_VERSION)
    connection.execute(META.update().where(is_older).values(value=SCHEMA_VERSION))


def _check_version(found: int) -> None:
    """Raises ConfigError unless this program can bring it to its own version."""
    if OLDEST_VERSION <= found <= SCHEMA_VERSION:
        return
    age, way_out = (
        ("newer", "upgrade servewatt, or name another --store")
        if found > SCHEMA_VERSION
        else ("older", "name another --store; the old one stays readable as it is")
    )
    raise ConfigError(
        f"the store has schema version {found}, {age} than this program's "
        f"{SCHEMA_VERSION}; {way_out}"
    )


# -- connections ----------------------------------------------------------------


@contextmanager
def reading(url: URL) -> Iterator[Connection]:
    """A connection to a store that is there, to read it as proxies go on writing.

    Raises ConfigError for what is no store of this version, StoreError where it does
    not answer, also inside the block.
    """
    shown = shown_url(url)
    path = url.database or ""
    is_file = url.get_backend_name() == "sqlite" and not path.startswith("file:")
    if is_file and not Path(path).is_file():
        raise ConfigError(f"--store {shown}: there is no such file")
    engine = _engine(url)
    try:
        with engine.connect() as connection:
            if not inspect(connection).has_table(META.name):
                raise ConfigError(f"--store {shown} holds no records of a proxy")
            found = connection.scalar(
                select(META.c.value).where(META.c.name == "schema")
            )
            _check_version(int(found or 0))
            if found != SCHEMA_VERSION:
                raise ConfigError(
                    f"--store {shown} has schema version {found}, this program reads "
                    f"{SCHEMA_VERSION}; a proxy of this version that opens it brings "
                    "it there"
                )
            yield connection
    except SQLAlchemyError as error:
        reason = str(getattr(error, "orig", None) or error).strip().splitlines()[0]
        raise StoreError(f"--store {shown}: {reason}") from None
    finally:
        engine.dispose()


def _engine(url: URL) -> Engine:
    backend = url.get_backend_name()
    arguments = {
        name: value
        for name, value in CONNECT_ARGUMENTS[backend].items()
        if name not in url.query
    }
    # pre_ping: a server that was restarted is met by a new connection, not an error
    engine = create_engine(url, connect_args=arguments, pool_pre_ping=True)
    if backend == "sqlite":
        if not (url.database or "file:").startswith("file:"):  # that is a URI
            event.listen(engine, "do_connect", _private(Path(str(url.database))))
        event.listen(engine, "connect", _journal_ahead)
    return engine


def _private(path: Path) -> Callable[..., None]:
    """Before SQLite makes a file: its log and index get the same permissions."""

    def make(*_: object) -> None:
        with suppress(OSError):  # SQLite says what is wrong with the path
            private_file(path)

    return make


def _journal_ahead(connection: Any, _: object) -> None:
    """Readers beside the writer; a killed process costs no more than its last batch.

    With a write-ahead log `synchronous=normal` stays whole even when power fails.
    """
    with closing(connection.cursor()) as cursor:
        cursor.execute("PRAGMA synchronous=normal")
        deadline = time.monotonic() + BUSY_SECONDS
        while cursor.execute("PRAGMA journal_mode").fetchone()[0] != "wal":
            try:
                cursor.execute("PRAGMA journal_mode=wal")
            except sqlite3.OperationalError:  # this one statement does not wait
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.01)
