"""`serve --relays 2` beside `--relays 1`: CPU by process, and what it comes to.

    python -m benchmarks.relays [--rounds 3]

The engine and the client of `relay_cost.py`, and whole proxies with a recorded sensor
and no store, that take turns. `steady` is 100 streams of 50 events/s; `busy` is replies
of one event, each asked for when the one before has ended, over 64 connections, as fast
as they come. CPU is what the kernel charged to each process until the last request was
settled, less what it uses while nothing runs. Client, engine and proxy share the
machine's cores, so the replies per second of `busy` are those of this machine; what
cores of their own would give is calculated from the CPU: the slowest process on its
core is the limit, or the sum on two cores.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import platform
import statistics
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import uvloop

from benchmarks.relay_cost import (
    LOADS,
    ClientConnection,
    body_of,
    child,
    connections,
    cpu_seconds,
    drive,
    whole_proxy,
)

STEADY = LOADS[0]
CONNECTIONS = 64
IDLE_SECONDS = 5.0
BUSY_SECONDS = 4.0
SETTLED_SECONDS = 2.0
"""After the last reply: windows are closed, records are made."""


@dataclass
class Proxy:
    """One whole proxy and its figures."""

    relays: int
    port: int
    admin: str
    processes: dict[str, int]
    cpu_us: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    """By load and process."""
    idle_fraction: dict[str, float] = field(default_factory=dict)
    """CPU of each process while nothing runs, as a part of a core."""
    replies_per_second: list[float] = field(default_factory=list)

    def idle(self) -> None:
        """Take down what each process uses for nothing: sensors, beats, scrapes."""
        spent = {name: cpu_seconds(pid) for name, pid in self.processes.items()}
        time.sleep(IDLE_SECONDS)
        for name, pid in self.processes.items():
            self.idle_fraction[name] = (cpu_seconds(pid) - spent[name]) / IDLE_SECONDS

    def steady(self) -> None:
        """One round of streams."""
        with self.charged("steady") as count:
            clients = uvloop.run(drive(self.port, STEADY, ClientConnection))
            count += [client.events for client in clients]

    def busy(self) -> None:
        """One round of replies."""
        with self.charged("busy") as count:
            count.append(uvloop.run(replies_in(self.port, BUSY_SECONDS)))
        self.replies_per_second.append(count[0] / BUSY_SECONDS)

    @contextlib.contextmanager
    def charged(self, load: str) -> Iterator[list[int]]:
        """Take down the CPU by process and item of what is done meanwhile."""
        spent = {name: cpu_seconds(pid) for name, pid in self.processes.items()}
        began = time.monotonic()
        count: list[int] = []
        yield count
        time.sleep(SETTLED_SECONDS)
        for name, pid in self.processes.items():
            idle = self.idle_fraction[name] * (time.monotonic() - began)
            cost = (cpu_seconds(pid) - spent[name] - idle) / sum(count) * 1e6
            self.cpu_us.setdefault(load, {}).setdefault(name, []).append(cost)

    def costs(self, load: str) -> dict[str, float]:
        """Median us of CPU by process, for a chunk or a reply of the whole proxy."""
        return {n: statistics.median(us) for n, us in self.cpu_us[load].items()}

    def lost(self) -> int:
        """Requests and reads of which the meter never heard."""
        with urllib.request.urlopen(f"{self.admin}/metrics") as page:
            lines = page.read().decode().splitlines()
        unseen = [line for line in lines if line.startswith("servewatt_unseen_")]
        return sum(round(float(line.rpartition(" ")[2])) for line in unseen)


async def replies_in(port: int, seconds: float) -> int:
    """How many replies come, each connection asking again when one has."""
    clients = await connections(port, CONNECTIONS, body_of(1, 0.0), ClientConnection)
    end = time.monotonic() + seconds
    count = 0

    async def ask(client: ClientConnection) -> None:
        nonlocal count
        while True:
            client.ask()
            await client.done
            if time.monotonic() >= end:
                return
            count += 1

    await asyncio.gather(*map(ask, clients))
    for client in clients:
        client.transport.abort()
    return count


def processes_of(parent: int) -> dict[str, int]:
    """Those that serve, by name; the one that watches over them does nothing."""
    found: dict[str, int] = {}
    children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    for pid in map(int, children):
        words = Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
        if "proxy.serve.part" in words:
            found[words[words.index("proxy.serve.part") + 1]] = pid
    return found or {"proxy": parent}


@contextlib.contextmanager
def proxy(relays: int, engine_port: int) -> Iterator[Proxy]:
    """`metering-proxy serve`, whole, before the engine."""
    started = whole_proxy(engine_port, "--relays", str(relays))
    with started as (pid, port, addresses):
        yield Proxy(relays, port, addresses["admin_url"], processes_of(pid))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with contextlib.ExitStack() as stack:
        _, engine_port = stack.enter_context(child("engine"))
        one, two = (stack.enter_context(proxy(n, engine_port)) for n in (1, 2))
        for each in (one, two):  # warm-up
            uvloop.run(drive(each.port, STEADY, ClientConnection))
        time.sleep(SETTLED_SECONDS)
        for each in (one, two):
            each.idle()
        for _ in range(options.rounds):
            for each in (one, two):
                each.steady()
            for each in (one, two):
                each.busy()
        lost = {each.relays: each.lost() for each in (one, two)}
    print(
        f"{os.cpu_count()} vCPU {platform.machine()}, Python "
        f"{platform.python_version()}, {time.strftime('%Y-%m-%d')}, load "
        f"{os.getloadavg()[0]:.1f}, median of {options.rounds} rounds"
    )
    for each in (one, two):
        shown = ", ".join(f"{n} {part:.1%}" for n, part in each.idle_fraction.items())
        print(f"idle, of a core, --relays {each.relays}: {shown}")
    for load, item in (("steady", "chunk"), ("busy", "reply")):
        print(f"\n{load}: us of CPU by {item} of the whole proxy")
        for each in (one, two):
            costs = each.costs(load)
            shown = ", ".join(f"{name} {us:.1f}" for name, us in costs.items())
            print(f"  --relays {each.relays}: {sum(costs.values()):6.1f} ({shown})")
        alone, costs = sum(one.costs(load).values()), two.costs(load)
        print(
            f"  by these, 2 relays against 1: {alone / max(costs.values()):.2f} x with "
            f"a core for each process, {2 * alone / sum(costs.values()):.2f} x on two "
            "cores"
        )
    print("\nreplies/s here, beside client and engine")
    for each in (one, two):
        median = statistics.median(each.replies_per_second)
        print(
            f"  --relays {each.relays}: {median:6.0f}; requests and reads that the "
            f"meter never heard of: {lost[each.relays]}"
        )
    pairs = zip(one.replies_per_second, two.replies_per_second, strict=True)
    ratio = statistics.median(more / fewer for fewer, more in pairs)
    print(f"  2 relays against 1, round by round: {ratio:.2f} x")


if __name__ == "__main__":
    main()
