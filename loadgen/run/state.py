"""What is noted of a run on the bus in its folder, for whoever goes on with it."""

from __future__ import annotations

from pathlib import Path

import msgspec

from loadgen.errors import RunError, StackError
from loadgen.replay.clock_offset import ClockOffset
from loadgen.run.bus import Name, Token
from proxy.process.files import PRIVATE, os_reason, whole_file

STATE = "bus.json"
"""In the run folder, while the run is on the bus."""


class Place(msgspec.Struct, frozen=True, kw_only=True):
    """One worker of a run."""

    id: Token
    name: Name
    clock: ClockOffset | None = None


class State(msgspec.Struct, frozen=True, kw_only=True):
    """What a coordinator has to know to go on with a run."""

    run: Token
    bus: str
    workers: list[Place]
    weights: tuple[int, ...]
    zero_seconds: float | None = None
    """Of this host's monotonic clock; None: it did not begin."""
    zero_unix_seconds: float | None = None
    boot: str = ""
    """Of this host: its monotonic clock begins anew with each."""


def write_state(folder: Path, state: State) -> None:
    """Note how to go on with a run. Raises StackError."""
    try:
        with whole_file(folder / STATE, mode=PRIVATE, is_durable=True) as file:
            file.write(msgspec.json.encode(state))
    except OSError as error:
        raise StackError(f"cannot write {folder / STATE}: {os_reason(error)}") from None


def read_state(folder: Path) -> State:
    """Raises RunError for a run that is not on a bus."""
    path = folder / STATE
    if not folder.is_dir():
        raise RunError(f"{folder} is not a run folder")
    try:
        return msgspec.json.decode(path.read_bytes(), type=State)
    except FileNotFoundError:
        raise RunError(
            f"{folder} has no {STATE}: it is not a run with --workers that was killed; "
            f"show what it has with `loadgen report {folder}`"
        ) from None
    except OSError as error:
        raise RunError(f"cannot read {path}: {os_reason(error)}") from None
    except (ValueError, RecursionError) as error:
        raise RunError(f"{path} cannot be read: {error}") from None


def boot_id() -> str:
    """Tells one boot of this host from another; empty where it does not say."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""
