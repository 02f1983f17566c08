"""`loadgen worker`: a host that sends a part of the load of runs kept elsewhere.

It waits on the bus for a run, gets the plan, checks its hash, and starts the process
that sends a shard for `--processes` too. That process knows nothing of the bus: it
appends records to a file, and they are sent on from there. So a bus that is away delays
neither request nor stamp, the file is the spool, and a piece of it is sent again until
the bus has it.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import secrets
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import msgspec
import uvloop

from loadgen import __version__
from loadgen.client.identity import engine_facts
from loadgen.errors import LoadgenError
from loadgen.replay.clock_offset import ClockOffset, RoundTrip, offset_of
from loadgen.results.parts import Copy, Piece
from loadgen.run.bus import (
    CALL,
    PIECE_BYTES,
    SILENCE_SECONDS,
    Assign,
    Beat,
    Bus,
    BusOptions,
    Call,
    Clock,
    Done,
    End,
    Hello,
    Keep,
    Order,
    Parcel,
    Reply,
    Reserve,
    Rewind,
    Start,
    Stop,
    StreamLost,
    beat_subject,
    clock_subject,
    connected,
    worker_subject,
)
from loadgen.run.config import WorkerConfig
from loadgen.run.processes import START_SECONDS, Sender, start_sender
from loadgen.run.sender import Counts, Message
from loadgen.run.stopping import stop_at_signals
from proxy.process.files import os_reason
from proxy.process.host import raise_open_files

BEAT_SECONDS = 0.5
SEND_SECONDS = 0.1
"""Between looks at the file of records."""
AGAIN_SECONDS = 0.25
"""Before something is tried again that the bus did not take."""
TRIPS = 40
"""To the coordinator's clock: some of so many meet no queue."""
FEWEST_TRIPS = 5
GONE_SECONDS = 60.0
"""Without stream and coordinator for so long a run is over."""
REFUSED_SECONDS = 5.0
"""Before somebody is told that the bus, which is there, does not store."""
FLUSH_SECONDS = 30.0
"""For a worker that is told to end: its last records wait so long for the bus."""


def run_worker(config: WorkerConfig, say: Callable[[str], None]) -> int:
    """Serve runs until SIGINT or SIGTERM, or as many as were asked for.

    `say` is told in lines what happens. Returns the exit code. Raises LoadgenError
    when there is no bus.
    """
    with _spool(config.spool):
        pass  # refused now, and not when a run has come
    raise_open_files()
    return uvloop.run(_serve(config, say))


async def _serve(config: WorkerConfig, say: Callable[[str], None]) -> int:
    name = config.name or _host_name()
    options = BusOptions(url=config.bus, credentials=config.bus_creds, ca=config.bus_ca)
    bus = await connected(options, f"loadgen worker {name}", say)
    try:
        worker = Worker(bus, name, config.spool, say)
        loop = asyncio.get_running_loop()
        stop_at_signals(loop, worker.end)
        await bus.listen(CALL, Call, worker.hello)
        await bus.listen(worker_subject(worker.id), Order, worker.obey)
        say(f"worker {name} waits for runs on {options.shown}")
        return await worker.serve(config.runs)
    finally:
        await bus.close()


class Worker:
    """One worker: free, reserved for a run, or in one."""

    def __init__(
        self, bus: Bus, name: str, spool: Path | None, say: Callable[[str], None]
    ) -> None:
        self.id = secrets.token_hex(8)
        self._bus = bus
        self._name = name
        self._spool = spool
        self._say = say
        self._run: str | None = None
        """That it is reserved for or in."""
        self._heard_at_seconds = 0.0
        """Newest word of that run's coordinator."""
        self._task: _Task | None = None
        self._assigned = asyncio.Event()
        self._ending = asyncio.Event()

    def end(self) -> None:
        """Take no further run; the second time, give up the one that goes on."""
        if self._ending.is_set():
            raise SystemExit(1)
        self._ending.set()
        self._assigned.set()
        if self._task is not None:
            self._task.stop()

    async def serve(self, runs: int | None) -> int:
        """Do runs, at most so many."""
        done = 0
        while not self._ending.is_set() and (runs is None or done < runs):
            try:
                async with asyncio.timeout(BEAT_SECONDS):
                    await self._assigned.wait()
            except TimeoutError:
                self._forget()
                continue
            if self._task is None:
                continue
            with _spool(self._spool) as folder:
                done += await self._task.do(folder)
            self._task = None
            self._run = None
            self._assigned.clear()
        return 0

    def _forget(self) -> None:
        """Be free again for others when the run that reserved this one is silent."""
        silence = self._bus.silence_seconds(self._heard_at_seconds)
        if self._task is None and self._run and silence > SILENCE_SECONDS:
            self._say(f"run {self._run} did not begin: free again")
            self._run = None

    async def hello(self, call: Call) -> Hello | None:
        """Answer who is asked for, while free."""
        if self._ending.is_set() or self._run not in (None, call.run):
            return None
        return Hello(id=self.id, name=self._name, version=__version__)

    async def obey(self, order: Order) -> Reply:
        """Follow an order, which may be said more than once."""
        if self._ending.is_set() and not isinstance(order, Stop | Rewind | Done):
            return Reply(refusal="it is ending")
        if self._run not in (None, order.run):
            return Reply(refusal="it is in another run")
        self._heard_at_seconds = time.monotonic()
        match order:
            case Keep():
                pass
            case Reserve():
                self._run = order.run
            case Assign():
                if self._task is None:
                    self._run = order.run
                    self._task = _Task(self._bus, order, self._say, self._silence)
                    self._assigned.set()
            case Start():
                if self._task is None:
                    return Reply(refusal="it has no part of this run")
                return self._task.start(order.zero_seconds)
            case Stop():
                if self._task is None:
                    self._run = None
                else:
                    self._task.stop()
            case Rewind():
                if self._task is not None:
                    self._task.rewind(order.offset)
            case Done():
                if self._task is not None:
                    self._task.forget()
        return Reply()

    def _silence(self) -> float:
        return self._bus.silence_seconds(self._heard_at_seconds)


class _Task:
    """One part of one run, from its order to its last piece."""

    def __init__(
        self,
        bus: Bus,
        order: Assign,
        say: Callable[[str], None],
        silence: Callable[[], float],
    ) -> None:
        self._bus = bus
        self._order = order
        self._say = say
        self._silence = silence
        self._number = order.job.shard.number + 1
        self._sender: Sender | None = None
        self._clock: ClockOffset | None = None
        self._is_ready = False
        self._zero_seconds: float | None = None
        """Of the coordinator."""
        self._is_stopped = False
        self._stopped_at_seconds: float | None = None
        self._changed = asyncio.Event()
        """The start, the stop or the end of the sender."""
        self._has_ended = False
        self._failure: str | None = None
        self._spool: Path | None = None
        self._offset = 0
        """Where the next piece begins."""
        self._rewinds = 0
        self._is_taken = False

    def start(self, zero_seconds: float) -> Reply:
        """Begin at that instant of the coordinator's clock."""
        if self._zero_seconds is not None:
            return Reply()
        if not self._is_ready or self._clock is None or self._is_stopped:
            return Reply(refusal="it is not ready")
        if zero_seconds - self._clock.offset_seconds < time.monotonic():
            return Reply(refusal="it heard of the start too late")
        self._zero_seconds = zero_seconds
        self._changed.set()
        return Reply()

    def stop(self) -> None:
        """End as at Ctrl-C."""
        if self._is_stopped:
            return
        self._is_stopped = True
        self._stopped_at_seconds = time.monotonic()
        if self._zero_seconds is not None and self._sender is not None:
            self._sender.stop()
        self._changed.set()

    def rewind(self, offset: int) -> None:
        """Send the records again from here on."""
        if offset < self._offset:
            self._offset = offset
            self._rewinds += 1
            self._changed.set()

    def forget(self) -> None:
        """The run has all of the records."""
        self._is_taken = True
        self._changed.set()

    async def do(self, folder: Path) -> bool:
        """The whole of it; True when it has sent load."""
        self._spool = folder
        telling = asyncio.ensure_future(self._tell())
        try:
            with ExitStack() as ending:
                try:
                    await self._prepare(folder, ending)
                except LoadgenError as error:
                    self._failure = str(error)
                except StreamLost:
                    self._failure = "the bus lost the plan"
                if self._failure is not None:
                    self._say(f"run {self._order.run}: {self._failure}")
                    await self._wait_for(lambda: self._is_stopped)
                    return False
                await self._wait_for(
                    lambda: self._zero_seconds is not None or self._is_stopped
                )
                if self._zero_seconds is None:
                    self._say(f"run {self._order.run} did not begin: free again")
                    return False
                await self._send(folder)
                return True
        finally:
            telling.cancel()

    async def _wait_for(self, claim: Callable[[], bool]) -> None:
        """Until it holds, or nobody asks for this run any more."""
        while not claim() and self._silence() < SILENCE_SECONDS:
            self._changed.clear()
            try:
                async with asyncio.timeout(BEAT_SECONDS):
                    await self._changed.wait()
            except TimeoutError:
                pass

    async def _prepare(self, folder: Path, ending: ExitStack) -> None:
        """Get the plan, and a process that is ready to send it."""
        order = self._order
        self._say(
            f"run {order.run}: part {self._number} of {order.total}, "
            f"to {order.job.target.url}"
        )
        plan = folder / "plan.jsonl"
        await self._get_plan(plan)
        if self._is_stopped:
            return
        await asyncio.to_thread(engine_facts, order.job.target)
        job = msgspec.structs.replace(
            order.job, plan=str(plan), records=str(self._records(folder))
        )
        self._sender = sender = start_sender(job, folder, ending)
        assert sender.process.stdout is not None
        handle = sender.process.stdout.fileno()
        loop = asyncio.get_running_loop()
        loop.add_reader(handle, self._hear)
        ending.callback(loop.remove_reader, handle)
        try:
            async with asyncio.timeout(START_SECONDS):
                while not (sender.is_ready or self._has_ended):
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            raise LoadgenError(
                f"its process was not ready within {START_SECONDS:g} s"
            ) from None
        if self._has_ended:
            why = sender.failure or sender.how_it_ended()
            raise LoadgenError(f"its process did not start: {why}")
        self._clock = await self._compare_clocks()
        if self._clock is None:
            raise LoadgenError("the coordinator does not tell the time")
        self._is_ready = True

    async def _get_plan(self, path: Path) -> None:
        """From the stream, in which it comes first."""
        copy, sequence = Copy(path), 1
        try:
            while copy.size < self._order.plan_bytes and not self._is_stopped:
                parcel = await self._bus.read(self._order.run, sequence)
                if parcel is None:
                    if self._silence() > SILENCE_SECONDS:
                        raise LoadgenError("the plan did not come")
                    await asyncio.sleep(SEND_SECONDS)
                    continue
                sequence += 1
                if parcel.number == 0 and parcel.piece is not None:
                    copy.add(parcel.piece)
        finally:
            copy.close()
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != self._order.plan_sha256 and not self._is_stopped:
            raise LoadgenError(
                f"the plan that came has the sha256 {found[:12]}..., the run's is "
                f"{self._order.plan_sha256[:12]}..."
            )

    async def _compare_clocks(self) -> ClockOffset | None:
        """The coordinator's clock less ours; None when it does not answer."""
        subject = clock_subject(self._order.run)
        trips: list[RoundTrip] = []
        for _ in range(TRIPS):
            asked = time.monotonic()
            told = await self._bus.ask(subject, Clock(at_seconds=asked), Clock)
            heard = time.monotonic()
            if told is not None:
                trips.append(
                    RoundTrip(
                        asked_seconds=asked, told_seconds=told.at_seconds,
                        heard_seconds=heard,
                    )
                )  # fmt: skip
            elif not trips:
                return None
        return offset_of(trips) if len(trips) >= FEWEST_TRIPS else None

    def _hear(self) -> None:
        """Read what the process says."""
        sender = self._sender
        if sender is None or self._has_ended:
            return
        if not sender.hear():
            assert sender.process.stdout is not None
            asyncio.get_running_loop().remove_reader(sender.process.stdout.fileno())
            sender.process.wait()
            self._has_ended = True
        if sender.is_ready or self._has_ended:
            self._changed.set()

    # -- sending ---------------------------------------------------------------

    def _records(self, folder: Path) -> Path:
        return folder / "requests.jsonl"

    async def _send(self, folder: Path) -> None:
        """Have the shard sent, and send its records on until the bus has them all."""
        sender, clock = self._sender, self._clock
        assert sender is not None
        assert clock is not None
        assert self._zero_seconds is not None
        sender.begin(self._zero_seconds - clock.offset_seconds)
        if self._is_stopped:
            sender.stop()
        with self._records(folder).open("rb", buffering=0) as records:
            while True:
                is_last = self._has_ended
                if not await self._send_new(records.fileno()):
                    return
                if is_last and not os.pread(records.fileno(), 1, self._offset):
                    break
                await asyncio.sleep(SEND_SECONDS)
            size = self._offset
            end = End(
                size=size,
                message=Message(
                    stats=sender.stats,
                    counts=sender.counts,
                    cpu_seconds=sender.part.cpu_seconds,
                    failure=sender.failure,
                ),
                death=None if sender.stats else sender.how_it_ended(),
                clock=await self._compare_clocks(),
            )
            while await self._store_end(end):
                await self._wait_for(
                    lambda: (
                        self._is_taken or self._offset < size or self._is_out_of_time()
                    )
                )
                if self._is_taken or self._offset == size:  # or nobody asks for them
                    self._say(
                        f"run {self._order.run}: all {sender.counts.sent} requests are "
                        "over, their records are on the bus"
                    )
                    return
                if not await self._send_new(records.fileno()):  # it was rewound
                    return

    def _is_out_of_time(self) -> bool:
        """It was told to end, and has had its time for that."""
        since = self._stopped_at_seconds
        return since is not None and time.monotonic() - since > FLUSH_SECONDS

    async def _store_end(self, end: End) -> bool:
        return await self._store(
            Parcel(number=self._number, end=end, rewinds=self._rewinds)
        )

    async def _send_new(self, records: int) -> bool:
        """Send on all that is in the file; False when that was given up."""
        while data := os.pread(records, PIECE_BYTES, self._offset):
            piece = Piece(offset=self._offset, data=data)
            rewinds = self._rewinds
            parcel = Parcel(number=self._number, piece=piece, rewinds=rewinds)
            if not await self._store(parcel):
                return False
            if self._rewinds == rewinds:
                self._offset += len(data)
        return True

    async def _store(self, parcel: Parcel) -> bool:
        """Until the bus has it; False when a worker that is to end gives up."""
        begun, is_told = time.monotonic(), False
        while True:
            is_lost = False
            try:
                if await self._bus.store(self._order.run, parcel):
                    return True
            except StreamLost:
                is_lost = self._silence() > GONE_SECONDS
            is_lost |= self._has_ended and self._is_out_of_time()
            if is_lost:
                self._say(
                    f"run {self._order.run}: the bus did not take the records from "
                    f"byte {self._offset} of part {self._number} on: they are lost"
                )
                self.stop()
                return False
            waited = time.monotonic() - begun
            if self._bus.is_there and not is_told and waited > REFUSED_SECONDS:
                is_told = True
                self._say(
                    f"run {self._order.run}: the bus does not take the records "
                    f"({self._bus.refusal or 'no stream'}); they wait in {self._spool}"
                )
            await asyncio.sleep(AGAIN_SECONDS)

    async def _tell(self) -> None:
        """Say twice a second how far it is."""
        subject = beat_subject(self._order.run)
        while True:
            counts = self._sender.counts if self._sender else None
            await self._bus.say(
                subject,
                Beat(
                    number=self._number,
                    is_ready=self._is_ready,
                    has_begun=self._zero_seconds is not None,
                    clock=self._clock,
                    counts=counts or Counts(),
                    failure=self._failure,
                ),
            )
            await asyncio.sleep(BEAT_SECONDS)


@contextmanager
def _spool(parent: Path | None) -> Iterator[Path]:
    """A folder for one run, which goes with it. Raises LoadgenError."""
    try:
        with tempfile.TemporaryDirectory(
            prefix="servewatt-worker-", dir=parent
        ) as folder:
            yield Path(folder)
    except OSError as error:
        raise LoadgenError(
            f"cannot keep records in {parent or tempfile.gettempdir()}: "
            f"{os_reason(error)}; name another folder with --spool"
        ) from None


def _host_name() -> str:
    """As a worker's name may be."""
    name = "".join(
        c if c.isascii() and c.isalnum() else "-" for c in os.uname().nodename
    )
    return name.strip("-")[:64] or "worker"
