"""The tables of the store, the same on every database, and their version."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Column,
    Connection,
    Double,
    Index,
    Integer,
    MetaData,
    Table,
    Text,
    func,
    inspect,
    select,
    text,
)
from sqlalchemy.schema import CreateIndex, CreateTable

from proxy.errors import ConfigError

SCHEMA_VERSION = 3
"""From 2 on there is `boundaries`, from 3 on `engine`; older stores get both."""
OLDEST_VERSION = 1
LOCK = 0x5E12_3A77
"""Of those who create the tables, in PostgreSQL; any number that is ours."""

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
)
"""Instants in Unix seconds (UTC), energy in joules. `policy_joules` is a JSON object,
and so is `boundaries`, null where only one boundary was metered. `engine` is the
name of the upstream in the proxy's configuration, null in records older than it."""
ADDED = (RECORDS.c.boundaries, RECORDS.c.engine)
"""Columns that version 1 did not have."""

Index("servewatt_records_request_id", RECORDS.c.request_id)
Index("servewatt_records_finished", RECORDS.c.finished_unix_seconds)


def prepare(connection: Connection) -> None:
    """Create what is missing. Raises ConfigError for a schema of another version."""
    if connection.dialect.name == "postgresql":
        # its `if not exists` can fail when two create the same at the same time
        connection.execute(select(func.pg_advisory_xact_lock(LOCK)))
    if inspect(connection).has_table(META.name):
        found = connection.scalar(select(META.c.value).where(META.c.name == "schema"))
        if found is not None and OLDEST_VERSION <= found < SCHEMA_VERSION:
            _add_columns(connection)
            return
        if found is not None:
            check_version(found)
            return
    for table in METADATA.sorted_tables:
        connection.execute(CreateTable(table, if_not_exists=True))
        for index in sorted(table.indexes, key=lambda index: str(index.name)):
            connection.execute(CreateIndex(index, if_not_exists=True))
    connection.execute(META.insert().values(name="schema", value=SCHEMA_VERSION))


def _add_columns(connection: Connection) -> None:
    """Up to this version, in the caller's transaction: what is there stays as it is."""
    there = {found["name"] for found in inspect(connection).get_columns(RECORDS.name)}
    for column in ADDED:
        if column.name not in there:  # else another proxy was faster, or killed here
            added = f"ALTER TABLE {RECORDS.name} ADD COLUMN {column.name} TEXT"
            connection.execute(text(added))
    is_schema = META.c.name == "schema"
    connection.execute(META.update().where(is_schema).values(value=SCHEMA_VERSION))


def check_version(found: int) -> None:
    """Raises ConfigError unless this program writes that version."""
    if found == SCHEMA_VERSION:
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
