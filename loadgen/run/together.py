"""The run that several send together: what is known of each, and when it is over.

Whoever sends (processes of this host, workers on others) appends its records to a part
that grows in a file here. They are read as they come: the run is shown, failures are
counted over all, every record goes to `requests.jsonl` as one sender would have written
it. One that dies takes its own requests with it and nothing else: nobody sends them in
its place, which would be another load.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from loadgen.client.client import ConnectionCounts
from loadgen.errors import LoadgenError
from loadgen.plan.plan import requests_of_shards
from loadgen.replay.clock import LoopLag
from loadgen.replay.limits import ErrorLimit
from loadgen.replay.replay import RunStats
from loadgen.results.parts import Part, Tail
from loadgen.results.progress import Progress
from loadgen.results.recorder import Recorder
from loadgen.run.sender import Counts, Message

STOP_SECONDS = 30.0
"""From being told to stop to being given up: the records of all in flight are
written."""
TICK_SECONDS = 0.1


@dataclass(slots=True, kw_only=True)
class Member(ABC):
    """One of those who send, as far as it is known here."""

    part: Part
    tail: Tail
    """Of its records."""
    counts: Counts = field(default_factory=Counts)
    stats: RunStats | None = None
    failure: str | None = None

    def note(self, message: Message) -> None:
        """Take what it says into account."""
        self.counts = message.counts or self.counts
        self.stats = message.stats or self.stats
        self.failure = message.failure or self.failure
        self.part.cpu_seconds = message.cpu_seconds or self.part.cpu_seconds

    @abstractmethod
    def stop(self) -> None:
        """Have it end as at Ctrl-C."""

    @abstractmethod
    def give_up(self) -> None:
        """Wait for it no longer: it was told to stop, and did not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tracking:
    """Where a shared run is recorded and shown, and what ends it or spoils it."""

    plan: Path
    recorder: Recorder
    progress: Progress
    max_errors: int | None
    warn: Callable[[str], None]
    """Hears at once of one who died."""
    allows_partial: bool = False
    """Whether a run without them is only degraded."""


class SharedRun:
    """One run while its members send it."""

    def __init__(self, members: Sequence[Member], tracking: Tracking) -> None:
        self._members = members
        self._tracking = tracking
        self._progress = tracking.progress
        self._limit = ErrorLimit(tracking.max_errors)
        self._sent = 0
        self._stopped_at_seconds: float | None = None
        self._taken_at_seconds = 0.0

    def tick(self, told: Sequence[int]) -> None:
        """What is due ten times a second; `told` are the signals so far.

        The first stops all, the second raises KeyboardInterrupt.
        """
        if len(told) > 1:
            for member in self._members:
                member.give_up()
            raise KeyboardInterrupt
        now = time.monotonic()
        if now - self._taken_at_seconds >= TICK_SECONDS:
            self._taken_at_seconds = now
            self.take()
        is_stopping = self._stopped_at_seconds is not None
        if told or is_stopping or self._limit.reason is not None:
            self._stop(now)

    def _stop(self, now_seconds: float) -> None:
        """Tell all to stop; those that do not are given up later."""
        if self._stopped_at_seconds is None:
            self._stopped_at_seconds = now_seconds
            for member in self._members:
                member.stop()
        elif now_seconds - self._stopped_at_seconds > STOP_SECONDS:
            for member in self._members:
                member.give_up()

    def note_end(self, member: Member, death: Callable[[], str]) -> None:
        """One has ended; `death` tells how, if it did not do so itself."""
        member.counts = msgspec.structs.replace(member.counts, in_flight=0)
        if member.failure is not None:
            self._stop(time.monotonic())
            return
        stats, is_stopped = member.stats, self._stopped_at_seconds is not None
        if stats is not None:
            member.part.loop_lag_p99_seconds = stats.loop_lag.p99_seconds
        if stats is None:
            member.part.death = death()
        elif stats.interrupted and not is_stopped:
            member.part.death = "was told to end"
        if member.part.death is not None:
            verdict = "degraded" if self._tracking.allows_partial else "invalid"
            self._tracking.warn(
                f"{member.part.title(len(self._members))} {member.part.death}: its "
                f"other requests are lost, and the run is {verdict}"
            )

    def take(self) -> None:
        """Take the new records, in order of their ends, and the counts."""
        while new := [
            (result.finished_seconds, line, result, member.part)
            for member in self._members
            for line, result in member.tail.results()
        ]:
            new.sort(key=lambda each: each[:2])
            for _, line, result, part in new:
                self._tracking.recorder.append(line)
                part.add(result)
                self._sent += result.sent_seconds is not None
                self._limit.note(result)
                self._progress.note_end(result)
        counts = [member.counts for member in self._members]
        progress = self._progress
        # records are newer than counts: nothing is done that was not sent
        progress.sent = max(sum(each.sent for each in counts), self._sent)
        progress.in_flight = sum(each.in_flight for each in counts)
        progress.tokens = sum(each.tokens for each in counts)
        first = [each.first_sent_seconds for each in counts]
        newest = [each.newest_sent_seconds for each in counts]
        progress.first_sent_seconds = min(_known(first), default=None)
        progress.newest_sent_seconds = max(_known(newest), default=None)

    def finish(
        self, weights: tuple[int, ...], zero_unix: float, *, is_told: bool
    ) -> tuple[RunStats, list[Part]]:
        """The whole run, after the last of them has ended and every record is taken.

        Raises LoadgenError for one that could not go on.
        """
        for member in self._members:
            if member.failure is not None:
                title = member.part.title(len(self._members))
                raise LoadgenError(f"{title}: {member.failure}")
        self._count_lost(weights)
        for member in self._members:
            member.tail.close()
        stats = self._stats(zero_unix, is_told=is_told)
        return stats, [member.part for member in self._members]

    def _count_lost(self, weights: tuple[int, ...]) -> None:
        """How many requests of each that died have no record."""
        if all(member.part.death is None for member in self._members):
            return
        sizes = requests_of_shards(self._tracking.plan, weights)
        for member, size in zip(self._members, sizes, strict=True):
            if member.part.death is not None:
                member.part.lost = size - len(member.part.planned_seconds)

    def _stats(self, zero_unix: float, *, is_told: bool) -> RunStats:
        """Of the whole run; its loop lag is that of the worst of them."""
        zero = self._progress.zero_seconds or 0.0
        known = [each.stats for each in self._members if each.stats is not None]
        is_cut = any(each.interrupted for each in known) or len(known) < len(
            self._members
        )
        lags = [each.loop_lag for each in known]
        connections = ConnectionCounts()
        for each in known:
            connections.opened += each.connections.opened
            connections.open += each.connections.open
            connections.failed += each.connections.failed
            connections.reused += each.connections.reused
        return RunStats(
            zero_unix_seconds=zero_unix,
            zero_monotonic_seconds=zero,
            end_seconds=time.monotonic() - zero,
            sent=self._progress.sent,
            dropped=self._progress.dropped,
            loop_lag=max(
                lags,
                key=lambda lag: lag.p99_seconds or 0.0,
                default=LoopLag(0, None, None, None),
            ),
            connections=connections,
            interrupted=is_told and is_cut and self._limit.reason is None,
            failure=self._limit.reason,
        )


def _known(values: Sequence[float | None]) -> list[float]:
    return [value for value in values if value is not None]
