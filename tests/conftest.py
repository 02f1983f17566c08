"""What all tests share: the event loops of the proxy, databases for the store, how
many examples a property test runs, and who has a second try."""

from __future__ import annotations

import gc
import os
import shutil
import signal
import tempfile
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest
from sqlalchemy import URL, make_url

from proxy.store.address import sqlite_url
from tests.support.databases import Postgres
from tests.support.profiles import register_profiles
from tests.support.relaying import LOOPS

register_profiles()
# A shell that runs pytest in the background ignores Ctrl-C for all of its children.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
# Else each of the processes that tests start compiles both packages anew: 0.5 s.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give each test that talks to other processes or sockets a second try.

    There are hundreds of them, on machines that stall for a second now and then. One
    that fails twice fails; one that passes only then is named at the end, as RERUN.
    Unit tests have no such excuse.
    """
    unit = Path(__file__).with_name("unit")
    for item in items:
        if not item.path.is_relative_to(unit):
            item.add_marker(pytest.mark.flaky(reruns=1))


@pytest.hookimpl(optionalhook=True, wrapper=True)
def pytest_xdist_auto_num_workers() -> Generator[None, int, int]:
    """Three workers for two cores: tests of processes wait half of their time."""
    cores = yield
    if "PYTEST_XDIST_AUTO_NUM_WORKERS" in os.environ:
        return cores
    return -(-3 * cores // 2)


def pytest_collection_finish() -> None:
    """Leave the modules out of later collections of garbage: 0.1 s in every replay."""
    gc.collect()
    gc.freeze()


@pytest.fixture(params=LOOPS)
def loop(request: pytest.FixtureRequest) -> str:
    """Each of the event loops that the proxy may run on, by name."""
    return str(request.param)


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
