"""Which requests are turns of one session. Pure.

A request is the next turn of the session whose last prompt and reply it begins with;
else of the one whose header it has. It is one only where nothing else of that session
is in flight: what overlaps did not wait for a reply, so it is a session of its own and
keeps its time in a replay.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

MAX_TURNS = 1000
"""Of one session; a header that all requests of a client have is more than that."""
MAX_SESSIONS = 100_000
"""Known at a time, the oldest unused one goes first."""


@dataclass(slots=True, eq=False)
class Session:
    """A conversation up to now."""

    session_id: str
    header: int | None
    turns: int = 0
    is_open: bool = True
    """Its last turn is in flight."""
    ended_seconds: float = 0.0
    tokens: int | None = None
    """Of its last prompt and reply; None: not known."""
    digest: int | None = None
    """Hash of its last prompt and reply."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a request stands in its session."""

    session: Session
    turn: int
    think_seconds: float = 0.0
    continues_tokens: int | None = None
    """Tokens it begins with, the last prompt and reply; None: it does not."""


class Conversations:
    """Sessions by what was said in them, and by header."""

    def __init__(self, max_sessions: int = MAX_SESSIONS) -> None:
        self._max_sessions = max_sessions
        self._by_digest: OrderedDict[int, Session] = OrderedDict()
        self._by_header: OrderedDict[int, Session] = OrderedDict()

    def knows(self, header: int) -> bool:
        """Whether a session of this header has been seen."""
        return header in self._by_header

    def arrive(
        self,
        new_id: str,
        header: int | None,
        beginnings: Sequence[int],
        at_seconds: float,
    ) -> Place:
        """The place of a request; `new_id` names a session that begins with it.

        `beginnings` are hashes of all that it begins with, the longest last.
        """
        continued = self._continued(header, beginnings)
        session = continued
        if session is None and header is not None:
            session = self._by_header.get(header)
        if session is None or session.is_open or session.turns >= MAX_TURNS:
            continued = None
            session = Session(new_id, header)
        if header is not None:
            _keep(self._by_header, header, session, self._max_sessions)
        if session.digest is not None:
            self._by_digest.pop(session.digest, None)
            session.digest = None
        think_seconds = max(0.0, at_seconds - session.ended_seconds)
        session.turns += 1
        session.is_open = True
        return Place(
            session,
            session.turns,
            think_seconds if session.turns > 1 else 0.0,
            None if continued is None else session.tokens,
        )

    def end(
        self, place: Place, at_seconds: float, tokens: int | None, digest: int | None
    ) -> None:
        """A request ended; `digest` is of all that was said up to here."""
        session = place.session
        session.is_open = False
        session.ended_seconds, session.tokens = at_seconds, tokens
        session.digest = digest
        if digest is not None:
            _keep(self._by_digest, digest, session, self._max_sessions)

    def _continued(
        self, header: int | None, beginnings: Sequence[int]
    ) -> Session | None:
        for digest in reversed(beginnings):
            session = self._by_digest.get(digest)
            if session is not None and session.header == header:
                return session if session.digest == digest else None
        return None


def _keep(
    known: OrderedDict[int, Session], name: int, session: Session, limit: int
) -> None:
    known[name] = session
    known.move_to_end(name)
    if len(known) > limit:
        known.popitem(last=False)
