"""What happens once it is settled which upstream gets a request: it is that one's.

Its record is opened there, with the instant of its arrival here; once, and never
at an upstream that could not be reached while another one could.
"""

from __future__ import annotations

from collections.abc import Callable

from proxy.relay.client.request import Request
from proxy.relay.client.response import Outgoing
from proxy.relay.completion import EnergyCompletion
from proxy.relay.core import Core
from proxy.relay.energy_trailer import wants_energy
from proxy.relay.routing.choosing import Candidate
from proxy.relay.tap import Tap
from proxy.relay.upstream.upstream import Upstream
from proxy.relay.usage_filter import UsageFilter
from proxy.wire.events import RequestOpened
from proxy.wire.facts import RequestFacts
from proxy.wire.headers import request_head


def open_tap(
    core: Core,
    upstream: Upstream,
    request: Request,
    request_id: bytes,
    facts: RequestFacts,
) -> Tap:
    """Tell the upstream's meter of a request."""
    key, at_seconds = upstream.guard.new_key(), request.arrived_seconds
    labels = core.labels.read(facts, request.headers)
    upstream.guard.feed(
        RequestOpened(key, at_seconds, request_id.decode("ascii"), facts, labels)
    )
    return Tap(
        upstream.guard,
        upstream.dialect,
        upstream.counters,
        key,
        at_seconds,
        request.headers,
    )


def enter(
    core: Core,
    candidate: Candidate,
    request: Request,
    request_id: bytes,
    outgoing: Outgoing,
    on_over: Callable[[], None],
) -> tuple[Tap | None, EnergyCompletion | None]:
    """Meter the request there if it is of that kind, and prepare its reply."""
    upstream, admission = candidate.upstream, candidate.admission
    if admission.has_usage_added:
        outgoing.drop_usage(UsageFilter(upstream.dialect))
    if admission.facts is None:
        upstream.counters.unmetered += 1
        return None, None
    tap = open_tap(core, upstream, request, request_id, admission.facts)
    if not wants_energy(request.headers, core.config.energy_in_response):
        return tap, None
    return tap, EnergyCompletion(core, upstream, tap, outgoing, request_id, on_over)


def bytes_for(candidate: Candidate, request: Request, request_id: bytes) -> bytes:
    """The request as it goes to that upstream."""
    upstream, body = candidate.upstream.address, candidate.admission.body
    head = request_head(
        request.method,
        upstream.prefix + request.target,
        request.headers,
        authority=upstream.authority,
        request_id=request_id,
        body_size=len(body),
        is_metered=candidate.admission.facts is not None,
    )
    return head + body
