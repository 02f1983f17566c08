"""A real PostgreSQL server of our own, for the store's tests."""

from __future__ import annotations

import os
import shutil
import subprocess
import uuid
from pathlib import Path

from sqlalchemy import URL, create_engine, make_url, text


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
