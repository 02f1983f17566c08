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
import signal
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import uvloop

from proxy.errors import ConfigError, ProxyError
from proxy.process.supervise import LoopErrors
from proxy.process.systemd import ALIVE, READY, STOPPING, supervisor
from proxy.serve.config import ServeConfig, differences
from proxy.serve.fleet import changes_of
from proxy.serve.heartbeat import BEAT_SECONDS, SILENT_TURNS, STARTING_TURNS, Silence
from proxy.serve.link_folder import LinkFolder, remove_left_over
from proxy.serve.parts import LENGTH_BYTES, STOP_SECONDS, Job, MeterPart, RelayPart
from proxy.serve.stopping import Stopping

log = logging.getLogger("servewatt.proxy")

MAX_PATH_BYTES = 100
"""A Unix socket's path has 107 at most."""
FIRST_PAUSE_SECONDS = 0.1
MAX_PAUSE_SECONDS = 5.0
STEADY_SECONDS = 30.0
"""Whoever lived so long is started again at once."""
NOT_INHERITED = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")
"""It is this process that the service manager hears."""


def run_processes(
    config: ServeConfig,
    announce: Callable[[dict[str, Any]], None],
    *,
    until_eof: bool,
    read_again: Callable[[], ServeConfig] | None = None,
    silent_turns: int = SILENT_TURNS,
) -> None:
    """Serve until SIGINT, SIGTERM or, for a child, the end of standard input.

    A process that is silent for so many turns (`proxy.serve.heartbeat`) is killed and
    started again.

    Raises ConfigError for what several relays cannot do, ProxyError for a taken port;
    SystemExit where a process that said itself what it lacks does not start.
    """
    check(config)
    port, held = hold_port(*config.listen)
    remove_left_over()
    folder = LinkFolder.made()
    try:
        path = os.path.join(folder.path, "meter")
        if len(os.fsencode(path)) > MAX_PATH_BYTES:
            raise ConfigError(
                f"{path} is too long for a socket: set TMPDIR to a shorter path"
            )
        processes = _Processes(config, port, path, read_again, silent_turns)
        uvloop.run(processes.serve(announce, until_eof))
    finally:
        folder.remove()
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

    def __init__(self, name: str, silent_turns: int) -> None:
        self.name = name
        self._silent_turns = silent_turns
        self._silence = Silence(STARTING_TURNS)
        self._hearing: asyncio.Task[None] | None = None
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
        self._silence = Silence(STARTING_TURNS)
        content = pickle.dumps(job)
        process.stdin.write(len(content).to_bytes(LENGTH_BYTES, "big") + content)
        line = await process.stdout.readline()
        if not line:
            return None
        self._silence = Silence(self._silent_turns)
        self._hearing = asyncio.create_task(self._hear(process.stdout, self._silence))
        addresses: dict[str, Any] = json.loads(line)
        return addresses

    @staticmethod
    async def _hear(words: asyncio.StreamReader, silence: Silence) -> None:
        while await words.read(4096):
            silence.heard()

    def turn(self) -> None:
        """One more second: who hangs is ended, and so started again."""
        lives = self.process is not None and self.process.returncode is None
        if lives and self._silence.turn():
            seconds = self._silence.limit * BEAT_SECONDS
            log.error("%s hangs, silent for %g s: it is killed", self.name, seconds)
            self.signal(signal.SIGKILL)

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

    def __init__(
        self,
        config: ServeConfig,
        port: int,
        path: str,
        read_again: Callable[[], ServeConfig] | None,
        silent_turns: int,
    ) -> None:
        self.config = self.asked = config
        self.read_again = read_again
        self.reading: asyncio.Task[None] | None = None
        self.port = port
        self.path = path
        self.meter = _Child("meter", silent_turns)
        self.relays = [
            _Child(f"relay-{n}", silent_turns) for n in range(1, config.relays + 1)
        ]
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
        loop.add_signal_handler(signal.SIGHUP, self._reload)
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
            watches.append(asyncio.create_task(self._watch_turns()))
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

    async def _watch_turns(self) -> None:
        """Count the silence of each, in turns of this loop."""
        while True:
            await asyncio.sleep(BEAT_SECONDS)
            for each in self.children:
                each.turn()

    def _reload(self) -> None:
        """SIGHUP: each reads certificates and secrets again; upstreams are fixed."""
        self._tell(signal.SIGHUP)
        if self.read_again is not None and (
            self.reading is None or self.reading.done()
        ):
            self.reading = asyncio.create_task(self._compare(self.read_again))

    async def _compare(self, read_again: Callable[[], ServeConfig]) -> None:
        """Say in one line what of the file is not used before a restart."""
        try:
            new = await asyncio.to_thread(read_again)
        except ProxyError as error:
            log.error("%s; going on with the configuration in use", error)
            return
        changed = differences(new, self.asked)
        if new.upstreams != self.asked.upstreams:
            text = changes_of(self.asked.upstreams, new.upstreams).text or "models"
            changed = [f"upstreams ({text})", *changed]
        if changed:
            log.warning(
                "SIGHUP: not used before a restart, since --relays is %d: %s",
                len(self.relays), ", ".join(changed),
            )  # fmt: skip

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
