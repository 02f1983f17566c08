"""One run sent by workers on several hosts, kept and judged here.

This process is the coordinator: it waits for the workers, gives each its shard of the
plan, tells all one instant to begin at, and copies the records that each puts on the
bus into a part of its own, which `loadgen.run.together` puts together as for processes
of this host. What it knows of the run is noted in the run folder, so that another
coordinator can go on where this one was killed: the records are still on the bus.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import secrets
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import uvloop

from loadgen import __version__
from loadgen.errors import StackError, UsageError
from loadgen.replay.clock_offset import ClockOffset, disagreement_seconds
from loadgen.replay.replay import LEAD_SECONDS, RunStats
from loadgen.results.parts import Copy, Part, Piece, PieceGap, Tail
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
from loadgen.run.sender import Job
from loadgen.run.state import STATE, Place, State, boot_id, write_state
from loadgen.run.stopping import signals_told
from loadgen.run.together import TICK_SECONDS, Member, SharedRun, Tracking
from loadgen.traces.readers.open import sha256_of

CALL_SECONDS = 0.5
KEEP_SECONDS = 1.0
READY_SECONDS = 600.0
"""A large plan takes its time to every host."""
START_LEAD_SECONDS = LEAD_SECONDS + 3.0
"""From telling the start to the zero: the word reaches every worker."""
READS_AT_ONCE = 64

T = TypeVar("T")


@dataclass(slots=True, kw_only=True)
class RemoteWorker(Member):
    """One worker, as far as it is known here."""

    place: Place
    copy: Copy
    heard_at_seconds: float
    is_ready: bool = False
    has_begun: bool = False
    has_ended: bool = False
    is_silent: bool = False
    is_given_up: bool = False
    wants_stop: bool = False
    is_short: bool = False
    """Pieces of its records are missing before those that came."""
    clock: ClockOffset | None = None
    death: str | None = None

    def note_clock(self, clock: ClockOffset | None) -> None:
        """How far this host's clock is from the worker's."""
        if clock is not None:
            self.clock = clock
            self.part.clock_offset_seconds = clock.offset_seconds
            self.part.clock_error_seconds = clock.error_seconds

    def stop(self) -> None:
        """Tell it at the next occasion, and until it ends."""
        self.wants_stop = True

    def give_up(self) -> None:
        """Wait for it no longer."""
        self.is_given_up = True

    def how_it_ended(self) -> str:
        """In words, for one that did not say so itself."""
        if self.death is not None:
            return self.death
        if self.is_silent:
            return f"was not heard of for {SILENCE_SECONDS:g} s"
        return "did not end when it was told to"


class Crew:
    """The workers of one run, and the bus to them; ends with its `with` block."""

    def __init__(self, options: BusOptions, say: Callable[[str], None]) -> None:
        self._say = say
        self._runner = asyncio.Runner(loop_factory=uvloop.new_event_loop)
        self._options = options
        self._bus: Bus | None = None
        self.run = secrets.token_hex(8)
        self.places: list[Place] = []
        self._has_begun = False
        self._is_over = False

    def __enter__(self) -> Crew:
        try:
            self._do(self._connect())
        except BaseException:
            self._runner.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._do(self._leave())
        finally:
            self._runner.close()

    def _do(self, what: Coroutine[Any, Any, T]) -> T:
        return self._runner.run(what)

    @property
    def _connected(self) -> Bus:
        assert self._bus is not None
        return self._bus

    async def _connect(self) -> None:
        self._bus = await connected(self._options, "loadgen replay", self._say)

    async def _leave(self) -> None:
        """Free the workers, and take a run that has not begun off the bus."""
        if not self._is_over:
            for place in self.places:
                await self._tell(place, Stop(run=self.run))
            if not self._has_begun:
                await self._connected.remove_stream(self.run)
        await self._connected.close()

    async def _tell(self, place: Place, order: Order) -> None:
        await self._connected.say(worker_subject(place.id), order)

    # -- before the run --------------------------------------------------------

    def gather(self, count: int, seconds: float) -> None:
        """Wait until so many workers are reserved for this run.

        Raises StackError when there are not enough in time, or the bus keeps nothing.
        """
        self._do(self._gather(count, seconds))

    async def _gather(self, count: int, seconds: float) -> None:
        await self._connected.make_stream(self.run)
        deadline = time.monotonic() + seconds
        others: set[str] = set()
        while len(self.places) < count:
            left = deadline - time.monotonic()
            if left <= 0:
                raise StackError(
                    f"{len(self.places)} of {count} workers came within {seconds:g} s "
                    f"to {self._options.shown}; start more with `loadgen worker "
                    f"--bus {self._options.shown}`, or give a smaller --workers"
                )
            call = Call(run=self.run)
            found = await self._connected.ask_all(
                CALL, call, Hello, min(CALL_SECONDS, left)
            )
            known = {place.id for place in self.places}
            for hello in sorted(found, key=lambda each: (each.name, each.id)):
                if hello.version != __version__:
                    if hello.id not in others:
                        others.add(hello.id)
                        self._say(
                            f"worker {hello.name} has loadgen {hello.version}, this "
                            f"is {__version__}: left out"
                        )
                elif hello.id not in known and len(self.places) < count:
                    await self._reserve(hello, count)
            for place in self.places:
                await self._tell(place, Reserve(run=self.run))
        self.places.sort(key=lambda place: (place.name, place.id))

    async def _reserve(self, hello: Hello, count: int) -> None:
        reply = await self._connected.ask(
            worker_subject(hello.id), Reserve(run=self.run), Reply
        )
        if reply is not None and reply.refusal is None:
            self.places.append(Place(id=hello.id, name=hello.name))
            self._say(f"{len(self.places)} of {count} workers: {hello.name}")

    # -- the run ---------------------------------------------------------------

    def replay(
        self,
        jobs: Sequence[Job],
        *,
        folder: Path,
        tracking: Tracking,
    ) -> tuple[RunStats, list[Part]]:
        """Have a run sent, one job for each of the workers, as in processes."""
        spare, self.places = self.places[len(jobs) :], self.places[: len(jobs)]
        weights = jobs[0].shard.weights
        state = State(
            run=self.run, bus=self._options.shown, workers=self.places,
            weights=weights, boot=boot_id(),
        )  # fmt: skip
        write_state(folder, state)
        with (
            self._members(state, [Path(job.records) for job in jobs]) as members,
            self._unless_begun(folder),
        ):
            coordination = _Coordination(self._connected, self.run, members, self._say)
            run = SharedRun(members, tracking)
            with signals_told() as told:

                async def whole() -> float:
                    for place in spare:
                        await self._tell(place, Stop(run=self.run))
                    async with coordination.listening():
                        await coordination.prepare(jobs, tracking.plan, told)
                        zero = time.monotonic() + START_LEAD_SECONDS
                        zero_unix = time.time() + START_LEAD_SECONDS
                        clocks = [
                            msgspec.structs.replace(each.place, clock=each.clock)
                            for each in members
                        ]
                        write_state(
                            folder,
                            msgspec.structs.replace(
                                state, workers=clocks, zero_seconds=zero,
                                zero_unix_seconds=zero_unix,
                            ),
                        )  # fmt: skip
                        await coordination.begin(zero, told)
                        self._has_begun = True
                        tracking.progress.zero_seconds = zero
                        await coordination.follow(run, told)
                    return zero_unix

                zero_unix = self._do(whole())
            return run.finish(weights, zero_unix, is_told=bool(told))

    @contextmanager
    def _unless_begun(self, folder: Path) -> Iterator[None]:
        """Leave no note of a run that cannot be gone on with."""
        try:
            yield
        except BaseException:
            if not self._has_begun:
                (folder / STATE).unlink(missing_ok=True)
            raise

    def go_on(
        self,
        state: State,
        *,
        parts: Sequence[Path],
        tracking: Tracking,
    ) -> tuple[RunStats, list[Part]]:
        """`replay` of a run that another coordinator began."""
        self.run, self.places = state.run, state.workers
        self._has_begun = True
        assert state.zero_unix_seconds is not None
        tracking.progress.zero_seconds = state.zero_seconds
        with self._members(state, parts) as members:
            coordination = _Coordination(self._connected, self.run, members, self._say)
            coordination.zero_seconds = state.zero_seconds
            coordination.tells_time = state.boot == boot_id()
            run = SharedRun(members, tracking)
            with signals_told() as told:

                async def whole() -> None:
                    async with coordination.listening():
                        await coordination.follow(run, told)

                self._do(whole())
            return run.finish(
                state.weights, state.zero_unix_seconds, is_told=bool(told)
            )

    @contextmanager
    def _members(
        self, state: State, paths: Sequence[Path]
    ) -> Iterator[list[RemoteWorker]]:
        members: list[RemoteWorker] = []
        try:
            for number, (place, path) in enumerate(
                zip(state.workers, paths, strict=True), 1
            ):
                part = Part(number=number, worker=place.name)
                member = RemoteWorker(
                    place=place,
                    part=part,
                    copy=Copy(path),
                    tail=Tail(path),
                    heard_at_seconds=time.monotonic(),
                )
                member.note_clock(place.clock)
                members.append(member)
            yield members
        finally:
            for member in members:
                member.copy.close()
                member.tail.close()

    def forget(self, state: State, folder: Path) -> None:
        """Take a run off the bus that another coordinator prepared in vain."""
        self.run, self.places = state.run, state.workers
        (folder / STATE).unlink(missing_ok=True)

    def remove(self, folder: Path) -> None:
        """Take the run off the bus: all of it is in its folder."""
        self._is_over = True
        if not self._do(self._connected.remove_stream(self.run)):
            self._say(
                f"the stream loadgen-{self.run} could not be removed from "
                f"{self._options.shown}; it goes by itself, empty, in 7 days"
            )
        (folder / STATE).unlink(missing_ok=True)


class _Coordination:
    """What is said on the bus while workers get ready and send."""

    def __init__(
        self,
        bus: Bus,
        run: str,
        members: Sequence[RemoteWorker],
        say: Callable[[str], None],
    ) -> None:
        self._bus = bus
        self._run = run
        self._members = members
        self._say = say
        self.zero_seconds: float | None = None
        """Of the run, on our clock."""
        self.tells_time = True
        self._sequence = 1
        """Of the next message of the stream."""

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[None]:
        """Hear the workers, tell them the time, and that somebody is here."""
        unlisten = [
            await self._bus.listen(beat_subject(self._run), Beat, self._hear),
            await self._bus.listen(clock_subject(self._run), Clock, self._tell_time),
        ]
        keeping = asyncio.ensure_future(self._keep())
        try:
            yield
        finally:
            keeping.cancel()
            for stop in unlisten:
                await stop()

    async def _hear(self, beat: Beat) -> None:
        if not 1 <= beat.number <= len(self._members):
            return
        member = self._members[beat.number - 1]
        member.heard_at_seconds = time.monotonic()
        if member.has_ended:
            return
        member.is_ready = beat.is_ready
        member.has_begun = beat.has_begun
        member.counts = beat.counts
        member.failure = beat.failure or member.failure
        if beat.clock is not None:
            member.note_clock(beat.clock)

    async def _tell_time(self, _: Clock) -> Clock | None:
        return Clock(at_seconds=time.monotonic()) if self.tells_time else None

    async def _keep(self) -> None:
        """Each second a word to every worker that has not ended."""
        while True:
            for member in self._members:
                if member.has_ended:
                    continue
                orders: list[Order] = [Keep(run=self._run)]
                if member.wants_stop or self._is_late(member):
                    orders.append(Stop(run=self._run))
                if member.is_short:
                    member.is_short = False
                    orders.append(Rewind(run=self._run, offset=member.copy.size))
                for order in orders:
                    await self._bus.say(worker_subject(member.place.id), order)
            await asyncio.sleep(KEEP_SECONDS)

    def _is_late(self, member: RemoteWorker) -> bool:
        """It never heard of the start: the coordinator was killed as it told it."""
        if self.zero_seconds is None or not member.is_ready or member.has_begun:
            return False
        return time.monotonic() > self.zero_seconds + SILENCE_SECONDS

    # -- before the start ------------------------------------------------------

    async def prepare(
        self, jobs: Sequence[Job], plan: Path, told: Sequence[int]
    ) -> None:
        """Until every worker has its part and is ready to begin.

        Raises StackError when one is not, KeyboardInterrupt at a signal.
        """
        await self._put_plan(plan, told)
        size, sha256 = os.stat(plan).st_size, sha256_of(plan)
        for member, job in zip(self._members, jobs, strict=True):
            order = Assign(
                run=self._run, job=job, total=len(jobs), plan_bytes=size,
                plan_sha256=sha256,
            )  # fmt: skip
            await self._order(member, order, told, SILENCE_SECONDS)
        deadline = time.monotonic() + READY_SECONDS
        while not all(member.is_ready for member in self._members):
            _check(told)
            for member in self._members:
                title = member.part.title(len(self._members))
                silence = self._bus.silence_seconds(member.heard_at_seconds)
                if member.failure is not None:
                    raise StackError(f"{title}: {member.failure}")
                if silence > SILENCE_SECONDS:
                    raise StackError(
                        f"{title} was not heard of for {SILENCE_SECONDS:g} s"
                    )
                if not member.is_ready and time.monotonic() > deadline:
                    raise StackError(
                        f"{title} was not ready within {READY_SECONDS:g} s"
                    )
            await asyncio.sleep(TICK_SECONDS)

    async def _put_plan(self, plan: Path, told: Sequence[int]) -> None:
        with plan.open("rb") as file:
            offset = 0
            while data := file.read(PIECE_BYTES):
                piece = Piece(offset=offset, data=data)
                since = time.monotonic()
                parcel = Parcel(number=0, piece=piece)
                while not await self._store(parcel):
                    _check(told)
                    if time.monotonic() - since > SILENCE_SECONDS:
                        raise StackError(
                            f"the bus did not take byte {offset} of the plan within "
                            f"{SILENCE_SECONDS:g} s: is it away, or full?"
                        )
                    await asyncio.sleep(TICK_SECONDS)
                offset += len(data)

    async def _store(self, parcel: Parcel) -> bool:
        try:
            return await self._bus.store(self._run, parcel)
        except StreamLost:
            raise StackError(
                "the bus has lost the run's stream: is it stable?"
            ) from None

    async def _order(
        self, member: RemoteWorker, order: Order, told: Sequence[int], seconds: float
    ) -> None:
        """Give an order until it is taken. Raises StackError."""
        title = member.part.title(len(self._members))
        deadline = time.monotonic() + seconds
        while True:
            _check(told)
            subject = worker_subject(member.place.id)
            reply = await self._bus.ask(subject, order, Reply)
            if reply is not None:
                if reply.refusal is not None:
                    raise StackError(f"{title} cannot begin: {reply.refusal}")
                member.heard_at_seconds = time.monotonic()
                return
            if time.monotonic() > deadline:
                raise StackError(f"{title} does not answer")
            await asyncio.sleep(TICK_SECONDS)

    async def begin(self, zero_seconds: float, told: Sequence[int]) -> None:
        """Tell all the one instant. Raises StackError when one does not begin."""
        self.zero_seconds = zero_seconds
        order = Start(run=self._run, zero_seconds=zero_seconds)
        for member in self._members:
            await self._order(member, order, told, START_LEAD_SECONDS)

    # -- the run ---------------------------------------------------------------

    async def follow(self, run: SharedRun, told: Sequence[int]) -> None:
        """Until every worker has ended, or is lost, and its records are taken."""
        self._sequence = await self._bus.first(self._run)
        while True:
            read = await self._read_some(run)
            self._note_silence()
            run.tick(told)
            is_over = all(
                member.has_ended or member.is_given_up or member.is_silent
                for member in self._members
            )
            if is_over and not read:
                break
            if not read:
                await asyncio.sleep(TICK_SECONDS)
        run.take()
        for member in self._members:
            if not member.has_ended:
                run.note_end(member, member.how_it_ended)

    def _note_silence(self) -> None:
        if not self._bus.is_there:
            return
        for member in self._members:
            silence = self._bus.silence_seconds(member.heard_at_seconds)
            is_silent = silence > SILENCE_SECONDS and not member.has_ended
            if is_silent == member.is_silent:
                continue
            member.is_silent = is_silent
            title = member.part.title(len(self._members))
            if is_silent:
                self._say(f"{title} was not heard of for {SILENCE_SECONDS:g} s")
            elif not member.has_ended:
                self._say(f"{title} is heard of again")

    async def _read_some(self, run: SharedRun) -> int:
        """Take what is new in the stream, so much at a time; how many messages."""
        for count in range(READS_AT_ONCE):
            try:
                parcel = await self._bus.read(self._run, self._sequence)
            except StreamLost:
                self._say(
                    "the bus has lost what it kept of the run; its stream is made "
                    "anew, and the workers send again what is missing"
                )
                with suppress(StackError):
                    await self._bus.make_stream(self._run)
                    self._sequence = 1
                return count
            if parcel is None:
                return count
            self._sequence += 1
            if 1 <= parcel.number <= len(self._members):
                member = self._members[parcel.number - 1]
                self._take(member, parcel, run)
                if parcel.end is not None and member.has_ended:
                    subject = worker_subject(member.place.id)
                    await self._bus.say(subject, Done(run=self._run))
        return READS_AT_ONCE

    def _take(self, member: RemoteWorker, parcel: Parcel, run: SharedRun) -> None:
        member.heard_at_seconds = time.monotonic()
        if parcel.piece is not None:
            try:
                member.copy.add(parcel.piece)
            except PieceGap:
                member.is_short = True
        if parcel.end is None or member.has_ended:
            return
        end = parcel.end
        missing = end.size - member.copy.size
        if missing > 0:  # it still has them, unless it is not heard of again
            member.is_short = True
            member.death = f"is gone, and the bus lost {missing} bytes of its records"
            return
        member.has_ended, member.death = True, end.death
        run.take()
        member.note(end.message)
        if end.clock is not None and member.clock is not None:
            drift = disagreement_seconds(member.clock, end.clock)
            member.part.clock_drift_seconds = drift
        run.note_end(member, member.how_it_ended)


def _check(told: Sequence[int]) -> None:
    """Before the run has begun, the first signal ends it."""
    if told:
        raise KeyboardInterrupt


@contextmanager
def only_coordinator(folder: Path) -> Iterator[None]:
    """Nobody else coordinates the run of this folder. Raises UsageError."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(
                f"{folder} is the folder of a run that goes on: wait for it, or end it"
            ) from None
        except OSError:
            pass  # a file system without locks
        yield
    finally:
        os.close(handle)
