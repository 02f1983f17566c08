"""SIGHUP with `--relays 2`: a file is used by every process, or by none."""

from __future__ import annotations

import signal
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.support.children import (
    PATIENCE_SECONDS,
    get,
    killable,
    post,
    simulating,
    wait_for,
)
from tests.support.relayed import Proxy

USED = "INFO servewatt.proxy: SIGHUP: upstreams "
RELOADS = "servewatt_config_reloads_total"


@pytest.fixture(scope="module")
def engines(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[list[dict[str, Any]]]:
    with ExitStack() as stack:
        folder = tmp_path_factory.mktemp("engines")
        yield [stack.enter_context(simulating(folder)) for _ in range(2)]


class Served:
    """A proxy with a file, whose engines are `a` and `b`."""

    def __init__(self, folder: Path, proxy: Proxy, engines: list[dict[str, Any]]):
        self.folder, self.proxy = folder, proxy
        self.tables = tables_of(engines)

    def write(self, *names: str, more: str = "") -> None:
        text = more + "".join(self.tables[name] for name in names)
        (self.folder / "proxy.toml").write_text(text)

    def hang_up(self, times: int = 1) -> None:
        for _ in range(times):
            self.proxy.parent.send_signal(signal.SIGHUP)

    def use(self, *names: str, more: str = "") -> None:
        """Write it, and wait until all use it."""
        used, said = self.reloads("used"), self.lines(USED)
        self.write(*names, more=more)
        self.hang_up()
        wait_for(lambda: self.lines(USED) == said + 1)
        assert self.reloads("used") == used + 1
        assert self.upstreams() == list(names)

    def reloads(self, outcome: str) -> float:
        return self.proxy.figures(RELOADS).get(f'{{outcome="{outcome}"}}', -1)

    def upstreams(self) -> list[str]:
        reply = get(f"{self.proxy.admin}/upstreams").json()
        return [each["name"] for each in reply["upstreams"]]

    def ask_all(self, prefix: str) -> set[str]:
        """Requests that both relays get, each of which is answered; their engines."""
        names = [f"{prefix}-{number}" for number in range(12)]
        for name in names:
            assert "[DONE]" in self.proxy.ask(name).text
        records = [self.proxy.record(name) for name in names]
        assert {record["outcome"] for record in records} == {"ok"}
        return {record["engine"] for record in records}

    def lines(self, text: str) -> int:
        return (self.folder / "log").read_text().count(text)


def tables_of(engines: list[dict[str, Any]]) -> dict[str, str]:
    return {
        name: f'[[upstream]]\nname = "{name}"\nurl = "{engine["url"]}"\n'
        f'power = "dcgm={engine["power_url"]}"\n'
        for name, engine in zip("ab", engines, strict=True)
    }


@pytest.fixture
def served(engines: list[dict[str, Any]], tmp_path: Path) -> Iterator[Served]:
    file = tmp_path / "proxy.toml"
    file.write_text(tables_of(engines)["a"])
    store = f"sqlite:///{tmp_path / 'records.sqlite'}"
    options = ("--config", str(file), "--relays", "2", "--store", store,
               "--drain-delay", "0", "--usage-event", "drop")  # fmt: skip
    with killable(*options, log=tmp_path / "log") as (addresses, process):
        proxy = Proxy(addresses, process)
        wait_for(proxy.is_whole)
        yield Served(tmp_path, proxy, engines)


def test_upstreams_come_and_go_in_every_process_while_a_stream_goes_on(
    served: Served, tmp_path: Path
) -> None:
    proxy, long = served.proxy, list[str]()
    run = get(f"{proxy.admin}/books").json()["run"]
    thread = threading.Thread(
        target=lambda: long.append(proxy.ask("long", tokens=2500).text), daemon=True
    )
    thread.start()
    wait_for(lambda: proxy.total("servewatt_requests_in_flight") == 1)

    served.use("b")
    assert not long  # it goes on at an upstream that gets nothing new
    assert served.ask_all("at-b") == {"b"}
    assert get(f"{proxy.admin}/books").json()["run"] != run

    # and that may come back while it is still leaving
    served.use("b", "a")
    assert served.ask_all("both") == {"a", "b"}
    thread.join(PATIENCE_SECONDS)
    assert "[DONE]" in long[0]
    wait_for(lambda: served.lines("upstream a is gone, its last request recorded"))
    record = proxy.record("long")
    assert (record["engine"], record["outcome"]) == ("a", "ok")
    assert record["energy"]["energy_joules"] > 0

    proxy.parent.send_signal(signal.SIGTERM)
    assert proxy.parent.wait(PATIENCE_SECONDS) == 0
    connection = sqlite3.connect(tmp_path / "records.sqlite")
    rows = connection.execute(
        "select request_id, outcome, output_tokens from servewatt_records"
    ).fetchall()
    connection.close()
    assert len(rows) == len({row[0] for row in rows}) == 25
    assert ("long", "ok", 2500) in rows
    assert served.lines("Traceback") == 0


def test_a_file_with_a_mistake_changes_nothing_anywhere(served: Served) -> None:
    bad = [
        "[[upstream]\n",
        served.tables["a"] + '[[upstream]]\nname = "b"\nurl = "http://b"\n',
        served.tables["a"] + 'upstream-ca = "/no/such.pem"\n',
        served.tables["a"].replace("dcgm=", "csv=/no/such/"),
    ]
    for number, text in enumerate(bad, 1):
        (served.folder / "proxy.toml").write_text(text)
        served.hang_up()
        wait_for(lambda number=number: served.reloads("refused") == number)  # type: ignore[misc]  # of this turn
        assert served.lines("going on with the configuration in use") == number
    assert served.upstreams() == ["a"]
    assert served.ask_all("still") == {"a"}
    assert served.reloads("used") == 0
    served.use("a", "b", more="max-connections = 50\n")
    assert served.lines("SIGHUP: upstreams new: b; not before a restart: limits") == 1
    assert served.ask_all("then") == {"a", "b"}


def test_who_is_started_again_has_the_upstreams_of_now(served: Served) -> None:
    proxy = served.proxy
    served.use("b")
    used = served.reloads("used")

    for number, name in enumerate(("relay-1", "meter"), 1):
        proxy.kill(name)
        wait_for(
            lambda number=number: (  # type: ignore[misc]  # of this turn
                proxy.total("servewatt_process_restarts_total") == number
            )
        )
        wait_for(proxy.is_whole)
        assert served.ask_all(f"after-{name}") == {"b"}
        assert served.upstreams() == ["b"]
        assert served.reloads("used") == used
    assert proxy.record("after-meter-0")["energy"]["energy_joules"] > 0

    # and goes on from there
    served.use("b", "a")
    assert served.ask_all("both") == {"a", "b"}
    assert post(f"{proxy.admin}/upstreams/a/drain").status_code == 200
    wait_for(lambda: proxy.total("servewatt_upstream_draining") == 1)
    served.use("a", "b")
    assert served.ask_all("drained") == {"b"}

    # two at once, of which one may do for both
    served.write("b")
    said = served.lines(USED)
    served.hang_up(times=2)
    wait_for(lambda: served.lines(USED) > said)
    assert served.upstreams() == ["b"]
    assert served.ask_all("twice") == {"b"}
    assert served.lines("Traceback") == 0


def test_a_relay_that_is_killed_while_the_file_changes_has_the_new_upstreams(
    served: Served,
) -> None:
    proxy = served.proxy
    proxy.kill("relay-1")
    served.use("b")  # while it is started again
    wait_for(proxy.is_whole)
    assert served.ask_all("then") == {"b"}
    # nor has the signal ended it
    assert proxy.total("servewatt_process_restarts_total") == 1
    assert served.lines("Traceback") == 0
