"""When a run has failed so badly that the rest of its plan is not worth sending.

Pure: told of every record, it says why to stop. A target that nobody answers at is
given up without being asked for; any other number of failures is the user's to set.
"""

from __future__ import annotations

from loadgen.results.results import Result

DEAD_SECONDS = 30.0
"""An engine that is restarted by its supervisor may answer again within this."""
DEAD_REQUESTS = 20
"""Several at least: a slow plan sends few."""

UNREACHABLE = frozenset([None, 502])
"""Status of a request that met no engine: none, or a proxy's before a dead one."""


class ErrorLimit:
    """Failures of a run so far, and whether they are too many."""

    def __init__(self, max_errors: int | None = None) -> None:
        self._max_errors = max_errors
        self._errors = 0
        self._unreached = 0
        self._unreached_since = 0.0
        self.reason: str | None = None
        """Why the run is to end; None while it is not."""

    def note(self, result: Result) -> None:
        """One more record of the run; those never sent do not count."""
        if result.outcome in ("dropped", "aborted"):
            return
        if result.outcome == "ok":
            self._unreached = 0
            return
        self._errors += 1
        is_unreached = result.outcome == "error" and result.status in UNREACHABLE
        is_unreached &= result.first_token_seconds is None
        at_seconds = result.finished_seconds
        if not is_unreached:
            self._unreached = 0
        elif self._unreached == 0:
            self._unreached, self._unreached_since = 1, at_seconds
        else:
            self._unreached += 1
        self.reason = self.reason or self._why(at_seconds)

    def _why(self, at_seconds: float) -> str | None:
        if self._max_errors is not None and self._errors >= self._max_errors:
            return f"{self._errors} requests failed (--max-errors {self._max_errors})"
        seconds = at_seconds - self._unreached_since
        if self._unreached >= DEAD_REQUESTS and seconds >= DEAD_SECONDS:
            return (
                f"no engine answered any of {self._unreached} requests in "
                f"{seconds:.0f} s"
            )
        return None
