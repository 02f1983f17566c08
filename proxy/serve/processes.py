"""`serve --relays N`: starts a meter and N relays, and starts again what ends.

Rule: this process serves nobody, so nothing that a client sends can end it. It holds
the port, so that it stays ours while a relay is started again, and the admin port stays
the same. What ends unasked is said, counted and started again; one that ends at once
every time is started ever more seldom, and the others go on meanwhile.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import pickle
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import uvloop

from proxy.errors import ConfigError, ProxyError
from proxy.process.supervise import LoopErrors
from proxy.process.systemd import ALIVE, READY, STOPPING, supervisor
from proxy.serve.config import ServeConfig
from proxy.serve.parts import LENGTH_BYTES, Job, MeterPart, RelayPart
from proxy.serve.stopping import Stopping

log = logging.getLogger("servewatt.proxy")

MAX_PATH_BYTES = 100
"""A Unix socket's path has 107 at most."""
FIRST_PAUSE_SECONDS = 0.1
MAX_PAUSE_SECONDS = 5.0
STEADY_SECONDS = 30.0
"""Whoever lived so long is started again at once."""
STOP_SECONDS = 30.0
"""After the time that requests have: for the last records to be settled and stored."""
NOT_INHERITED = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")
"""It is this process that the service manager hears."""


def run_processes(
    config: ServeConfig, announce: Callable[[dict[str, Any]], None], *, until_eof: bool
) -> None:
    """Serve until SIGINT, SIGTERM or, for a child, the end of standard input.

    Raises ConfigError for what several relays cannot do, ProxyError for a taken port;
    SystemExit where a process that said itself what it lacks does not start.
    """
    check(config)
    port, held = hold_port(*config.listen)
    folder = tempfile.mkdtemp(prefix="servewatt-")
    try:
        path = str(Path(folder) / "meter")
        if len(os.fsencode(path)) > MAX_PATH_BYTES:
            raise ConfigError(
                f"{path} is too long for a socket: set TMPDIR to a shorter path"
            )
        uvloop.run(_Processes(config, port, path).serve(announce, until_eof))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        for each in held:
            each.close()


def check(config: ServeConfig) -> None:
    """Raises ConfigError for what several relays cannot do."""
    if not hasattr(socket, "SO_REUSEPORT"):
        raise ConfigError(
            f"--relays {config.relays} needs SO_REUSEPORT, which this system lacks; "
            "leave it out"
        )
    if config.recording.record is not None:
        raise ConfigError(
            f"--relays {config.relays} and --record cannot be combined: one process "
            "writes a recording; give --relays 1"
        )


def hold_port(host: str, port: int) -> tuple[int, list[socket.socket]]:
    """The port, and sockets that keep it ours; they listen to nobody.

    Raises ProxyError when it is taken or not ours.
    """
    held: list[socket.socket] = []
    try:
        found = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        for family, kind, protocol, _, address in dict.fromkeys(found):
            place = (address[0], port, *address[2:])
            if port:  # also where another proxy shares it among its own relays
                with socket.socket(family, kind, protocol) as alone:
                    _bind(alone, place)
            holder = socket.socket(family, kind, protocol)
            held.append(holder)
            holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            _bind(holder, place)
            port = holder.getsockname()[1]
    except OSError as error:
        for each in held:
            each.close()
        raise ProxyError(
            f"cannot listen on {host}:{port}: {error.strerror or error}; "
            "give another --listen address, or port 0 for any free one"
        ) from None
    return port, held


def _bind(holder: socket.socket, place: tuple[Any, ...]) -> None:
    holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if holder.family == socket.AF_INET6:
        holder.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    holder.bind(place)


class _Child:
    """One process, and those that had its place before it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.starts = 0
        self.process: asyncio.subprocess.Process | None = None
        self.began_seconds = 0.0
        self.pause_seconds = 0.0

    async def start(self, job: Job) -> dict[str, Any] | None:
        """Begin a process; what it announced, or None where it ended before."""
        self.starts += 1
        self.began_seconds = time.monotonic()
        environment = {k: v for k, v in os.environ.items() if k not in NOT_INHERITED}
        process = self.process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "proxy.serve.part", self.name,
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
            env=environment, start_new_session=True,
        )  # fmt: skip
        assert process.stdin is not None
        assert process.stdout is not None
        content = pickle.dumps(job)
        process.stdin.write(len(content).to_bytes(LENGTH_BYTES, "big") + content)
        line = await process.stdout.readline()
        return json.loads(line) if line else None

    async def ended(self) -> int:
        """Its exit code, once it has one."""
        assert self.process is not None
        return await self.process.wait()

    def signal(self, number: int) -> None:
        """Tell it, if it still lives."""
        if self.process is not None and self.process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self.process.send_signal(number)

    def leave(self) -> None:
        """Give up its lease: it ends as a child whose parent is gone."""
        if self.process is not None and self.process.stdin is not None:
            self.process.stdin.close()

    async def pause(self) -> None:
        """Before it is started again: longer each time that it ended at once."""
        if time.monotonic() - self.began_seconds >= STEADY_SECONDS:
            self.pause_seconds = 0.0
        await asyncio.sleep(self.pause_seconds)
        longer = max(FIRST_PAUSE_SECONDS, 2 * self.pause_seconds)
        self.pause_seconds = min(longer, MAX_PAUSE_SECONDS)


class _Processes:
    """Everything that lives as long as the proxy."""

    def __init__(self, config: ServeConfig, port: int, path: str) -> None:
        self.config = config
        self.port = port
        self.path = path
        self.meter = _Child("meter")
        self.relays = [_Child(f"relay-{n}") for n in range(1, config.relays + 1)]
        self.stopping = Stopping()
        self.errors = LoopErrors()
        self.supervisor = supervisor()

    @property
    def children(self) -> list[_Child]:
        """All of them, the meter first."""
        return [self.meter, *self.relays]

    async def serve(
        self, announce: Callable[[dict[str, Any]], None], until_eof: bool
    ) -> None:
        """From the first process to the end of the last."""
        loop = asyncio.get_running_loop()
        self.stopping.begin(until_eof=until_eof)
        loop.add_signal_handler(signal.SIGHUP, self._tell, signal.SIGHUP)
        try:
            starting = asyncio.ensure_future(self._start_all())
            asked = asyncio.ensure_future(self.stopping.asked.wait())
            await asyncio.wait([starting, asked], return_when="FIRST_COMPLETED")
            asked.cancel()
            if not starting.done():
                starting.cancel()
                await asyncio.gather(starting, return_exceptions=True)
                return
            announce(starting.result())
            self.supervisor.notify(READY)
            watches = [asyncio.create_task(self._keep(each)) for each in self.children]
            watches.append(asyncio.create_task(self._stay_alive()))
            await self.stopping.asked.wait()
            self.supervisor.notify(STOPPING)
            for watch in watches:
                watch.cancel()
            await asyncio.gather(*watches, return_exceptions=True)
            await self._stop()
        finally:
            for each in self.children:
                each.signal(signal.SIGKILL)

    async def _start_all(self) -> dict[str, Any]:
        addresses = await self._start(self.meter)
        port = int(addresses["admin_url"].rpartition(":")[2])
        self.config = replace(self.config, admin=(self.config.admin[0], port))
        await asyncio.gather(*map(self._start, self.relays))
        pids = {each.name: each.process.pid for each in self.children if each.process}
        log.info(
            "%d relays and a meter: %s", len(self.relays),
            ", ".join(f"{name} is process {pid}" for name, pid in pids.items()),
        )  # fmt: skip
        return addresses

    async def _start(self, child: _Child) -> dict[str, Any]:
        """The first process of that name, which must start."""
        addresses = await child.start(self._job(child))
        if addresses is None:
            raise SystemExit(max(await child.ended(), 1))
        return addresses

    def _job(self, child: _Child) -> Job:
        part: MeterPart | RelayPart
        if child is self.meter:
            part = MeterPart(self.path, self.port, restarts=child.starts)
        else:
            number = self.relays.index(child) + 1
            part = RelayPart(self.path, self.port, number, starts=child.starts + 1)
        return Job(self.config, part)

    async def _keep(self, child: _Child) -> None:
        """Start it again whenever it has ended."""
        while True:
            code = await child.ended()
            log.error("%s %s; it is started again", child.name, _how(code))
            with self.errors.caught("restart"):
                await child.pause()
                if await child.start(self._job(child)) is not None:
                    assert child.process is not None
                    log.warning("%s is process %d now", child.name, child.process.pid)

    async def _stay_alive(self) -> None:
        """Tell a service manager that wants to hear it."""
        seconds = self.supervisor.watchdog_seconds
        while seconds is not None:
            self.supervisor.notify(ALIVE)
            await asyncio.sleep(seconds / 3)

    def _tell(self, number: int) -> None:
        for each in self.children:
            each.signal(number)

    async def _stop(self) -> None:
        """Requests finish, then records; whoever asks twice does not wait."""
        if self.stopping.has_no_clients:
            for each in self.children:
                each.leave()
        else:
            self._tell(signal.SIGTERM)
        hurry = asyncio.create_task(self._hurry())
        config = self.config
        left = config.drain_delay_seconds + config.drain_timeout_seconds + STOP_SECONDS
        alive = [e for e in self.children if e.process is not None]
        try:
            async with asyncio.timeout(left):
                await asyncio.gather(*(each.ended() for each in alive))
        except TimeoutError:
            log.warning("a process did not end in %g s, and is killed", left)
        hurry.cancel()

    async def _hurry(self) -> None:
        await self.stopping.hurry.wait()
        self._tell(signal.SIGTERM)


def _how(code: int) -> str:
    """The end of a process in words."""
    if code >= 0:
        return f"ended with code {code}"
    with contextlib.suppress(ValueError):
        return f"was ended by {signal.Signals(-code).name}"
    return f"was ended by signal {-code}"
