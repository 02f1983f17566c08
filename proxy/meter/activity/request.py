"""One request as the wire tells it: stamps, token counts, facts.

Counting rule: a count the event itself carries wins; else cumulative usage
where it comes with every event; else one token per token-bearing event, and
`token_scale` corrects the count once the final usage is known.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence

from proxy.wire.facts import RequestFacts, Update, Usage


class TokenLog:
    """Every read that bore tokens, of all requests, as compact columns.

    `before` is how many tokens the request had received before that read.
    Rows arrive in any order; `take` hands them over and forgets them.
    """

    __slots__ = ("before", "seconds", "serials", "tokens")

    def __init__(self) -> None:
        self.seconds = array("d")
        self.serials = array("q")
        self.tokens = array("d")
        self.before = array("d")

    def add(self, seconds: float, serial: int, tokens: float, before: float) -> None:
        """One read of one request."""
        self.seconds.append(seconds)
        self.serials.append(serial)
        self.tokens.append(tokens)
        self.before.append(before)

    def clear(self) -> None:
        """Forget all rows."""
        for column in (self.seconds, self.serials, self.tokens, self.before):
            del column[:]


PAUSE_SECONDS = 0.05
"""Longer between two tokens: look whether others went on meanwhile."""
UNUSUAL_GAPS = 3.0
"""So many times a request's mean gap until then: slow streams do not pause at each
token, though others go on meanwhile (several engines behind one address)."""


class RequestTimeline:
    """Mutable record of one request in flight; instants in monotonic seconds.

    `waited_until_seconds` is when the engine's gauges last showed it in the queue;
    `ran_on_seconds` until when they showed it running after its client had left,
    while `may_run_on` says that this is not decided yet. `prefill_rows` (start,
    end, tokens of a step), `stalls` (from, to) and `scheduled_seconds` are filled
    in by `PromptPlacement`; `pauses` (last token, next one, tokens before it) is
    what it has yet to look at.
    """

    __slots__ = (
        "arrived_seconds", "cached_tokens", "closed_seconds", "counted_tokens",
        "decode_seconds", "estimated_prompt_tokens", "first_token_seconds",
        "has_late_facts", "has_running_usage", "inference_seconds", "is_refused",
        "is_scheduled_exact", "is_streamed", "last_token_seconds", "may_be_orphan",
        "output_tokens", "pauses", "prefill_rows", "prefill_seconds", "prompt_tokens",
        "ran_on_seconds", "scheduled_seconds", "sequences", "serial", "stalls",
        "told_sequences", "waited_until_seconds",
    )  # fmt: skip

    def __init__(self, serial: int, at_seconds: float, facts: RequestFacts) -> None:
        self.serial = serial
        self.arrived_seconds = at_seconds
        self.sequences = max(facts.sequences, 1)
        self.is_streamed = facts.is_stream
        self.has_running_usage = facts.has_running_usage and self.sequences == 1
        self.counted_tokens = 0.0
        self.prompt_tokens: int | None = None
        self.cached_tokens: int | None = None
        self.output_tokens: int | None = None
        self.prefill_seconds: float | None = None
        self.decode_seconds: float | None = None
        self.inference_seconds: float | None = None
        self.told_sequences = 0
        self.has_late_facts = False
        self.is_refused = False
        self.scheduled_seconds: float | None = None
        self.estimated_prompt_tokens = 0.0
        self.prefill_rows: list[tuple[float, float, float]] = []
        self.pauses: list[tuple[float, float, float]] = []
        self.stalls: list[tuple[float, float]] = []
        self.is_scheduled_exact = False
        self.first_token_seconds: float | None = None
        self.last_token_seconds: float | None = None
        self.closed_seconds: float | None = None
        self.may_be_orphan = False
        self.ran_on_seconds: float | None = None
        self.waited_until_seconds = at_seconds

    def receive(
        self, at_seconds: float, updates: Sequence[Update], log: TokenLog
    ) -> None:
        """Count the tokens of one read; a read without tokens leaves no stamp."""
        tokens = 0.0
        for update in updates:
            if update.usage is not None or update.phases is not None:
                tokens += self._read_facts(update, tokens)
            elif update.tokens is not None:
                tokens += update.tokens
            elif update.carries_token:
                tokens += 1.0
        if tokens > 0.0 and self.is_streamed:
            before = self.counted_tokens
            log.add(at_seconds, self.serial, tokens, before)
            self.counted_tokens = before + tokens
            last = self.last_token_seconds
            if last is None:
                self.first_token_seconds = self.last_token_seconds = at_seconds
            elif at_seconds > last:
                self.last_token_seconds = at_seconds
                if at_seconds - last > PAUSE_SECONDS and tokens <= 1.0:
                    self._maybe_pause(last, at_seconds, before)
            elif self.pauses and self.pauses[-1][1] == at_seconds:
                del self.pauses[-1]  # several tokens came at once: they were hidden

    def _maybe_pause(self, last_seconds: float, at_seconds: float, had: float) -> None:
        """Note a gap that is long beside those before it; `had` tokens came before."""
        assert self.first_token_seconds is not None
        spent_seconds = last_seconds - self.first_token_seconds
        gap_seconds = at_seconds - last_seconds
        if gap_seconds * (had - 1.0) >= UNUSUAL_GAPS * spent_seconds:
            self.pauses.append((last_seconds, at_seconds, had))

    def _read_facts(self, update: Update, pending: float) -> float:
        """Take usage and phase times; the tokens this event adds to its read."""
        usage, phases = update.usage, update.phases
        if phases is not None:
            self.has_late_facts = self.is_streamed
            if phases.prefill_seconds is not None:
                self.prefill_seconds = phases.prefill_seconds
            if phases.decode_seconds is not None:
                self.decode_seconds = phases.decode_seconds
            if phases.inference_seconds is not None:
                self.inference_seconds = phases.inference_seconds
        cumulative: int | None = None
        if usage is not None and update.has_own_usage:
            self._add_usage(usage)
        elif usage is not None:
            if usage.prompt_tokens is not None:
                self.prompt_tokens = usage.prompt_tokens
            if usage.cached_tokens is not None:
                if usage.cached_tokens != self.cached_tokens and self.counted_tokens:
                    self.has_late_facts = True
                self.cached_tokens = usage.cached_tokens
            cumulative = self._read_output(update, usage.output_tokens)
        if update.tokens is not None:
            return float(update.tokens)
        if not update.carries_token:
            return 0.0
        if self.has_running_usage and cumulative is not None:
            return max(cumulative - self.counted_tokens - pending, 0.0)
        return 1.0

    def _add_usage(self, usage: Usage) -> None:
        """One of several sequences has ended, and told of itself alone."""
        self.told_sequences += 1
        if usage.prompt_tokens is not None:
            self.prompt_tokens = (self.prompt_tokens or 0) + usage.prompt_tokens
        if usage.output_tokens is not None:
            self.output_tokens = (self.output_tokens or 0) + usage.output_tokens

    def _read_output(self, update: Update, output_tokens: int | None) -> int | None:
        """The cumulative output count, where this event's usage is one.

        With several sequences, usage on a token event counts that sequence
        alone (vLLM), so only the final event, which sums them, is believed.
        """
        if output_tokens is None:
            return None
        is_token_event = update.carries_token and self.is_streamed
        if self.sequences > 1 and is_token_event:
            return None
        if is_token_event and update.finish_reason is None:
            self.has_running_usage = True  # the server was told to force it
        self.output_tokens = output_tokens
        return output_tokens

    def close(self, at_seconds: float, *, is_refused: bool = False) -> None:
        """No more bytes will come; a refused request was never computed."""
        self.closed_seconds = at_seconds
        self.is_refused = is_refused
        if 0 < self.told_sequences < self.sequences:  # the others never will
            self.prompt_tokens = self.output_tokens = None

    def spread_unstreamed(self, stamps_seconds: Sequence[float], log: TokenLog) -> None:
        """Put the tokens of a reply that came in one piece at these instants."""
        if not self.output_tokens or not stamps_seconds:
            return
        tokens = self.output_tokens / len(stamps_seconds)
        for at_seconds in stamps_seconds:
            log.add(at_seconds, self.serial, tokens, self.counted_tokens)
            self.counted_tokens += tokens
        self.first_token_seconds = stamps_seconds[0]
        self.last_token_seconds = stamps_seconds[-1]

    @property
    def is_count_exact(self) -> bool:
        """True when prompt and output counts come from the engine."""
        return self.prompt_tokens is not None and self.output_tokens is not None

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
        if self.closed_seconds is None:
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
            return float("inf")
        if self.ran_on_seconds is not None:
            return self.ran_on_seconds
        if self.last_token_seconds is not None:
            return self.last_token_seconds
        return self.closed_seconds
