"""Was the load the one of the trace? Lengths asked for against lengths served.

Served is what the engine counted, chat template and all. Asked is the length of a
prompt or a reply in the trace, and where a conversation is played live, that of the
conversation so far as the trace has it. What was really sent then
carries the replies really given, so a short reply makes the later prompts short.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from loadgen.analysis.distribution import Distribution
from loadgen.analysis.schema import LengthBlock
from loadgen.results.results import Result


@dataclass(slots=True)
class Lengths:
    """Asked against served tokens of answered requests, where both are known."""

    requests: int = 0
    asked: int = 0
    served: int = 0
    exact: int = 0
    shorter: int = 0
    live: int = 0
    ratios: Distribution = field(default_factory=Distribution)
    whole_ratios: Distribution = field(default_factory=Distribution)
    """Ratios of prompts that hold nothing the engine wrote."""

    def add(
        self, asked: int | None, served: int | None, *, is_live: bool = False
    ) -> None:
        """One request; nothing is compared when either side is unknown."""
        if asked is None or served is None or asked < 1:
            return
        self.requests += 1
        self.asked += asked
        self.served += served
        self.exact += asked == served
        self.shorter += served < asked
        self.live += is_live
        self.ratios.add(served / asked)
        if not is_live:
            self.whole_ratios.add(served / asked)

    def block(self) -> LengthBlock:
        """The block of `summary.json`."""
        (whole_p50,) = self.whole_ratios.percentiles(50) or (None,)
        p10, p50, p90 = self.ratios.percentiles(10, 50, 90) or (None, None, None)
        return LengthBlock(
            requests=self.requests,
            asked_tokens=self.asked,
            served_tokens=self.served,
            served_over_asked=self.served / self.asked if self.asked else None,
            exact_fraction=self.exact / self.requests if self.requests else None,
            ratio_p10=p10,
            ratio_p50=p50,
            ratio_p90=p90,
            shorter_requests=self.shorter,
            live_requests=self.live,
            ratio_p50_without_live=whole_p50,
        )


class Fidelity:
    """The lengths of prompts and of replies."""

    __slots__ = ("prompts", "replies")

    def __init__(self) -> None:
        self.prompts, self.replies = Lengths(), Lengths()

    def add(self, result: Result) -> None:
        """One answered request."""
        own, whole = result.requested_input_tokens, result.requested_prompt_tokens
        if whole is None and result.turn == 0:  # a record of before whole prompts
            whole = own
        is_live = whole is not None and whole != own
        self.prompts.add(whole, result.prompt_tokens, is_live=is_live)
        self.replies.add(result.requested_output_tokens, result.output_tokens)
