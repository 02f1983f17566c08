"""What every power source is: asked for readings, one per device, taken now.

A source only reads; it does no arithmetic beyond its unit conversion. The
sampler stamps, `proxy.meter.curve` integrates.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from proxy.wire.facts import HardwareState, Reading


@dataclass(frozen=True, slots=True)
class SourceOptions:
    """What the user said about a source: `--power NAME=argument` and `--gpus`."""

    argument: str | None = None
    gpus: tuple[str, ...] = ()
    """Indices or UUIDs; empty means every visible device."""
    shows_outside: bool = False
    """Also read the devices that are not chosen, where the source can see them."""


class EnergySource(Protocol):
    """One sensor family; see `SOURCES` for those known."""

    @property
    def name(self) -> str:
        """As in `--power`."""

    @property
    def boundary(self) -> str:
        """What is inside its joules: `gpu`, `host` or `node`."""

    @property
    def is_simulated(self) -> bool:
        """True when the joules come from a model, not from a device."""

    def read(self) -> Sequence[Reading]:
        """All devices, back to back. Raises SensorError when they cannot be read."""

    def close(self) -> None:
        """Release the sensor; a second call does nothing."""


@runtime_checkable
class RemoteSource(Protocol):
    """A source whose sensor has a clock of its own."""

    @property
    def clock_offset_seconds(self) -> float | None:
        """Remote minus local clock, already taken out of `at_seconds`."""


@runtime_checkable
class BoundedSource(Protocol):
    """A source that knows what no reading of a device can exceed."""

    def max_watts(self) -> Mapping[str, float]:
        """The highest power limit by device, as far as it is told."""


@runtime_checkable
class NamedBoards(Protocol):
    """A source that knows its boards by UUID."""

    def uuids(self) -> tuple[str, ...]:
        """Those of the chosen boards, as far as they are known."""


@runtime_checkable
class FollowedSource(Protocol):
    """A source whose reads cost another process: asked at the pace of its updates."""

    @property
    def follows_updates(self) -> bool:
        """Always true: what matters is that a source has it."""


@runtime_checkable
class LimitedSource(Protocol):
    """A source that knows the power its devices may draw at most."""

    def limit_watts(self) -> float | None:
        """Power limit of all devices together; None where one does not tell."""


@runtime_checkable
class HardwareSource(Protocol):
    """A source that knows how its boards work, beside their power."""

    def hardware(self) -> Sequence[HardwareState]:
        """Every chosen board now; what one does not tell is None.

        Called from another thread than `read`. Raises SensorError when the boards
        cannot be asked at all.
        """
