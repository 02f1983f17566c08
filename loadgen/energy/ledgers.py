"""The ledger of a run: the admin API of one proxy, or of several as if they were one.

Where two engines serve a request, each behind a proxy of its own, the joules of one
request are on two ledgers. Rule: what a leg took is counted once; a request has joules
when both of its legs have, and books of several proxies are summed as those of several
engines are: null where one is null.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import Any, Protocol, Self
from urllib.parse import urlsplit

import msgspec

from loadgen.energy.addresses import SEPARATOR, urls_of
from proxy.admin.client import TIMEOUT_SECONDS, AdminClient, AdminError
from proxy.wire.api import (
    BooksReply,
    CalibrationReply,
    EnergyReply,
    HardwareReply,
    ReadinessReply,
    RequestReply,
)
from proxy.wire.legs import GRADES, Leg, joined, leg_of
from proxy.wire.sums import fleet_books

JOULES = tuple(
    name
    for name in EnergyReply.__struct_fields__
    if name.endswith("_joules") and name != "policy_joules"
)
"""Figures of a request's energy that are one number."""


class Ledger(Protocol):
    """What a run asks its meter; every call may raise AdminError."""

    def __enter__(self) -> Self:
        """Open its connections."""

    def __exit__(self, *_: object) -> None:
        """Close them."""

    def books(self, at_unix_seconds: float | None = None) -> BooksReply:
        """The accounts up to an instant, or up to now."""

    def requests(
        self, cursor: int, from_unix_seconds: float = 0.0
    ) -> Iterator[RequestReply]:
        """Every request settled after this one, oldest first."""

    def readiness(self) -> ReadinessReply:
        """Whether requests are served and their joules known."""

    def hardware(
        self, from_unix_seconds: float, to_unix_seconds: float
    ) -> HardwareReply:
        """How the boards worked between two instants."""

    def calibration(self) -> bytes:
        """The document of all calibrations."""


def ledger_at(
    text: str, *, token: str | None = None, timeout_seconds: float = TIMEOUT_SECONDS
) -> Ledger:
    """The ledger of the proxy at an admin URL, or of those at several."""
    clients = [
        AdminClient(url, token=token, timeout_seconds=timeout_seconds)
        for url in urls_of(text)
    ]
    return clients[0] if len(clients) == 1 else Ledgers(clients)


class Ledgers:
    """Several proxies as one ledger, for one reader that asks again and again."""

    def __init__(self, proxies: Sequence[AdminClient]) -> None:
        self._proxies = {_name(proxy.url): proxy for proxy in proxies}
        self._cursors = dict.fromkeys(self._proxies, 0)
        self._legs: dict[str, list[tuple[Leg, RequestReply]]] = {}
        """Legs whose partner has not come yet, by request."""
        self._boundaries: dict[str, str | None] = {}
        """Of the joules of each proxy."""
        self._given = 0
        self._open = ExitStack()

    def __enter__(self) -> Self:
        for proxy in self._proxies.values():
            self._open.enter_context(proxy)
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def books(self, at_unix_seconds: float | None = None) -> BooksReply:
        """The sum of all books; it belongs to the runs of all of them."""
        found = {
            name: proxy.books(at_unix_seconds) for name, proxy in self._proxies.items()
        }
        self._boundaries = {name: books.boundary for name, books in found.items()}
        began = [books.run_unix_seconds or 0.0 for books in found.values()]
        return fleet_books(
            found,
            run=SEPARATOR.join(str(books.run) for books in found.values()),
            run_unix_seconds=max(began),
        )

    def requests(
        self, cursor: int, from_unix_seconds: float = 0.0
    ) -> Iterator[RequestReply]:
        """Requests whose legs are all here, since this was asked last.

        `cursor` is not used: each proxy has one of its own, which is kept here.
        """
        if not self._boundaries:
            self.books()
        changed: dict[str, None] = {}
        for name, proxy in self._proxies.items():
            for record in proxy.requests(self._cursors[name], from_unix_seconds):
                self._cursors[name] = record.cursor
                if record.leg is None:
                    yield self._numbered(record)
                    continue
                leg = leg_of(record, name, self._boundaries[name])
                self._legs.setdefault(record.request_id, []).append((leg, record))
                changed[record.request_id] = None
        for request_id in changed:
            whole = whole_of(self._legs[request_id])
            if whole is not None:
                del self._legs[request_id]
                yield self._numbered(whole)

    def _numbered(self, record: RequestReply) -> RequestReply:
        self._given += 1
        return msgspec.structs.replace(record, cursor=self._given)

    def readiness(self) -> ReadinessReply:
        """Ready when all are."""
        found = {name: proxy.readiness() for name, proxy in self._proxies.items()}
        lacking = {
            f"{boundary} at {name}": reason
            for name, reply in found.items()
            for boundary, reason in (reply.lacking or {}).items()
        }
        return ReadinessReply(
            ready=all(reply.ready for reply in found.values()),
            upstream=all(reply.upstream for reply in found.values()),
            sensor=all(reply.sensor for reply in found.values()),
            reasons=[
                f"{name}: {reason}"
                for name, reply in found.items()
                for reason in reply.reasons
            ],
            lacking=lacking,
        )

    def hardware(
        self, from_unix_seconds: float, to_unix_seconds: float
    ) -> HardwareReply:
        """The boards of all of them, each engine by its name and its proxy's."""
        found = {
            name: proxy.hardware(from_unix_seconds, to_unix_seconds)
            for name, proxy in self._proxies.items()
        }
        first, *_ = found.values()
        return HardwareReply(
            from_unix_seconds=first.from_unix_seconds,
            to_unix_seconds=first.to_unix_seconds,
            engines={
                f"{engine} at {name}": boards
                for name, reply in found.items()
                for engine, boards in reply.engines.items()
            },
        )

    def calibration(self) -> bytes:
        """All calibrations in one document."""
        found: list[CalibrationReply] = []
        for name, proxy in self._proxies.items():
            try:
                document = msgspec.json.decode(
                    proxy.calibration(), type=CalibrationReply
                )
            except msgspec.MsgspecError as error:
                raise AdminError(name, f"is not understood: {error}") from None
            found.append(document)
        every = tuple(each for document in found for each in document.calibrations)
        return msgspec.json.encode(CalibrationReply(every))


def _name(url: str) -> str:
    return urlsplit(url).netloc


def whole_of(legs: Sequence[tuple[Leg, RequestReply]]) -> RequestReply | None:
    """The newest request of two legs among these of one id; None without any."""
    pairs = [each for each in joined(leg for leg, _ in legs) if each.is_pair]
    if not pairs:
        return None
    newest = pairs[-1]
    of_leg = {id(leg): record for leg, record in legs}
    prefill, decode = of_leg[id(newest.prefill)], of_leg[id(newest.decode)]
    energy = summed_energy(prefill.energy, decode.energy)
    return msgspec.structs.replace(
        decode,
        arrived_unix_seconds=newest.arrived_unix_seconds,
        scheduled_unix_seconds=prefill.scheduled_unix_seconds,
        cached_tokens=prefill.cached_tokens,
        leg=None,
        energy=unknown(energy) if newest.energy_joules is None else energy,
    )


def summed_energy(one: EnergyReply, other: EnergyReply) -> EnergyReply:
    """Joules of two legs as those of one request; each null where one of them is.

    Bounds are added: two sensors of one make may be off alike. Other boundaries than
    the headline's are left out.
    """
    joules: dict[str, Any] = {
        name: _sum(getattr(one, name), getattr(other, name)) for name in JOULES
    }
    shared = one.policy_joules.keys() & other.policy_joules.keys()
    reasons = dict.fromkeys((*one.grade_reasons, *other.grade_reasons))
    return EnergyReply(
        **joules,
        policy=one.policy if one.policy == other.policy else "mixed",
        policy_joules={
            name: one.policy_joules[name] + other.policy_joules[name]
            for name in sorted(shared)
        },
        quality=_worse(one.quality, other.quality, ("exact", "estimated", "unknown")),
        timing=_worse(one.timing, other.timing, ("timed", "estimated", "unknown")),
        grade=_worse(one.grade, other.grade, GRADES),
        grade_reasons=tuple(reasons),
    )


def unknown(energy: EnergyReply) -> EnergyReply:
    """The same without any joule."""
    return msgspec.structs.replace(
        energy,
        **dict.fromkeys(JOULES),
        policy_joules={},
        quality="unknown", timing="unknown", grade="unknown",
    )  # fmt: skip


def _sum(one: float | None, other: float | None) -> float | None:
    return None if one is None or other is None else one + other


def _worse(one: str | None, other: str | None, order: Sequence[str]) -> str:
    """The later one in this order; what is not in it is the worst."""
    return max(
        (value or order[-1] for value in (one, other)),
        key=lambda value: order.index(value) if value in order else len(order),
    )
