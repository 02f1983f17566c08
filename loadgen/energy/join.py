"""Fetches joules from the proxy's admin API and puts them beside their requests.

Requests are matched by id, never by time; only the window's edges are instants.
What cannot be had in time stays unknown, with the reason: a report never waits
without bound and never invents a joule.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from loadgen.energy.ledgers import Ledger, ledger_at
from loadgen.errors import LoadgenError
from loadgen.results.recorder import read_results
from loadgen.results.results import EnergyPart, Metering
from proxy.admin.client import AdminError
from proxy.process.files import PRIVATE, os_reason, whole_file
from proxy.wire.api import (
    BooksReply,
    CalibrationReply,
    HardwareReply,
    SavedCalibration,
)

MAX_BINS = 60
"""Bins of the power curve; each costs one small request to the proxy."""
CLOCK_SKEW_SECONDS = 60.0
"""The proxy's clock may be behind ours by this much, and all is still found."""
_FAILURES = 3
_QUIET_ROUNDS = 4
"""Final books and nothing new for a second: nothing more will come."""

Waiting = Callable[[int, int], None]
"""Callback with the requests settled, and how many there are."""


@dataclass(frozen=True, slots=True)
class Patience:
    """Time and interval of asking the proxy for records not settled yet."""

    settle_seconds: float = 30.0
    """Settlement takes a second or two; a proxy that needs more has a problem."""
    poll_seconds: float = 0.25


PATIENCE = Patience()


@dataclass(slots=True)
class Energies:
    """The joules of this run's requests; about 0.6 KB each."""

    by_id: dict[str, EnergyPart] = field(default_factory=dict)
    from_unix_seconds: float = 0.0
    """The instant before which none of them settled."""
    cursor: int = 0
    reason: str | None = None
    """Why some may be missing."""

    def take(self, admin: Ledger, wanted: Mapping[str, str]) -> None:
        """Add the newly settled requests of this run. Raises AdminError."""
        for settled in admin.requests(self.cursor, self.from_unix_seconds):
            self.cursor = settled.cursor
            own = wanted.get(settled.request_id)
            if own is not None:
                energy = EnergyPart(**msgspec.structs.asdict(settled.energy))
                self.by_id[own] = energy


@dataclass(frozen=True, slots=True)
class Awaited:
    """Which requests of a run the proxy should know."""

    sent: dict[str, str]
    """Our ids, by those that a ledger may have: our own, or what a reply said."""
    reached: set[str]
    """Requests that had an answer: waiting for the others would never end."""


def awaited(path: Path) -> Awaited:
    """Read from the records which requests to ask for.

    The id that a reply gave counts where it is that of one reply alone, and none of
    our own.
    """
    sent: dict[str, str] = {}
    reached: set[str] = set()
    named: dict[str, str | None] = {}
    for result in read_results(path):
        own, other = result.request_id, result.reply_id
        if result.sent_seconds is not None:
            sent[own] = own
            if result.outcome == "ok" or result.status is not None:
                reached.add(own)
            if other is not None:
                named[other] = None if other in named else own
    for other, name in named.items():
        if name is not None:
            sent.setdefault(other, name)
    return Awaited(sent, reached)


def wait_for_energies(
    admin: Ledger,
    wanted: Awaited,
    end_unix_seconds: float | None,
    *,
    begin_unix_seconds: float = 0.0,
    waiting: Waiting | None = None,
    patience: Patience = PATIENCE,
) -> Energies:
    """Collect joules until all requests are settled, or no more can come.

    Ends early when the books are final up to the run's end and bring nothing
    new: the proxy never saw the rest. Books without a sensor never get further.
    """
    begin = max(0.0, begin_unix_seconds - CLOCK_SKEW_SECONDS)
    energies = Energies(from_unix_seconds=begin)
    deadline = time.monotonic() + patience.settle_seconds
    failures = quiet = 0
    while True:
        try:
            books = admin.books(end_unix_seconds)
            is_final = books.is_final
            before = len(energies.by_id)
            energies.take(admin, wanted.sent)
            failures = 0
        except AdminError as error:
            failures += 1
            energies.reason = str(error)
            if failures == _FAILURES:
                return energies
        else:
            energies.reason = None
            if waiting is not None:
                waiting(len(energies.by_id), len(wanted.reached))
            if is_final and energies.by_id.keys() >= wanted.reached:
                return energies
            is_quiet = is_final and len(energies.by_id) == before
            quiet = quiet + 1 if is_quiet else 0
            if quiet == _QUIET_ROUNDS:
                return _missing(energies, wanted, "the proxy has no record of them")
        if time.monotonic() >= deadline:
            return _missing(
                energies, wanted, f"not settled in {patience.settle_seconds:g} s"
            )
        time.sleep(patience.poll_seconds)


def join(path: Path, energies: Energies) -> None:
    """Write the joules into `requests.jsonl`, line by line, whole or not at all.

    Raises LoadgenError when the folder cannot be written; the file is then as
    it was.
    """
    encoder = msgspec.json.Encoder()
    try:
        with whole_file(path, mode=PRIVATE, is_durable=True) as out:
            for result in read_results(path):
                energy = energies.by_id.get(result.request_id)
                if energy is not None:
                    result = msgspec.structs.replace(result, energy=energy)
                out.write(encoder.encode(result) + b"\n")
    except OSError as error:
        reason = os_reason(error)
        raise LoadgenError(f"cannot write joules into {path}: {reason}") from None


def margin_seconds(admin: Ledger) -> float:
    """Seconds around a run within which its energy may lie. Raises AdminError.

    The proxy divides energy in intervals between counter updates: an edge that
    cuts the first or the last interval of a run would leave a part of its
    requests' joules outside.
    """
    books = admin.books()
    return books.window_seconds + 2 * (books.counter_period_seconds or 0.1)


def books_now(
    admin_url: str | None, admin_token: str | None = None
) -> BooksReply | None:
    """The books as they stand, for what its counters say; None where there are none."""
    if admin_url is None:
        return None
    with ledger_at(admin_url, token=admin_token) as admin, suppress(AdminError):
        return admin.books()
    return None


def read_metering(
    admin: Ledger,
    zero_unix_seconds: float,
    *,
    start_seconds: float,
    end_seconds: float,
    run_seconds: float,
    reason: str | None = None,
) -> Metering:
    """The books at both edges of the window, and along the run."""
    try:
        opening_unix_seconds = zero_unix_seconds + start_seconds
        opening = admin.books(opening_unix_seconds)
        closing = admin.books(zero_unix_seconds + end_seconds)
    except AdminError as error:
        return Metering(reason=str(error))
    begun = restarted_unix_seconds(opening, closing, opening_unix_seconds)
    if begun is not None:
        late = begun - zero_unix_seconds
        reason = f"the proxy was restarted {late:.1f} s into the run: no books span it"
    bins = min(MAX_BINS, int(run_seconds))  # a second or more each
    edges = (
        [run_seconds * index / bins for index in range(bins + 1)] if bins > 1 else []
    )
    try:
        curve = [admin.books(zero_unix_seconds + edge) for edge in edges]
    except AdminError:
        curve = []  # an extra: the totals above stand without it
    hardware: HardwareReply | None = None
    with suppress(AdminError):  # a proxy that is older than this
        hardware = admin.hardware(
            zero_unix_seconds + start_seconds, zero_unix_seconds + end_seconds
        )
    return Metering(
        opening=opening,
        closing=closing,
        window_seconds=end_seconds - start_seconds,
        curve=curve,
        edges_seconds=edges,
        hardware=hardware,
        constants=constants_now(admin),
        is_restarted=begun is not None,
        reason=reason,
    )


def constants_now(admin: Ledger) -> tuple[SavedCalibration, ...]:
    """The fitted constants and any doubt of them; none where the proxy tells none."""
    with suppress(AdminError, msgspec.DecodeError):
        document = msgspec.json.decode(admin.calibration(), type=CalibrationReply)
        return document.calibrations
    return ()


def restarted_unix_seconds(
    opening: BooksReply, closing: BooksReply, opening_unix_seconds: float
) -> float | None:
    """When the proxy whose books these are began, if that was inside the window."""
    begun = closing.run_unix_seconds
    if begun is None:
        return None  # a proxy that does not say
    is_same = opening.run == closing.run
    return None if is_same and begun <= opening_unix_seconds else begun


def _missing(energies: Energies, wanted: Awaited, why: str) -> Energies:
    missing = len(wanted.reached - energies.by_id.keys())
    if missing:
        energies.reason = (
            f"{missing} of {len(wanted.reached)} requests without joules: {why}"
        )
    return energies
