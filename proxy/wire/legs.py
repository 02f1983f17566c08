"""Requests that two engines served, put together from the records of both: their legs.

Rule: a joule is counted once, in the leg that it was measured in. The energy of a
request is that of its two legs together, null where one of them is unknown or was
measured inside another boundary; a leg without a partner keeps its joules and is told.
Bounds are added as they are: two meters of one make may be off alike, and where they
are not the interval is wider than it had to be. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from msgspec import Struct

from proxy.wire.api import RequestReply
from proxy.wire.facts import LEGS

HANDOVER_SECONDS = 600.0
"""A prefill leg hands over no later: vLLM frees its blocks after 480 s."""
SKEW_SECONDS = 60.0
"""The clocks of two hosts differ by less."""
GRADES = ("good", "fair", "poor", "unknown")
"""From best to worst."""


class Leg(Struct, frozen=True, kw_only=True):
    """One half of a request, as one proxy recorded it."""

    leg: str | None
    """`prefill`, `decode`, or null: the request was whole."""
    request_id: str
    proxy: str | None
    """Name (`--instance`) or URL of the proxy that recorded it."""
    engine: str | None
    boundary: str | None
    model: str | None
    tenant: str | None
    outcome: str | None
    arrived_unix_seconds: float
    finished_unix_seconds: float
    prompt_tokens: int | None
    cached_tokens: int | None
    output_tokens: int | None
    prefill_joules: float | None
    decode_joules: float | None
    idle_share_joules: float | None
    energy_joules: float | None
    low_joules: float | None
    high_joules: float | None
    grade: str | None
    is_output_lower_bound: bool | None = None
    """The reply broke off: the engine may have made more tokens."""


class JoinedRequest(Struct, frozen=True, kw_only=True):
    """A request of two legs; one without a partner has the other as null."""

    request_id: str
    model: str | None
    tenant: str | None
    outcome: str | None
    """That of the decode leg; of the prefill leg where it came alone."""
    arrived_unix_seconds: float
    finished_unix_seconds: float
    prompt_tokens: int | None
    """Counted once: both legs have the same prompt."""
    output_tokens: int | None
    """Of the decode leg, which writes the reply; 0 where there is none."""
    energy_joules: float | None
    """Of both legs together."""
    low_joules: float | None
    high_joules: float | None
    grade: str | None
    """The worse of the two."""
    reason: str | None
    """Why the energy is null."""
    prefill: Leg | None
    decode: Leg | None

    @property
    def is_pair(self) -> bool:
        """Whether both legs are recorded."""
        return self.prefill is not None and self.decode is not None


def leg_of(record: RequestReply, proxy: str | None, boundary: str | None) -> Leg:
    """A record as a leg, or as a whole request; `boundary` is that of its joules."""
    energy = record.energy
    arrived = record.arrived_unix_seconds or 0.0
    return Leg(
        leg=record.leg if record.leg in LEGS else None,
        request_id=record.request_id,
        proxy=proxy,
        engine=record.engine,
        boundary=boundary,
        model=record.model,
        tenant=record.tenant,
        outcome=record.outcome,
        arrived_unix_seconds=arrived,
        finished_unix_seconds=record.finished_unix_seconds or arrived,
        prompt_tokens=record.prompt_tokens,
        cached_tokens=record.cached_tokens,
        output_tokens=record.output_tokens,
        prefill_joules=energy.prefill_joules,
        decode_joules=energy.decode_joules,
        idle_share_joules=energy.idle_share_joules,
        energy_joules=energy.energy_joules,
        low_joules=energy.low_joules,
        high_joules=energy.high_joules,
        grade=energy.grade,
        is_output_lower_bound=record.is_output_lower_bound,
    )


def joined(legs: Iterable[Leg]) -> list[JoinedRequest]:
    """The requests that these are legs of, in order of arrival; whole ones left out.

    Legs of one id are partners where the decode leg arrives after the prefill leg and
    at most `HANDOVER_SECONDS` after its end. An id may come again, as a retry or by a
    client that uses it twice: the partner is the latest prefill leg before, one that
    was answered rather than one that failed, and each leg has one partner at most.
    """
    by_id: dict[str, list[Leg]] = {}
    for leg in legs:
        if leg.leg is not None:
            by_id.setdefault(leg.request_id, []).append(leg)
    found = [
        _request(prefill, decode)
        for some in by_id.values()
        for prefill, decode in _pairs(some)
    ]
    found.sort(key=lambda each: (each.arrived_unix_seconds, each.request_id))
    return found


def _pairs(legs: Sequence[Leg]) -> Iterator[tuple[Leg | None, Leg | None]]:
    """Every leg of one id once, with its partner or alone; linear in their number."""
    if len(legs) == 1:
        (alone,) = legs
        yield (alone, None) if alone.leg == "prefill" else (None, alone)
        return
    answered: list[Leg] = []
    failed: list[Leg] = []
    early: list[Leg] = []
    for leg in sorted(legs, key=_order):
        if leg.leg == "prefill":
            (answered if leg.outcome == "ok" else failed).append(leg)
            continue
        for waiting in (answered, failed):
            if waiting and _hands_over(waiting[-1], leg):
                yield waiting.pop(), leg
                break
        else:
            early.append(leg)
    # by clocks that differ a decode leg may seem to come before its prefill leg
    rest = sorted([*answered, *failed], key=_order)
    at = 0
    for leg in early:
        arrived = leg.arrived_unix_seconds
        while at < len(rest) and rest[at].arrived_unix_seconds < arrived:
            yield rest[at], None
            at += 1
        if at < len(rest) and rest[at].arrived_unix_seconds - arrived <= SKEW_SECONDS:
            yield rest[at], leg
            at += 1
        else:
            yield None, leg
    for leg in rest[at:]:
        yield leg, None


def _order(leg: Leg) -> tuple[float, int]:
    return leg.arrived_unix_seconds, LEGS.index(leg.leg or "decode")


def _hands_over(prefill: Leg, decode: Leg) -> bool:
    waited = decode.arrived_unix_seconds - prefill.finished_unix_seconds
    return waited <= HANDOVER_SECONDS


def _request(prefill: Leg | None, decode: Leg | None) -> JoinedRequest:
    both = [leg for leg in (prefill, decode) if leg is not None]
    last = both[-1]
    energy, reason = _energy(prefill, decode)
    is_known = energy is not None
    prompts = [leg.prompt_tokens for leg in both if leg.prompt_tokens is not None]
    return JoinedRequest(
        request_id=last.request_id,
        model=last.model,
        tenant=last.tenant,
        outcome=last.outcome,
        arrived_unix_seconds=min(leg.arrived_unix_seconds for leg in both),
        finished_unix_seconds=max(leg.finished_unix_seconds for leg in both),
        prompt_tokens=prompts[0] if prompts else None,
        output_tokens=0 if decode is None else decode.output_tokens,
        energy_joules=energy,
        low_joules=_sum(leg.low_joules for leg in both) if is_known else None,
        high_joules=_sum(leg.high_joules for leg in both) if is_known else None,
        grade=max((leg.grade or "unknown" for leg in both), key=_rank),
        reason=reason,
        prefill=prefill,
        decode=decode,
    )


def _rank(grade: str) -> int:
    return GRADES.index(grade) if grade in GRADES else len(GRADES)


def _energy(prefill: Leg | None, decode: Leg | None) -> tuple[float | None, str | None]:
    """Joules of both legs, or why they have no sum."""
    if prefill is None or decode is None:
        lacking = LEGS[0] if prefill is None else LEGS[1]
        return None, f"no {lacking} leg is recorded"
    unknown = [str(leg.leg) for leg in (prefill, decode) if leg.energy_joules is None]
    if unknown:
        return None, f"the energy of its {' and its '.join(unknown)} leg is unknown"
    if prefill.boundary != decode.boundary:
        inside = f"{prefill.boundary or '?'} and {decode.boundary or '?'}"
        return None, f"its legs were measured inside different boundaries: {inside}"
    return _sum([prefill.energy_joules, decode.energy_joules]), None


def _sum(values: Iterable[float | None]) -> float | None:
    found = list(values)
    known = [value for value in found if value is not None]
    return sum(known) if found and len(known) == len(found) else None


# -- totals ----------------------------------------------------------------------------


class LegSum(Struct, frozen=True, kw_only=True):
    """Legs of one role inside one boundary; joules of those that have them."""

    leg: str
    boundary: str | None
    legs: int
    legs_without_energy: int
    legs_alone: int
    """Legs without a partner; they are in all of these figures, too."""
    alone_joules: float
    prefill_joules: float
    decode_joules: float
    idle_share_joules: float
    energy_joules: float
    low_joules: float | None
    """Null unless all of those with joules have bounds."""
    high_joules: float | None


class LegTotals(Struct, frozen=True, kw_only=True):
    """All of a list of joined requests, each counted once."""

    requests: int
    pairs: int
    """Requests with both legs."""
    pairs_without_energy: int
    prompt_tokens: int
    """Each prompt once."""
    output_tokens: int
    requests_without_tokens: int
    """Of those, what lacks one of the two counts, or of which the reply broke off."""
    pair_joules: float | None
    """Of pairs whose energy is known; null where there are none."""
    joules_per_pair: float | None
    prefill_joules_per_pair: float | None
    """Of the prefill leg, all of its joules."""
    decode_joules_per_pair: float | None
    by_leg: list[LegSum]


_Placed = tuple[Leg, bool]
"""A leg, and whether it has no partner."""


def leg_totals(requests: Iterable[JoinedRequest]) -> LegTotals:
    """What these requests took, on each engine and together."""
    found = list(requests)
    pairs = [each for each in found if each.is_pair]
    known = [each for each in pairs if each.energy_joules is not None]
    placed: dict[tuple[str, str | None], list[_Placed]] = {}
    for each in found:
        for leg in (each.prefill, each.decode):
            if leg is not None:
                some = placed.setdefault((str(leg.leg), leg.boundary), [])
                some.append((leg, not each.is_pair))
    return LegTotals(
        requests=len(found),
        pairs=len(pairs),
        pairs_without_energy=len(pairs) - len(known),
        prompt_tokens=sum(each.prompt_tokens or 0 for each in found),
        output_tokens=sum(each.output_tokens or 0 for each in found),
        requests_without_tokens=sum(
            each.prompt_tokens is None
            or each.output_tokens is None
            or bool(each.decode and each.decode.is_output_lower_bound)
            for each in found
        ),
        pair_joules=_sum(each.energy_joules for each in known),
        joules_per_pair=_mean([each.energy_joules for each in known]),
        prefill_joules_per_pair=_mean(
            [each.prefill.energy_joules for each in known if each.prefill]
        ),
        decode_joules_per_pair=_mean(
            [each.decode.energy_joules for each in known if each.decode]
        ),
        by_leg=[_leg_sum(*key, placed[key]) for key in sorted(placed, key=_leg_order)],
    )


def _leg_order(key: tuple[str, str | None]) -> tuple[str, int]:
    return key[1] or "", LEGS.index(key[0])


def _leg_sum(leg: str, boundary: str | None, legs: Sequence[_Placed]) -> LegSum:
    known = [each for each, _ in legs if each.energy_joules is not None]
    alone = [each for each, is_alone in legs if is_alone]
    return LegSum(
        leg=leg,
        boundary=boundary,
        legs=len(legs),
        legs_without_energy=len(legs) - len(known),
        legs_alone=len(alone),
        alone_joules=sum(each.energy_joules or 0.0 for each in alone),
        prefill_joules=sum(each.prefill_joules or 0.0 for each in known),
        decode_joules=sum(each.decode_joules or 0.0 for each in known),
        idle_share_joules=sum(each.idle_share_joules or 0.0 for each in known),
        energy_joules=sum(each.energy_joules or 0.0 for each in known),
        low_joules=_sum(each.low_joules for each in known),
        high_joules=_sum(each.high_joules for each in known),
    )


def _mean(values: Sequence[float | None]) -> float | None:
    total = _sum(values)
    return None if total is None else total / len(values)
