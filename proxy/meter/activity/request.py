"""One request as the wire tells it: stamps, token counts, facts.

Tokens are counted by the rule of `proxy.wire.token_count`; `token_scale` corrects
the count of the events once the engine's own is known.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from proxy.meter.activity.event_pace import EventPace
from proxy.wire.facts import PhaseSeconds, RequestFacts, Update
from proxy.wire.token_count import TokenCount

TICK_SECONDS = 1e-6
"""Keeps steps apart that are in one cluster."""


class TokenLog:
    """Every read that bore tokens, of all requests: stamp, key, tokens, and how many
    the request had received before.

    Rows arrive in any order; a `StepBook` takes them over. They are one flat list, as
    a read then is one call of `add_row`, which takes the four as a tuple: a call for
    each column, or an array to write to, costs twice as much with every token.
    """

    __slots__ = ("_cells", "add_row", "pace")

    def __init__(self) -> None:
        self.pace = EventPace()
        self._cells: list[float] = []
        self.add_row = self._cells.extend

    def add(self, seconds: float, key: int, tokens: float, before: float) -> None:
        """One read of one request."""
        self.add_row((seconds, key, tokens, before))

    def table(self) -> NDArray[np.float64]:
        """All rows, shape (reads, 4)."""
        cells = self._cells
        return np.fromiter(cells, np.float64, len(cells)).reshape(-1, 4)

    def take(self, until_seconds: float) -> NDArray[np.float64]:
        """The rows stamped up to an instant, which are here no more."""
        table = self.table()
        is_due = table[:, 0] <= until_seconds
        self.clear()
        if is_due.all():
            return table
        self.add_row(table[~is_due].ravel().tolist())
        return np.asarray(table[is_due], np.float64)

    @property
    def seconds(self) -> NDArray[np.float64]:
        """Stamp of every read."""
        return self.table()[:, 0]

    @property
    def tokens(self) -> NDArray[np.float64]:
        """Tokens of every read."""
        return self.table()[:, 2]

    @property
    def before(self) -> NDArray[np.float64]:
        """Tokens that the request had before every read."""
        return self.table()[:, 3]

    def clear(self) -> None:
        """Forget all rows."""
        del self._cells[:]


INFINITY = float("inf")

PAUSE_SECONDS = 0.05
"""Longer between two tokens: look whether others went on meanwhile."""
UNUSUAL_GAPS = 3.0
"""So many times a request's mean gap until then: slow streams do not pause at each
token, though others go on meanwhile (several engines behind one address)."""

SHORT_PAUSE_SECONDS, SHORT_PAUSE_GAPS = 0.008, 1.5
"""The same where the engine says that it preempts: two steps of a small model, and less
than two of any, beside gaps that were no pauses. Who lost its cache may be back in the
next step, and its gap is then two steps."""


class Pause(NamedTuple):
    """Between two tokens of a stream, longer than is usual."""

    stopped_seconds: float
    """The last token before it."""
    resumed_seconds: float
    tokens_before: float
    """Tokens before the one that ended it."""
    is_short: bool
    """Looked at only because the engine says that it preempts."""


LATE_FACTS_SECONDS = 1.0
"""So long after its first token a prompt is placed, with what the engine has told by
then: its phase times and cached tokens come with the last event of a stream."""

LATE_HITS_SECONDS = 3.0
"""The same where a cache is in use: what it held changes a prompt most."""

CONFIRMED_SECONDS, CONFIRMED_PART = 0.03, 0.05
"""A place is confirmed by what is told later if that is so near, in seconds or by the
prompt's time."""
CONFIRMED_TOKENS, CONFIRMED_TOKENS_PART = 32.0, 0.02


class RequestTimeline(TokenCount):
    """Mutable record of one request in flight; instants in monotonic seconds.

    `waited_until_seconds` is when the engine's gauges last showed it in the queue;
    `ran_on_seconds` until when they showed it running after its client had left,
    while `may_be_orphan` says that this is not decided yet. The tokens of a reply
    in one piece have no place yet (`is_unspread`). A window was closed before all
    of its facts were known (`is_forced`); what the engine says of its prompt came
    `told_after_seconds` of its first token; the engine set somebody aside meanwhile,
    and the wire does not tell whom (`has_preemption`); since it did so short pauses
    count as well (`notes_short_pauses`). `prefill_rows` (start, end, tokens of a step),
    `stalls` (from, to), `resumed_seconds` (tokens that came out of a prefill again) and
    `scheduled_seconds` are filled in by `PromptPlacement`; `pauses` is what it has yet
    to look at. The newest read had `read_events`, so long after the one before it
    (`gap_seconds`); `late_events` are those that came together with an earlier one, and
    out of a step of their own.
    """

    __slots__ = (
        "arrived_seconds", "closed_seconds", "decode_seconds",
        "estimated_prompt_tokens", "first_token_seconds", "gap_seconds",
        "has_late_facts",
        "has_late_reads", "has_preemption", "inference_seconds",
        "inferred_cached_tokens", "is_cut",
        "is_forced", "is_placed_as_told", "is_refused", "is_unspread",
        "key", "last_token_seconds", "late_events", "may_be_orphan",
        "notes_short_pauses",
        "patience_seconds", "paused_seconds", "pauses",
        "prefill_rows", "prefill_seconds", "ran_on_seconds", "read_events",
        "resumed_seconds", "scheduled_seconds",
        "stalls", "told_after_seconds", "waited_until_seconds",
    )  # fmt: skip

    def __init__(self, key: int, at_seconds: float, facts: RequestFacts) -> None:
        super().__init__(
            sequences=facts.sequences,
            prompts=facts.prompts,
            context_tokens=facts.context_tokens,
            is_streamed=facts.is_stream,
            has_running_usage=facts.has_running_usage,
        )
        self.key = key
        self.read_events = 1
        self.gap_seconds = 0.0
        self.late_events = 0
        self.arrived_seconds = at_seconds
        self.prefill_seconds: float | None = None
        self.decode_seconds: float | None = None
        self.inference_seconds: float | None = None
        self.has_late_facts = False
        self.is_refused = False
        self.is_cut = False
        self.is_forced = False
        self.is_unspread = False
        self.told_after_seconds = 0.0
        self.patience_seconds = LATE_FACTS_SECONDS
        self.has_preemption = False
        self.has_late_reads = False
        self.scheduled_seconds: float | None = None
        self.estimated_prompt_tokens = 0.0
        self.inferred_cached_tokens: float | None = None
        self.prefill_rows: list[tuple[float, float, float]] = []
        self.notes_short_pauses = False
        self.paused_seconds = 0.0
        self.pauses: list[Pause] = []
        self.resumed_seconds: list[float] = []
        self.stalls: list[tuple[float, float]] = []
        self.is_placed_as_told = False
        self.first_token_seconds: float | None = None
        self.last_token_seconds: float | None = None
        self.closed_seconds: float | None = None
        self.may_be_orphan = False
        self.ran_on_seconds: float | None = None
        self.waited_until_seconds = at_seconds

    def receive(
        self, at_seconds: float, updates: Sequence[Update], log: TokenLog
    ) -> None:
        """Count the tokens of one read; a read without tokens leaves no stamp.

        Its events are counted one by one, so it is the same whether they come in one
        read or, with one stamp, in several.
        """
        before_read = self.counted_tokens
        for update in updates:
            before = self.counted_tokens
            if not self.grow(update):
                self._count_facts(update, at_seconds, before_read)
            tokens = self.counted_tokens - before
            if tokens <= 0:
                continue
            first, last = self.first_token_seconds, self.last_token_seconds
            if last is None or first is None:
                self.first_token_seconds = self.last_token_seconds = at_seconds
            elif at_seconds > last:
                if self.read_events > 1:
                    self._learn_pace(last - first, before, log)
                gap_seconds = self.gap_seconds = at_seconds - last
                self.last_token_seconds = at_seconds
                # long, also beside those before it: look at it once steps are known
                if (
                    gap_seconds > PAUSE_SECONDS
                    and tokens <= 1
                    and gap_seconds * (before - 1) >= UNUSUAL_GAPS * (last - first)
                ):
                    self._pause(Pause(last, at_seconds, before, is_short=False))
                elif (
                    self.notes_short_pauses
                    and gap_seconds > SHORT_PAUSE_SECONDS
                    and tokens <= 1
                    and gap_seconds * (before - 1)
                    >= SHORT_PAUSE_GAPS * (last - first - self.paused_seconds)
                ):
                    self._pause(Pause(last, at_seconds, before, is_short=True))
            else:
                self._log_together(at_seconds, tokens, before, log)
                continue
            log.add_row((at_seconds, self.key, tokens, before))

    def _log_together(
        self, at_seconds: float, tokens: float, before: float, log: TokenLog
    ) -> None:
        """Log an event that came together with the one before it."""
        if self.pauses and self.pauses[-1].resumed_seconds == at_seconds:
            pause = self.pauses.pop()  # several tokens came at once: they were hidden
            self.paused_seconds -= pause.resumed_seconds - pause.stopped_seconds
        stamp_seconds = at_seconds
        if log.pace.are_steps and self.read_events >= self.sequences:
            # one step has given each sequence its tokens: this is of another
            stamp_seconds += self.read_events * TICK_SECONDS
            self.late_events += 1
        self.read_events += 1
        log.add_row((stamp_seconds, self.key, tokens, before))

    def _learn_pace(self, seconds: float, before: float, log: TokenLog) -> None:
        """The last read had several events: hold its gap against them, by sequence.

        `seconds` is from the first read to that one, with which `before` tokens had
        come.
        """
        events = self.read_events // self.sequences
        self.read_events = 1
        earlier_seconds = seconds - self.gap_seconds
        earlier = before / self.sequences - events - 1
        if events > 1 and earlier > 0:
            log.pace.add(events, self.gap_seconds, earlier_seconds / earlier)

    def _pause(self, pause: Pause) -> None:
        self.pauses.append(pause)
        self.paused_seconds += pause.resumed_seconds - pause.stopped_seconds

    def _count_facts(self, update: Update, at_seconds: float, before: float) -> None:
        """Count an event that may tell something else than more tokens.

        `before` are the tokens of the reads before it.
        """
        cached_tokens, prefill = self.cached_tokens, self.prefill_seconds
        if update.phases is not None:
            self._read_phases(update.phases)
        self.count_other(update)
        if self.cached_tokens != cached_tokens or self.prefill_seconds != prefill:
            if self.first_token_seconds is not None:
                after_seconds = at_seconds - self.first_token_seconds
                self.told_after_seconds = max(self.told_after_seconds, after_seconds)
            if before and self.cached_tokens != cached_tokens:
                self.has_late_facts = True

    def _read_phases(self, phases: PhaseSeconds) -> None:
        self.has_late_facts = self.is_streamed
        if phases.prefill_seconds is not None:
            self.prefill_seconds = phases.prefill_seconds
        if phases.decode_seconds is not None:
            self.decode_seconds = phases.decode_seconds
        if phases.inference_seconds is not None:
            self.inference_seconds = phases.inference_seconds

    def close(
        self, at_seconds: float, *, is_refused: bool = False, is_cut: bool = False
    ) -> None:
        """No more bytes will come; a refused request was never computed."""
        self.closed_seconds = at_seconds
        self.is_refused = is_refused
        self.is_cut = is_cut
        self.finish()
        self._mend_first()

    def _mend_first(self) -> None:
        """Its first read was late, if the engine decoded longer than reads came.

        A proxy that stood still reads the tokens of that time at once. The engine's
        own duration, back from the last read, then says when the first one came; only
        for a prompt that has no place yet.
        """
        first, last = self.first_token_seconds, self.last_token_seconds
        if first is None or last is None or self.has_own_stamps:
            return
        self.has_late_reads = True
        if self.scheduled_seconds is None and not self.is_told_late:
            decode = self.decode_seconds or 0.0
            self.first_token_seconds = min(
                max(last - decode, self.arrived_seconds), first
            )

    @property
    def late_part(self) -> float:
        """Part of its tokens that were read later than others that came after them."""
        if self.counted_tokens <= 0:
            return 0.0
        return min(self.late_events / self.counted_tokens, 1.0)

    @property
    def is_told_late(self) -> bool:
        """Whether the engine told how its prompt was computed too late to place it."""
        return self.told_after_seconds > self.patience_seconds

    @property
    def has_own_stamps(self) -> bool:
        """Whether reads came as the engine says that it decoded, or it says nothing."""
        first, last, decode = (
            self.first_token_seconds, self.last_token_seconds, self.decode_seconds,
        )  # fmt: skip
        if not self.is_streamed or decode is None or first is None or last is None:
            return True
        seconds = max(CONFIRMED_SECONDS, CONFIRMED_PART * decode)
        return abs(last - first - decode) <= seconds

    def spread_unstreamed(self, stamps_seconds: Sequence[float], log: TokenLog) -> None:
        """Put the tokens of a reply that came in one piece at these instants.

        All but those that have a place already, while the reply had not come yet.
        """
        if not self.output_tokens or not stamps_seconds:
            return
        left = self.output_tokens - self.counted_tokens
        # it ran to the end, though more were guessed than it had
        tokens = max(left / len(stamps_seconds), self.sequences / 2)
        for at_seconds in stamps_seconds:
            log.add(at_seconds, self.key, tokens, self.counted_tokens)
            self.counted_tokens += tokens
        if self.first_token_seconds is None:
            self.first_token_seconds = stamps_seconds[0]
        self.last_token_seconds = stamps_seconds[-1]

    @property
    def is_output_lower_bound(self) -> bool:
        """True when the reply broke off after some tokens, uncounted by the engine."""
        return self.is_cut and self.least_output_tokens is not None

    @property
    def recorded_output_tokens(self) -> int | None:
        """Output tokens for record and metrics: a count, or at least what was seen."""
        if self.is_output_lower_bound:
            return self.least_output_tokens
        return self.output_tokens

    @property
    def is_count_exact(self) -> bool:
        """True when prompt and output counts come from the engine."""
        return self.prompt_tokens is not None and self.output_tokens is not None

    @property
    def uncomputed_tokens(self) -> float:
        """Prompt tokens found in a cache, as told in time, else as inferred, else 0."""
        if self.cached_tokens is not None and not self.is_told_late:
            return float(self.cached_tokens)
        return self.inferred_cached_tokens or 0.0

    @property
    def has_unknown_cache(self) -> bool:
        """Whether the engine has told its prompt, and not in time what was cached."""
        is_told = self.cached_tokens is not None and not self.is_told_late
        return self.prompt_tokens is not None and not is_told

    @property
    def timely_prefill_seconds(self) -> float | None:
        """How long its prefill took, if the engine told that in time to place it."""
        return None if self.is_told_late else self.prefill_seconds

    @property
    def is_scheduled_exact(self) -> bool:
        """Whether its place is what the engine told, in time or to confirm it."""
        if self.has_late_reads:
            return False
        if self.is_placed_as_told:
            return True
        scheduled, first = self.scheduled_seconds, self.first_token_seconds
        if not self.is_told_late or scheduled is None or first is None:
            return False
        if self.prefill_seconds is None or self.prompt_tokens is None:
            return False
        began = max(first - self.prefill_seconds, self.arrived_seconds)
        seconds = max(CONFIRMED_SECONDS, CONFIRMED_PART * self.prefill_seconds)
        is_near = self.cached_tokens is None or self.is_cache_known
        return abs(began - scheduled) <= seconds and is_near

    @property
    def is_cache_known(self) -> bool:
        """Whether the engine told what was cached, in time or to confirm a guess."""
        if self.cached_tokens is None or self.prompt_tokens is None:
            return False
        tokens = max(CONFIRMED_TOKENS, CONFIRMED_TOKENS_PART * self.prompt_tokens)
        return abs(self.uncomputed_tokens - self.cached_tokens) <= tokens

    @property
    def is_exact_so_far(self) -> bool:
        """True when all that happened up to the last token is already known."""
        return (
            self.has_running_usage
            and self.prompt_tokens is not None
            and self.first_token_seconds is not None
        )

    @property
    def token_scale(self) -> float:
        """What one counted token is worth once the final usage is known."""
        if self.output_tokens is None or self.counted_tokens <= 0:
            return 1.0
        if self.closed_seconds is None or self.is_unspread:
            return 1.0
        return self.output_tokens / self.counted_tokens

    @property
    def left_seconds(self) -> float | None:
        """When the engine was done with it, as far as is known; None while open."""
        if self.ran_on_seconds is not None:
            return self.ran_on_seconds
        return self.closed_seconds

    @property
    def end_seconds(self) -> float:
        """When it stopped running: last token, else the close; inf while open."""
        if self.closed_seconds is None or self.may_be_orphan:
            return INFINITY
        if self.ran_on_seconds is not None:
            return self.ran_on_seconds
        if self.last_token_seconds is not None and not self.is_unspread:
            return self.last_token_seconds
        return self.closed_seconds
