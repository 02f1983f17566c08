"""Three proxies under a Prometheus, runs through them, and what happens beside.

In the first act one proxy, which nobody asked anything before, serves a run. In the
second it serves another one while the two others serve theirs. In both there are
requests that must not be in a figure of answered ones: some that the engine refuses
(404), some that the proxy refuses, some that break half-way, some whose client leaves,
and one that never ends.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from tests.support.children import (
    PATIENCE_SECONDS,
    get,
    metering,
    simulating,
    wait_for,
)
from tests.support.paths import ROOT
from tests.support.prometheus import ask, configuration, free_port, scraped_at, watching

Row = dict[str, Any]
NOT_FOUND = 30
LEFT = 3
SESSIONS = 14
QUIET_SECONDS = 2.0
"""Time for scrapes before and after a run in which nothing happens but idling."""


@dataclass(frozen=True)
class Proxy:
    """One proxy of the fleet."""

    url: str
    admin: str
    tenant: str

    @property
    def instance(self) -> str:
        """As Prometheus calls it."""
        return self.admin.removeprefix("http://")

    def books(self) -> Row:
        """Its accounts now."""
        found: Row = get(f"{self.admin}/books").json()
        return found

    def records(self) -> list[Row]:
        """Every settled request."""
        text = get(f"{self.admin}/requests?limit=10000").text
        return [json.loads(line) for line in text.splitlines()]


@dataclass
class Act:
    """One stretch of time: what Prometheus saw, and what is known of it from us."""

    start: float
    """Unix seconds, at a scrape of the first proxy."""
    end: float = 0.0
    summaries: dict[str, Row] = field(default_factory=dict)
    """summary.json by instance."""
    rows: dict[str, list[Row]] = field(default_factory=dict)
    """requests.jsonl by instance."""
    records: dict[str, list[Row]] = field(default_factory=dict)
    """What each proxy settled in it, the run's requests included."""
    load_scrapes: list[float] = field(default_factory=list)
    """When the load generator's metrics were read."""
    load_begun: dict[str, float] = field(default_factory=dict)
    """Requests that had been `sent`, and by outcome had ended, at the first of them."""
    books: dict[str, tuple[Row, Row]] = field(default_factory=dict)
    """At its start and end, by instance."""


@dataclass(frozen=True)
class Watched:
    """Everything, with the Prometheus that still answers."""

    client: httpx.Client
    proxies: tuple[Proxy, ...]
    alone: Act
    together: Act


def trace(path: Path, seed: int) -> None:
    """Sessions of two turns, of two kinds, of many lengths; every third is code."""
    rows: list[Row] = [{"loadtrace": "loadtrace/1", "name": "mix"}]
    for session in range(SESSIONS):
        for turn in (1, 2):
            number = 2 * session + turn
            rows.append(
                {
                    "id": f"{path.stem}-{number}",
                    "session_id": f"s{session}",
                    "turn": turn,
                    "kind": "conversation" if session % 3 else "code",
                    "input_length": 100 + (number * (217 + seed)) % 1_300,
                    "output_length": 10 + (number * (31 + seed)) % 110,
                    **(
                        {"timestamp": session * 300}
                        if turn == 1
                        else {"delay": 50, "history": "append"}
                    ),
                }
            )
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def replaying(
    folder: Path, proxy: Proxy, name: str, seed: int, port: int | None
) -> subprocess.Popen[bytes]:
    """A run in a process of its own."""
    path = folder / f"{name}.jsonl"
    trace(path, seed)
    options = ["--metrics-port", str(port)] if port else []
    return subprocess.Popen(
        [sys.executable, "-m", "loadgen", "replay", path, "--rate", "4",
         "--url", proxy.url, "--ledger", proxy.admin, "--out", folder / name,
         "--header", f"x-tenant={proxy.tenant}", "--seed", str(seed), "--quiet",
         *options],
        stdout=subprocess.DEVNULL, env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip


def body(tokens: int, model: str | None = None) -> Row:
    wanted: Row = {
        "messages": [{"role": "user", "content": "one two three"}],
        "max_tokens": tokens, "ignore_eos": True, "stream": True,
    }  # fmt: skip
    return wanted if model is None else wanted | {"model": model}


def disturb(proxy: Proxy) -> None:
    """Requests that are refused, here or there, and some whose client leaves."""
    chat = f"{proxy.url}/v1/chat/completions"
    with httpx.Client(trust_env=False, timeout=PATIENCE_SECONDS) as client:
        for _ in range(NOT_FOUND):
            reply = client.post(chat, json=body(5, "no-such-model"))
            assert reply.status_code == 404
            assert client.get(f"{proxy.url}/no/such/route").status_code == 404
        for _ in range(LEFT):
            with client.stream("POST", chat, json=body(4_000)) as stream:
                chunks = stream.iter_raw()
                for _ in range(20):
                    next(chunks)


@contextmanager
def never_ending(proxy: Proxy) -> Iterator[None]:
    """A request whose tokens come as long as the block lasts."""
    is_over = threading.Event()

    def read() -> None:
        url = f"{proxy.url}/v1/chat/completions"
        with (
            httpx.Client(trust_env=False, timeout=PATIENCE_SECONDS) as client,
            client.stream("POST", url, json=body(100_000)) as reply,
        ):
            for _ in reply.iter_raw():
                if is_over.is_set():
                    return

    reader = threading.Thread(target=read)
    reader.start()
    wait_for(lambda: proxy.books()["open_requests"] == 1)
    try:
        yield
    finally:
        is_over.set()
        reader.join(PATIENCE_SECONDS)


def settled(proxy: Proxy) -> bool:
    """Whether every request that ended has its joules."""
    return int(proxy.books()["open_requests"]) <= 1


@contextmanager
def watched(folder: Path) -> Iterator[Watched]:
    """Both acts, played; Prometheus and the proxies go on until the end."""
    load_port = free_port()
    with ExitStack() as stack:
        proxies = []
        for number, tenant in enumerate(("north", "south", "east")):
            engine = stack.enter_context(
                simulating(folder, "--idle-gpus", "1", "--fail-every", "9")
            )
            node = folder / "node.csv"
            seconds = "".join(f"{second},1500\n" for second in range(900))
            node.write_text(f"# boundary=node\nseconds,watts\n{seconds}")
            store = f"sqlite:///{folder / f'store-{number}.db'}"
            announced = stack.enter_context(
                metering(
                    folder, engine, "--gpus", "0", "--bare-idle-watts", "40",
                    "--tenant-header", "x-tenant", "--tenants", "north,south,east",
                    "--store", store,
                    power=f"dcgm={engine['power_url']},csv={node}",
                )
            )  # fmt: skip
            proxies.append(Proxy(announced["url"], announced["admin_url"], tenant))
        config = configuration(
            folder,
            {
                "servewatt": [proxy.instance for proxy in proxies],
                "servewatt-loadgen": [f"127.0.0.1:{load_port}"],
            },
        )
        client = stack.enter_context(watching(folder, config))
        asker = stack.enter_context(httpx.Client(trust_env=False))
        player = _Player(folder, client, tuple(proxies), load_port, asker)
        alone = player.act(
            "alone", proxies[:1], lambda: stack.enter_context(never_ending(proxies[0]))
        )
        together = player.act("together", proxies, lambda: None)
        yield Watched(client, tuple(proxies), alone, together)


class _Player:
    def __init__(
        self,
        folder: Path,
        client: httpx.Client,
        proxies: tuple[Proxy, ...],
        load_port: int,
        asker: httpx.Client,
    ) -> None:
        self._folder = folder
        self._client = client
        self._proxies = proxies
        self._load_port = load_port
        self._asker = asker
        self._seen: dict[str, int] = dict.fromkeys((p.instance for p in proxies), 0)

    def act(self, name: str, serving: list[Proxy], beside: Callable[[], None]) -> Act:
        """Runs through these proxies, with all that happens beside."""
        start, opening = self._quiet_scrape()
        act = Act(start=start)
        runs = {
            proxy.instance: replaying(
                self._folder,
                proxy,
                f"{name}-{proxy.tenant}",
                seed,
                self._load_port if seed == 0 else None,
            )
            for seed, proxy in enumerate(serving)
        }
        beside()
        disturb(serving[0])
        for run in runs.values():
            assert run.wait(PATIENCE_SECONDS) in {0, 3}
        for proxy in serving:
            folder = self._folder / f"{name}-{proxy.tenant}"
            act.summaries[proxy.instance] = json.loads(
                (folder / "summary.json").read_text()
            )
            act.rows[proxy.instance] = [
                json.loads(line)
                for line in (folder / "requests.jsonl").read_text().splitlines()
            ]
            wait_for(lambda proxy=proxy: settled(proxy))  # type: ignore[misc]
        act.end, closing = self._quiet_scrape()
        act.load_scrapes = scraped_at(
            self._client, "servewatt_loadgen_requests_sent_total", act.start, act.end
        )
        ended = "sum by (outcome) (servewatt_loadgen_requests_finished_total)"
        for query in ("servewatt_loadgen_requests_sent_total", ended):
            for each in ask(self._client, query, act.load_scrapes[0]):
                name = each["metric"].get("outcome", "sent")
                act.load_begun[name] = float(each["value"][1])
        for proxy in self._proxies:
            records = proxy.records()
            seen = self._seen[proxy.instance]
            act.records[proxy.instance] = records[seen:]
            self._seen[proxy.instance] = len(records)
            name = proxy.instance
            act.books[name] = (opening[name], closing[name])
        return act

    def _quiet_scrape(self) -> tuple[float, dict[str, Row]]:
        """A scrape after some quiet, and the accounts as all proxies had them then.

        Accounts change twice a second and cannot be read in the instant of a scrape:
        they are read all the time, until there is a scrape with none but known ones.
        """
        until = time.time() + QUIET_SECONDS
        history: dict[str, list[Row]] = {each.instance: [] for each in self._proxies}
        found: dict[str, Row] = {}
        seen_at: list[float] = []

        def is_known() -> bool:
            found.clear()
            for proxy in self._proxies:
                reply = self._asker.get(f"{proxy.admin}/books")
                history[proxy.instance].append(reply.json())
            if time.time() < until:
                return False
            at = self._newest_scrape()
            seen_at.append(at)
            for name, known in history.items():
                scraped = self._measured(name, at)
                found.update(
                    (name, books)
                    for books in known
                    if abs(sum(accounts(books).values()) - scraped) < 1e-3
                )
            return at >= until and found.keys() == history.keys()

        wait_for(is_known)
        return seen_at[-1], found

    def _measured(self, instance: str, at: float) -> float:
        selector = f'instance="{instance}",boundary="gpu"'
        query = f"sum(servewatt_energy_joules_total{{{selector}}})"
        series = ask(self._client, query, at)
        return float(series[0]["value"][1]) if series else -1.0

    def _newest_scrape(self) -> float:
        """Of the first proxy."""
        name = self._proxies[0].instance
        selector = f'servewatt_event_loop_lag_seconds{{instance="{name}"}}'
        now = time.time()
        if not ask(self._client, selector, now):
            return 0.0
        return scraped_at(self._client, selector, now - 10, now)[-1]


ACCOUNTS = ("prefill", "decode", "idle_share", "idle", "unattributed")


def accounts(books: Row) -> dict[str, float]:
    """Joules of the headline's boundary by account."""
    return {
        **books["attributed_joules"],
        "idle_share": books["idle_share_joules"],
        "idle": books["idle_joules"],
        "unattributed": sum(books["unattributed_joules"].values()),
    }


def by(rows: list[Row], *names: str) -> Mapping[tuple[str, ...], list[Row]]:
    """Rows by the values of these fields."""
    groups: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(str(row[name]) for name in names), []).append(row)
    return groups
