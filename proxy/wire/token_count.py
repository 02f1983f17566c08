"""Tokens in an event or a reply: one rule for ledger and load. Pure.

Events are not tokens: one may carry several, or none (the role, the finish, the
usage). A count that the event itself has wins (TGI sends one event per token, vLLM
`token_ids`); else the growth of the engine's cumulative usage where that comes with
every event; else one for an event that carries any. The count of a reply is the
engine's own, which the events are later scaled to; where there is none, it is the sum
of the events, if each of them was counted and not guessed.

Usage is of the request, with two exceptions. With several sequences vLLM's usage on a
token event is of that sequence alone, so only the event at the end, which sums them,
is believed. TGI's completions have usage of each prompt at its end, for it alone:
it is added up, and known once every prompt has ended.

A stream that breaks off has no final usage: what was seen of it until then is the least
that the engine computed, and is told apart from a count.

Cached tokens of a list of prompts are those of one of them (vLLM), so unknown.

A count beyond the model's context, where that is known, is a mistake and unknown.
Some servers fill usage with zeros until the end, or for ever. No text has no tokens:
beside an event that carries any, a count of zero is unknown.
"""

from __future__ import annotations

from proxy.wire.facts import Update, Usage


class TokenCount:
    """Tokens of one request so far; `count` every update of its reply, in order."""

    __slots__ = (
        "are_counts_exact",
        "cached_tokens",
        "context_tokens",
        "counted_tokens",
        "has_final_usage",
        "has_running_usage",
        "is_streamed",
        "output_tokens",
        "prompt_tokens",
        "prompts",
        "sequences",
        "told_sequences",
    )

    def __init__(
        self,
        *,
        sequences: int = 1,
        prompts: int = 1,
        context_tokens: int | None = None,
        is_streamed: bool = True,
        has_running_usage: bool = False,
    ) -> None:
        self.sequences = max(sequences, 1)
        self.prompts = prompts
        self.context_tokens = context_tokens
        self.is_streamed = is_streamed
        self.has_running_usage = has_running_usage and self.sequences == 1
        """Usage comes with every event, and is cumulative over the request."""
        self.has_final_usage = False
        """The engine has told the counts of the whole reply."""
        self.counted_tokens = 0.0
        """Tokens of all events so far; 0 of a reply that is not a stream."""
        self.are_counts_exact = True
        """No event had to be taken for one token."""
        self.prompt_tokens: int | None = None
        self.cached_tokens: int | None = None
        self.output_tokens: int | None = None
        """From usage; after `finish` also from events that have counts of their own."""
        self.told_sequences = 0
        """Sequences with usage of their own so far."""

    def count(self, update: Update) -> int:
        """The tokens that one event carries; its usage is noted."""
        return self.grow(update) or self.count_other(update)

    def grow(self, update: Update) -> int:
        """The same for one that tells of more tokens and of nothing else.

        As nearly all events of a stream with running usage do, so it is quick. 0 where
        the event may say something else: then nothing is counted yet.
        """
        usage = update.usage
        if usage is None or not self.has_running_usage or not self.is_streamed:
            return 0
        told, cached = usage.output_tokens, usage.cached_tokens
        if (
            not told
            or usage.prompt_tokens != self.prompt_tokens
            or (cached is not None and cached != self.cached_tokens)
            or update.finish_reason is not None
            or update.phases is not None
            or update.error is not None
            or update.is_usage_only
            or update.is_end
            or update.has_own_usage
            or (self.context_tokens is not None and told > self.context_tokens)
        ):
            return 0
        tokens = update.tokens
        grown = int(told - self.counted_tokens) if tokens is None else tokens
        if grown <= 0:
            return 0
        self.output_tokens = told
        self.counted_tokens += grown
        return grown

    def count_other(self, update: Update) -> int:
        """The same for an event that may say anything."""
        usage, tokens = update.usage, update.tokens
        cumulative = None if usage is None else self._read_usage(update, usage)
        if not self.is_streamed:
            return 0
        if tokens is None:
            if update.carries_token:
                tokens = 1
            elif update.is_usage_only or update.is_end or update.error is not None:
                return 0
            else:
                tokens = 0
            if cumulative is not None and self.has_running_usage:
                grown = cumulative - self.counted_tokens
                tokens = int(grown) if grown > 0 else 0
            else:
                self.are_counts_exact = False
        self.counted_tokens += tokens
        return tokens

    def finish(self) -> None:
        """No more will come: fix the counts."""
        if 0 < self.told_sequences < self.sequences:
            self.output_tokens = None
            if self.prompts > 1:
                self.prompt_tokens = None
            return
        if self.counted_tokens and not self.output_tokens:
            are_known = self.are_counts_exact
            self.output_tokens = int(self.counted_tokens) if are_known else None

    @property
    def least_output_tokens(self) -> int | None:
        """Output tokens seen of a stream without final usage; None if none were."""
        if self.has_final_usage or not self.is_streamed:
            return None
        return max(int(self.counted_tokens), self.output_tokens or 0) or None

    def _read_usage(self, update: Update, usage: Usage) -> int | None:
        """Note usage; the cumulative output count, where this event has one."""
        if self.context_tokens is not None:
            usage = self._plausible(usage, self.context_tokens)
        if update.has_own_usage:
            self.told_sequences += 1
            self.has_final_usage = self.told_sequences >= self.sequences
            if usage.prompt_tokens is not None:
                self.prompt_tokens = (self.prompt_tokens or 0) + usage.prompt_tokens
            if usage.output_tokens is not None:
                self.output_tokens = (self.output_tokens or 0) + usage.output_tokens
            return None
        if usage.prompt_tokens is not None:
            self.prompt_tokens = usage.prompt_tokens
        if usage.cached_tokens is not None and self.prompts == 1:
            self.cached_tokens = usage.cached_tokens
        output_tokens = usage.output_tokens
        if output_tokens is None:
            return None
        if output_tokens == 0 and (update.carries_token or self.counted_tokens):
            self.has_running_usage = False
            return None
        if self.is_streamed and not (update.is_usage_only or update.is_end):
            if self.sequences > 1 and update.carries_token:
                return None
            if update.finish_reason is None:
                self.has_running_usage = self.sequences == 1
            else:
                self.has_final_usage = True
        else:
            self.has_final_usage = True
        self.output_tokens = output_tokens
        return output_tokens

    def _plausible(self, usage: Usage, context_tokens: int) -> Usage:
        """The counts that fit in the contexts of all sequences; others are unknown."""
        most = context_tokens * max(self.sequences, self.prompts)
        counts = (usage.prompt_tokens, usage.output_tokens, usage.cached_tokens)
        if all(count is None or count <= most for count in counts):
            return usage
        known = (None if count is None or count > most else count for count in counts)
        return Usage(*known)
