"""The end of a reply that tells its own energy: held until that can be told.

A stream is held from its `[DONE]` on, where it has one, else at the end of the
body; a JSON reply is held whole. By default the energy is told at once, as far as
it is known; `energy_wait_seconds` waits, at most so long, for its settlement.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace

from proxy.relay.client.response import Outgoing, with_length
from proxy.relay.core import Core
from proxy.relay.energy_trailer import (
    END_MARK,
    can_hold_energy,
    comment_of,
    is_end,
    note_of,
    with_energy,
)
from proxy.relay.tap import MAX_REPLY_BYTES, Tap
from proxy.relay.upstream.connection import ReplyHead
from proxy.relay.upstream.upstream import Upstream
from proxy.wire.event_search import EventSearch
from proxy.wire.headers import is_event_stream

LOOK_SECONDS = 0.02
"""How often a reply that waits asks whether it is settled; the meter's beat is
no faster."""


class EnergyCompletion:
    """Stands between the engine's reads and `Outgoing` for one reply."""

    __slots__ = (
        "_core",
        "_deadline_seconds",
        "_head",
        "_held",
        "_is_done",
        "_is_whole",
        "_on_over",
        "_outgoing",
        "_provenance",
        "_request_id",
        "_search",
        "_tap",
        "_timer",
    )

    def __init__(
        self,
        core: Core,
        upstream: Upstream,
        tap: Tap,
        outgoing: Outgoing,
        request_id: bytes,
        on_over: Callable[[], None],
    ) -> None:
        self._core = core
        self._provenance = upstream.provenance
        self._tap = tap
        self._outgoing = outgoing
        self._request_id = request_id
        self._on_over = on_over
        self._head: ReplyHead | None = None
        self._search: EventSearch | None = None
        self._held = bytearray()
        self._is_done = True
        self._is_whole = False
        self._deadline_seconds: float | None = None
        self._timer: asyncio.TimerHandle | None = None

    def begin(self, head: ReplyHead) -> None:
        """The reply's head: a stream, a document, or nothing to add to."""
        self._is_done = not can_hold_energy(head.status, head.headers)
        if is_event_stream(head.headers):
            self._search = EventSearch(END_MARK, is_end)
        else:
            self._head = head

    def deliver(self, data: bytes, is_last: bool) -> None:
        """One read of the reply; the tap has it already. Calls `on_over` once."""
        self._is_whole = is_last
        if self._is_done:
            self._pass_on(data)
        elif self._search is None:
            self._hold_document(data)
        else:
            self._hold_completion(self._search, data)

    def cancel(self) -> None:
        """The exchange is over: nobody waits any more."""
        if self._timer is not None:
            self._timer.cancel()

    def _pass_on(self, data: bytes) -> None:
        self._outgoing.write(data, is_last=self._is_whole)
        if self._is_whole:
            self._on_over()

    def _hold_document(self, data: bytes) -> None:
        self._held += data
        if len(self._held) > MAX_REPLY_BYTES:
            self._is_done = True
            self._pass_on(bytes(self._held))
        elif self._is_whole:
            self._tell()

    def _hold_completion(self, search: EventSearch, data: bytes) -> None:
        if search.found is None:
            before = search.feed(data)
            if before:
                self._outgoing.write(before, is_last=False)
            self._held += b"".join(search.found or ())
        else:
            self._held += data
        if self._timer is None and (search.found is not None or self._is_whole):
            self._tell()

    def _tell(self) -> None:
        """Tell the energy now, or look again if it may be settled in time."""
        core = self._core
        now_seconds = core.clock()
        if self._deadline_seconds is None:
            wait_seconds = core.config.energy_wait_seconds
            self._deadline_seconds = now_seconds + wait_seconds
        so_far = self._tap.energy(now_seconds)
        left_seconds = self._deadline_seconds - now_seconds
        if left_seconds > 0 and so_far is not None and not so_far.is_settled:
            self._timer = core.loop.call_later(
                min(left_seconds, LOOK_SECONDS), self._tell
            )
            return
        self._timer = None
        self._is_done = True
        note = note_of(so_far, self._provenance(), self._request_id.decode("ascii"))
        if self._search is None:
            self._end_document(note)
        else:
            self._end_stream(self._search, note)

    def _end_document(self, note: bytes) -> None:
        body = bytes(self._held)
        told = with_energy(body, note)
        if self._head is not None and told is not body:
            headers = with_length(self._head.headers, len(told))
            self._outgoing.begin(replace(self._head, headers=headers))
        self._pass_on(told)

    def _end_stream(self, search: EventSearch, note: bytes) -> None:
        """Before `[DONE]`; else at the end, unless that is within an event."""
        if search.found is None and is_end(search.held):
            self._held += search.flush()
        elif search.found is None and not search.is_between_events:
            self._pass_on(search.flush())
            return
        self._pass_on(comment_of(note) + self._held)
