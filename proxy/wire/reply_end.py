"""Whether a reply ended well: one rule for ledger and load. Pure.

Status 200 is not success: a stream may hold an error in any of its events, and one
that breaks off is an error where its dialect always says when it is done. Other
dialects have ended once they gave a reason for it.
"""

from __future__ import annotations

from proxy.wire.facts import Update

CUT_SHORT = "the stream ended before its end marker"


def why_no_reply(kind: str, body: bytes) -> str | None:
    """Why a body that is no stream is no whole reply in its place; None if it is JSON.

    Some servers answer a request for a stream with one whole reply.
    """
    if body.lstrip()[:1] in (b"{", b"["):
        return None
    return f"asked for a stream, got {kind or 'no content type'}"


class ReplyEnd:
    """What a reply has told of its end so far; `note` every update, in order."""

    __slots__ = ("_has_reason", "_is_ended", "_requires_end", "error", "was_computed")

    def __init__(self, *, requires_end: bool) -> None:
        self._requires_end = requires_end
        self._is_ended = False
        self._has_reason = False
        self.error: str | None = None
        """The first that came; what follows an error follows from it."""
        self.was_computed = False
        """An error by status that came after work."""

    def note(self, update: Update) -> None:
        """One more update of the reply."""
        if update.error is not None:
            self.error = self.error or update.error
            self.was_computed = self.was_computed or update.was_computed
        elif update.is_end:
            self._is_ended = True
        if update.finish_reason is not None:
            self._has_reason = True

    @property
    def is_whole(self) -> bool:
        """Whether nothing is missing, as far as the dialect tells."""
        return self._is_ended or (self._has_reason and not self._requires_end)

    @property
    def is_decided(self) -> bool:
        """Whether the client had read how it ended."""
        return self._is_ended or self.error is not None

    def failure(self) -> str | None:
        """Why a stream that brings no more is no whole reply; None if it is."""
        return self.error or (None if self.is_whole else CUT_SHORT)
