"""One boundary over several hosts: sources of one kind, read together or not at all.

An engine that is spread over hosts (tensor or pipeline parallel) has boards behind
several exporters. Its joules are known while every one of them answers: a host that
does not makes the read of all a failed one, so that the books are complete or say that
they are not, and never go on with a part.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import ExitStack

import msgspec

from proxy.errors import ConfigError
from proxy.power.energy_source import (
    BoundedSource,
    EnergySource,
    HardwareSource,
    NamedBoards,
    RemoteSource,
)
from proxy.wire.facts import HardwareState, Reading


class SourceGroup:
    """The devices of all members, each named `MEMBER/DEVICE`."""

    follows_updates = True

    def __init__(self, members: Mapping[str, EnergySource]) -> None:
        """`members` by name, at least one, all of one kind and boundary."""
        self._members = dict(members)
        first = next(iter(self._members.values()))
        self.name, self.boundary = first.name, first.boundary
        self._pool = ThreadPoolExecutor(len(self._members), "sensor")
        self._devices: tuple[str, ...] = ()

    @property
    def is_simulated(self) -> bool:
        """True when the joules of any member come from a model."""
        return any(member.is_simulated for member in self._members.values())

    @property
    def clock_offset_seconds(self) -> float | None:
        """That of the member whose clock is furthest off; None where none has one."""
        offsets = [
            offset
            for member in self._members.values()
            if isinstance(member, RemoteSource)
            and (offset := member.clock_offset_seconds) is not None
        ]
        return max(offsets, key=abs, default=None)

    def read(self) -> Sequence[Reading]:
        """All members at one time. Raises what the first raises that cannot be read.

        Raises ConfigError where two members show the same board.
        """
        asked = [self._pool.submit(m.read) for m in self._members.values()]
        wait(asked)
        readings = [
            msgspec.structs.replace(reading, device=f"{name}/{reading.device}")
            for name, one in zip(self._members, asked, strict=True)
            for reading in one.result()
        ]
        devices = tuple(reading.device for reading in readings)
        if devices != self._devices:
            self._check_apart()
            self._devices = devices
        return readings

    def uuids(self) -> tuple[str, ...]:
        """Those of the chosen boards of all members, as far as they are known."""
        return tuple(uuid for _, uuid in self._boards())

    def max_watts(self) -> dict[str, float]:
        """The highest limit of each board, where its member shows it."""
        return {
            f"{name}/{device}": watts
            for name, member in self._members.items()
            if isinstance(member, BoundedSource)
            for device, watts in member.max_watts().items()
        }

    def hardware(self) -> Sequence[HardwareState]:
        """How the boards of all members work, as far as they tell."""
        return [
            msgspec.structs.replace(state, device=f"{name}/{state.device}")
            for name, member in self._members.items()
            if isinstance(member, HardwareSource)
            for state in member.hardware()
        ]

    def close(self) -> None:
        """Close all members, whatever becomes of one."""
        with ExitStack() as stack:
            stack.callback(self._pool.shutdown)
            for member in self._members.values():
                stack.callback(member.close)

    def _boards(self) -> list[tuple[str, str]]:
        return [
            (name, uuid)
            for name, member in self._members.items()
            if isinstance(member, NamedBoards)
            for uuid in member.uuids()
        ]

    def _check_apart(self) -> None:
        boards = self._boards()
        shown = Counter(uuid for _, uuid in boards)
        for uuid, count in shown.items():
            if count > 1:
                where = " and ".join(name for name, one in boards if one == uuid)
                raise ConfigError(
                    f"{self.name}: the board {uuid} is shown by {where}: its joules "
                    "would count twice; name each host once"
                )


def open_group(openers: Mapping[str, Callable[[], EnergySource]]) -> EnergySource:
    """All members opened. Raises what the first raises that cannot be opened."""
    with ExitStack() as stack:
        members: dict[str, EnergySource] = {}
        for name, opener in openers.items():
            members[name] = opener()
            stack.callback(members[name].close)
        stack.pop_all()
        return SourceGroup(members)
