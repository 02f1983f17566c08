"""What several tests of the proxy need: event loops, and databases for the store."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import URL, create_engine, make_url, text

from proxy.store.address import sqlite_url
from tests.relaying import LOOPS


@pytest.fixture(params=LOOPS)
def loop(request: pytest.FixtureRequest) -> str:
    """Each of the event loops that the proxy may run on, by name."""
    return str(request.param)


class Postgres:
    """A private cluster on a Unix socket; PostgreSQL itself refuses to be root."""

    def __init__(self, programs: Path, folder: Path) -> None:
        self._programs = programs
        self._folder = folder
        self._as_user = ["runuser", "-u", "postgres", "--"] if os.getuid() == 0 else []
        if self._as_user:
            shutil.chown(folder, "postgres", "postgres")
        self._run("initdb", "-U", "tester", "-A", "trust", "--no-sync")

    def start(self) -> None:
        options = f"-k {self._folder} -c listen_addresses= -c fsync=off"
        log = str(self._folder / "log")
        self._run("pg_ctl", "-w", "-l", log, "-o", options, "start")

    def stop(self) -> None:
        """At once, as in a crash."""
        self._run("pg_ctl", "-w", "-m", "immediate", "stop")

    def create_database(self) -> URL:
        name = f"t{uuid.uuid4().hex}"
        admin = create_engine(self._url("postgres"), isolation_level="AUTOCOMMIT")
        with admin.connect() as connection:
            connection.execute(text(f"CREATE DATABASE {name}"))
        admin.dispose()
        return self._url(name)

    def _url(self, database: str) -> URL:
        return make_url(f"postgresql+psycopg://tester@/{database}?host={self._folder}")

    def _run(self, program: str, *arguments: str) -> None:
        data = ["-D", str(self._folder / "data")]
        # pg_ctl's server keeps a pipe open, so its words go to a file
        with (self._folder / "out").open("w+") as out:
            done = subprocess.run(
                [*self._as_user, str(self._programs / program), *data, *arguments],
                cwd=self._folder, stdin=subprocess.DEVNULL, stdout=out, stderr=out,
                check=False, timeout=60,
            )  # fmt: skip
            out.seek(0)
            assert done.returncode == 0, out.read()


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    pytest.importorskip("psycopg", reason="psycopg is not installed")
    # Debian keeps the server's programs out of the PATH
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/pg_ctl"))
    on_path = shutil.which("pg_ctl")
    if not found and on_path is None:
        pytest.skip(
            "no PostgreSQL server: pg_ctl is not installed (Debian: postgresql)"
        )
    programs = found[-1].parent if found else Path(str(on_path)).resolve().parent
    folder = Path(tempfile.mkdtemp(prefix="servewatt-pg-"))  # a short path: a socket
    server = Postgres(programs, folder)
    server.start()
    try:
        yield server
    finally:
        server.stop()
        shutil.rmtree(folder)


@pytest.fixture(
    params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)]
)
def url(request: pytest.FixtureRequest, tmp_path: Path) -> URL:
    """An empty database of either kind."""
    if request.param == "sqlite":
        return make_url(sqlite_url(tmp_path / "records.sqlite"))
    server: Postgres = request.getfixturevalue("postgres")
    return server.create_database()
