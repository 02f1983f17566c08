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
import signal
import socket
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import uvloop

from proxy.errors import ConfigError, ProxyError
from proxy.process.supervise import LoopErrors
from proxy.process.systemd import ALIVE, READY, STOPPING, supervisor
from proxy.serve.config import ServeConfig
from proxy.serve.heartbeat import BEAT_SECONDS, SILENT_TURNS, STARTING_TURNS, Silence
from proxy.serve.link_folder import LinkFolder, remove_left_over
from proxy.serve.orders import Offer, Order, Orders, Use, packed
from proxy.serve.parts import STOP_SECONDS, Job, MeterPart, RelayPart
from proxy.serve.plan import Plan
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
        self._orders: Orders | None = None
        self.up = asyncio.Event()
        """It serves, as far as is known."""
        self.told: Use | None = None
        """The plan that it has, while it is up."""
        self.starts = 0
        self.process: asyncio.subprocess.Process | None = None
        self.began_seconds = 0.0
        self.pause_seconds = 0.0

    async def start(
        self, job_of: Callable[[int], Job], use_now: Callable[[], Use]
    ) -> dict[str, Any] | None:
        """Begin a process; what it announced, or None where it ended before.

        `job_of` tells its job by the handle of the socket that brings orders,
        `use_now` what it has to use, which may change while it starts.
        """
        if self._orders is not None:
            self._orders.close()
        ours, theirs = socket.socketpair()
        orders = self._orders = await Orders.over(ours)
        with theirs:
            job = job_of(theirs.fileno())
            process = await self._begin(theirs)
        assert process.stdin is not None
        assert process.stdout is not None
        self._silence = Silence(STARTING_TURNS)
        process.stdin.write(packed(job))
        try:
            await orders.ready()
            while self.told is not (use := use_now()):
                await self._tell(orders, use)
            self.up.set()
            line = await process.stdout.readline()
        except EOFError:
            line = b""
        finally:
            if not self.up.is_set():
                orders.close()
        if not line:
            return None
        self._silence = Silence(self._silent_turns)
        self._hearing = asyncio.create_task(self._hear(process.stdout, self._silence))
        addresses: dict[str, Any] = json.loads(line)
        return addresses

    async def _begin(self, theirs: socket.socket) -> asyncio.subprocess.Process:
        self.starts += 1
        self.began_seconds = time.monotonic()
        environment = {k: v for k, v in os.environ.items() if k not in NOT_INHERITED}
        self.process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "proxy.serve.part", self.name,
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
            env=environment, start_new_session=True, pass_fds=(theirs.fileno(),),
        )  # fmt: skip
        return self.process

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
        code = await self.process.wait()
        self._is_gone()
        return code

    async def tell(self, use: Use) -> None:
        """Bring it to this, if it is up; one that cannot is ended."""
        if self.up.is_set() and self.told is not use and self._orders is not None:
            with contextlib.suppress(EOFError):  # its successor has it
                await self._tell(self._orders, use)

    async def _tell(self, orders: Orders, use: Use) -> None:
        reason = await orders.give(use)
        if reason is not None:
            log.error("%s does not use the new upstreams: %s", self.name, reason)
            self.signal(signal.SIGKILL)
            raise EOFError
        self.told = use

    def _is_gone(self) -> None:
        self.up.clear()
        self.told = None

    async def give(self, order: Order) -> str | None:
        """Have it do this; None, or why it cannot.

        Raises EOFError where it has ended, or has to, since it takes no orders.
        """
        orders = self._orders
        assert orders is not None
        try:
            return await orders.give(order)
        except EOFError:
            if orders is self._orders:
                self._is_gone()
                self.signal(signal.SIGKILL)
            raise

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
        self.use = Use(Plan.first(config.upstreams))
        """Upstreams that each process has, or is about to."""
        self.reloads: Counter[str] = Counter()
        self.read_again = read_again
        self.reloading: asyncio.Task[None] | None = None
        self.wants_reload = False
        self.hangups = 0
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
            if self.reloading is not None:
                watches.append(self.reloading)
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
        addresses = await self._begin(child)
        if addresses is None:
            raise SystemExit(max(await child.ended(), 1))
        return addresses

    async def _begin(self, child: _Child) -> dict[str, Any] | None:
        """Start it, and tell it what has changed since."""
        hangups = self.hangups
        addresses = await child.start(partial(self._job, child), self._use_now(child))
        if addresses is not None:
            if self.hangups != hangups:  # before it serves, that would end it
                child.signal(signal.SIGHUP)
            await self._tell_all()
        return addresses

    def _use_now(self, child: _Child) -> Callable[[], Use]:
        """A relay begins with what the meter has, which goes over first."""

        def now() -> Use:
            return self.use if child is self.meter else self.meter.told or self.use

        return now

    def _job(self, child: _Child, orders: int) -> Job:
        part: MeterPart | RelayPart
        path, port, use = self.path, self.port, self.use
        if child is self.meter:
            part = MeterPart(path, port, child.starts, orders, use)
        else:
            number = self.relays.index(child) + 1
            part = RelayPart(path, port, number, child.starts + 1, orders, use)
        return Job(self.config, part)

    async def _keep(self, child: _Child) -> None:
        """Start it again whenever it has ended."""
        while True:
            code = await child.ended()
            log.error("%s %s; it is started again", child.name, _how(code))
            with self.errors.caught("restart"):
                await child.pause()
                if await self._begin(child) is not None:
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
        """SIGHUP: each reads secrets again, and all of them go over to the file."""
        self.hangups += 1
        for each in self.children:
            if each.up.is_set():
                each.signal(signal.SIGHUP)
        if self.read_again is None:
            return
        self.wants_reload = True
        if self.reloading is None or self.reloading.done():
            self.reloading = asyncio.create_task(self._change(self.read_again))

    async def _change(self, read_again: Callable[[], ServeConfig]) -> None:
        """Use the upstreams of the file, in all processes or in none; one at a time."""
        while self.wants_reload:
            self.wants_reload = False
            with self.errors.caught("reload"):
                try:
                    new = await asyncio.to_thread(read_again)
                    plan = self.use.plan.then(new.upstreams)
                    await self._offer(plan)
                except ProxyError as error:
                    self.reloads["refused"] += 1
                    log.error("%s; going on with the configuration in use", error)
                    await self._go_over(self.use.plan)
                    continue
                changes = plan.changes_from(self.use.plan)
                said = changes.said(new, self.asked)
                self.reloads["used"] += 1
                await self._go_over(plan)
                log.info("SIGHUP: %s", said)

    async def _offer(self, plan: Plan) -> None:
        """Have each build what is new. Raises ProxyError where one of them cannot.

        Whoever ends meanwhile may have been killed; twice, it may be the plan.
        """
        ended: list[str] = []

        async def ask(child: _Child) -> str | None:
            try:
                return await child.give(Offer(plan))
            except EOFError:
                ended.append(child.name)
                return None

        for _ in range(2):
            if not self.meter.up.is_set():
                log.warning("SIGHUP: the meter's process is away, and is waited for")
                await self.meter.up.wait()
            ended.clear()
            up = [each for each in self.children if each.up.is_set()]
            for reason in await asyncio.gather(*map(ask, up)):
                if reason is not None:
                    raise ProxyError(reason)
            if not ended:
                return
        raise ProxyError(
            f"{', '.join(ended)} ended twice over the upstreams of the file"
        )

    async def _go_over(self, plan: Plan) -> None:
        """Have all use it, the meter first; whoever starts meanwhile has it already."""
        self.use = Use(plan, dict(self.reloads))
        self.config = replace(self.config, upstreams=plan.upstreams)
        await self._tell_all()

    async def _tell_all(self) -> None:
        """Bring each to what is used now; whoever starts begins with it."""
        use = self.use
        await self.meter.tell(use)
        if self.use is use and self.meter.told in (use, None):  # else told by another
            await asyncio.gather(*(each.tell(use) for each in self.relays))

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
