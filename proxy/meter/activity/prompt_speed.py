"""How long the engine takes for prompts, learnt from those it has computed.

Rule: a step computes prompts and decodes at once, so the time that its prompts took is
not what they add: of a step that lasts t, where those without any prompt last t0, it is
the root of t^2 - t0^2 (memory and matrix units overlap). A prompt's token takes some
time, and more for each token of context that it looks back at.
"""

from __future__ import annotations

import math
from collections import deque
from statistics import median

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]

PROMPT_TOKEN_SECONDS = 6e-5
"""Until observed: 2 x 8e9 FLOP at half of an A100's or H100's dense bf16 peak
takes 32 to 100 microseconds."""

CONTEXT_PART = 3.3e-5
"""Of a token's time, what each token of context adds, until observed: attention's FLOP
of an 8B-class model (4 x 32 x 4096) by twice its parameters."""

SAMPLES = 64
SAMPLE_TOKENS = 4096
ENOUGH_SAMPLES = 3

LONG = 1.3
"""Times a plain step: a prompt was computed in a step that lasts longer."""

LONGEST_PERIOD_TOKENS = 32_768
"""A period in which prompts follow each other without a break is cut there."""

MIN_MISS = 0.02
"""What the time of a sample is off by at least, by itself."""

MEDIAN_OFF = 0.6745
"""Of a standard deviation: half of all is off by less."""


class PromptSpeed:
    """Seconds per computed prompt token, learnt from finished prefills.

    Each sample is the time of some prompts by their tokens: of several, because
    prompts that share a step take its time once. The median is believed, because
    a prompt that waited for memory makes its sample many times too slow.
    """

    def __init__(self) -> None:
        self._samples: deque[float] = deque(maxlen=SAMPLES)
        self._plain: deque[float] = deque(maxlen=SAMPLES)
        self._periods: deque[tuple[float, float, float]] = deque(maxlen=SAMPLES)
        self.restart()

    def restart(self) -> None:
        """Nothing is learnt yet, or it was from wrong counts."""
        self.token_seconds = PROMPT_TOKEN_SECONDS
        """All of a step's time by the tokens of prompts in it."""
        self.plain_seconds = 0.0
        """A step without any prompt; 0: none was seen."""
        self.own_seconds = PROMPT_TOKEN_SECONDS
        self.context_seconds = CONTEXT_PART * PROMPT_TOKEN_SECONDS
        """The two constants of the time that prompts take by themselves."""
        self._samples.clear()
        self._plain.clear()
        self._periods.clear()
        self._tokens = self._seconds = 0.0
        self._period = (0.0, 0.0, 0.0)
        self._period_end_seconds = -math.inf

    @property
    def is_learnt(self) -> bool:
        """Whether the time of prompts by themselves was seen."""
        return len(self._periods) >= ENOUGH_SAMPLES

    def learn(self, tokens: float, seconds: float) -> None:
        """A prompt took these seconds alone, or was done in passing (0 seconds)."""
        self._tokens += tokens
        self._seconds += seconds
        if self._tokens < SAMPLE_TOKENS or self._seconds <= 0:
            return
        self._samples.append(self._seconds / self._tokens)
        self._tokens = self._seconds = 0.0
        if len(self._samples) >= ENOUGH_SAMPLES:
            self.token_seconds = median(self._samples)

    def learn_plain(self, step_seconds: FloatArray) -> None:
        """Steps without any prompt lasted so long."""
        if len(step_seconds):
            self._plain.append(float(np.median(step_seconds)))
            self.plain_seconds = median(self._plain)

    @property
    def longest_plain_seconds(self) -> float:
        """A step that lasts no longer computed no prompt; 0: not known."""
        return LONG * self.plain_seconds

    def prompt_seconds(self, step_seconds: FloatArray) -> FloatArray:
        """What the prompts in steps took that last so long, elementwise."""
        plain = self.plain_seconds
        is_long = step_seconds > self.longest_plain_seconds
        squares = np.where(is_long, step_seconds**2 - plain**2, 0.0)
        return np.asarray(np.sqrt(np.maximum(squares, 0.0)), dtype=np.float64)

    def seconds_for(self, tokens: float, context_tokens: float) -> float:
        """Time of a prompt's tokens after so many of context."""
        looked_back = tokens * (context_tokens + tokens / 2)
        return self.own_seconds * tokens + self.context_seconds * looked_back

    def tokens_in(self, seconds: float, context_tokens: float) -> float:
        """How many tokens after so many of context take these seconds."""
        one = self.own_seconds + self.context_seconds * context_tokens
        return (
            2 * seconds / (one + math.sqrt(one**2 + 2 * self.context_seconds * seconds))
        )

    def learn_period(
        self,
        tokens: float,
        context_tokens: float,
        *,
        start_seconds: float,
        end_seconds: float,
        seconds: float,
    ) -> None:
        """A prompt was computed between two instants, others perhaps as well.

        `seconds` is what prompts took in that stretch, as far as it lies after the
        prompts learnt before. What follows without a break is one period.
        """
        if (
            start_seconds >= self._period_end_seconds
            or self._period[0] >= LONGEST_PERIOD_TOKENS
        ):
            self._end_period()
        pairs = tokens * (context_tokens + tokens / 2)
        old = self._period
        self._period = (old[0] + tokens, old[1] + pairs, old[2] + seconds)
        self._period_end_seconds = max(self._period_end_seconds, end_seconds)

    @property
    def period_end_seconds(self) -> float:
        """Up to there what prompts took was counted."""
        return self._period_end_seconds

    def _end_period(self) -> None:
        tokens, _, seconds = self._period
        if tokens >= SAMPLE_TOKENS / 16 and seconds > 0:
            self._periods.append(self._period)
            if self.is_learnt:
                self._fit()
        self._period = (0.0, 0.0, 0.0)

    def _fit(self) -> None:
        """A line through time by token over mean context, drawn toward the usual one.

        Its slope by least squares, its height by the median.
        """
        table = np.array(self._periods)
        each, context = table[:, 2] / table[:, 0], table[:, 1] / table[:, 0]
        weights = table[:, 0] / table[:, 0].mean()
        usual = median(each.tolist())
        is_usual = (each > 0.5 * usual) & (each < 2 * usual)
        each, context, weights = each[is_usual], context[is_usual], weights[is_usual]
        # what samples miss the line by, as far as the last one was right
        left = each - self.context_seconds * context
        off = weighted_median(np.abs(left - weighted_median(left, weights)), weights)
        noise = max(off / MEDIAN_OFF, MIN_MISS * usual) ** 2
        apart = context - np.average(context, weights=weights)
        drawn = CONTEXT_PART * usual
        square = float((weights * apart**2).sum()) / noise + 1 / drawn**2
        product = float((weights * apart * each).sum()) / noise + 1 / drawn
        self.context_seconds = max(product / square, 0.0)
        height = weighted_median(each - self.context_seconds * context, weights)
        self.own_seconds = max(height, 0.1 * usual)


def weighted_median(values: FloatArray, weights: FloatArray) -> float:
    """The value that half of the weight lies on either side of."""
    order = np.argsort(values)
    reached = np.cumsum(weights[order])
    return float(values[order][np.searchsorted(reached, reached[-1] / 2)])
