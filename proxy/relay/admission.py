"""What happens once it is settled which upstream gets a request: it is that one's.

Its record is opened there, with the instant of its arrival here; once, and never
at an upstream that could not be reached while another one could.
"""

from __future__ import annotations

from collections.abc import Callable

from proxy.engines.dialect import RequestFacts
from proxy.relay.client.request import Request
from proxy.relay.client.response import Outgoing
from proxy.relay.completion import EnergyEnding
from proxy.relay.core import Core
from proxy.relay.energy_trailer import wants_energy
from proxy.relay.routing.choosing import Stop
from proxy.relay.tap import Tap
from proxy.relay.upstream.upstream import Lane
from proxy.relay.usage_filter import UsageFilter
from proxy.wire.headers import request_head


def open_tap(
    core: Core, lane: Lane, request: Request, request_id: bytes, facts: RequestFacts
) -> Tap:
    """Tell the upstream's meter of a request."""
    key = lane.guard.opened(
        request_id.decode("ascii"),
        request.arrived_seconds,
        facts,
        core.labels.read(facts, request.headers),
    )
    at_seconds = request.arrived_seconds
    return Tap(lane.guard, lane.engine, lane.counters, key, at_seconds, request.headers)


def enter(
    core: Core,
    stop: Stop,
    request: Request,
    request_id: bytes,
    outgoing: Outgoing,
    on_over: Callable[[], None],
) -> tuple[Tap | None, EnergyEnding | None]:
    """Meter the request there if it is of that kind, and prepare its reply."""
    lane, admission = stop.lane, stop.admission
    if admission.has_usage_added:
        outgoing.drop_usage(UsageFilter(lane.engine))
    if admission.facts is None:
        lane.counters.unmetered += 1
        return None, None
    tap = open_tap(core, lane, request, request_id, admission.facts)
    if not wants_energy(request.headers, core.config.energy_in_response):
        return tap, None
    return tap, EnergyEnding(core, lane, tap, outgoing, request_id, on_over)


def bytes_for(stop: Stop, request: Request, request_id: bytes) -> bytes:
    """The request as it goes to that upstream."""
    upstream, body = stop.lane.upstream, stop.admission.body
    head = request_head(
        request.method,
        upstream.prefix + request.target,
        request.headers,
        authority=upstream.authority,
        request_id=request_id,
        body_size=len(body),
        is_metered=stop.admission.facts is not None,
    )
    return head + body
