"""How many tokens an engine lets into one step, learnt from prompts that queue.

Rule: while prompts wait, an engine that computes them in chunks fills every step up to
its budget (vLLM's `max_num_batched_tokens`), decodes included. So between the ends of
two prompts of a queue lie a known number of tokens and of full steps: of m of them the
last may be full or nearly empty, and so may what the first prompt left of its own step.
Many such stretches narrow the budget down to what nearly all of them allow. Where
there is none (an engine that computes prompts whole, steps that are not seen as they
are, work past the proxy) they contradict each other, and nothing is believed.
"""

from __future__ import annotations

import math
from collections import deque

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]

SAMPLES = 64
ENOUGH_STEPS = 16
"""In stretches that agree."""

LONGEST_STEPS = 128
"""A queue that lasts longer is cut: engines change their mind."""

AGREED_PART = 0.9
"""Of all stretches: so many have to allow the budget."""

MAX_WIDTH = 0.1
"""By the budget: what may be left between its bounds."""

SLACK = 0.01
"""A stretch allows so much more, or less: an end token, a template."""


class TokenBudget:
    """Tokens of a full step, from stretches in which prompts followed each other."""

    def __init__(self) -> None:
        self.tokens: float | None = None
        """None: not known, or there is no such budget."""
        self._samples: deque[tuple[float, float, float]] = deque(maxlen=SAMPLES)
        self.passed_seconds = -math.inf
        """Steps up to here are counted."""
        self._full_from_seconds = -math.inf
        """Start of the step in which the last prompt was done."""
        self._is_open = False
        self._tokens = self._decodes = 0.0
        self._steps = 0
        self._shortest_seconds = math.inf
        self._ends: dict[int, tuple[float, float, float]] = {}
        """By the steps up to them, in which prompts ended: the tokens done by the end
        of the first and of the last, which bound the most, and the step's decodes."""
        self._low, self._high = 0.0, math.inf

    @property
    def rows_kept(self) -> int:
        """Steps of the stretch in which prompts ended, however many in each."""
        return len(self._ends)

    def restart(self) -> None:
        """Nothing is known, or it was learnt from wrong counts."""
        self.tokens = None
        self._samples.clear()
        self.interrupt()

    def interrupt(self) -> None:
        """What was computed meanwhile is not known: no stretch goes on."""
        if math.isfinite(self._high):
            self._samples.append((self._low, self._high, self._steps))
        self._forget_stretch()
        self._is_open = False

    def pass_steps(
        self, starts: FloatArray, ends: FloatArray, decodes: FloatArray
    ) -> None:
        """The next steps since `passed_seconds`, at least one; shape (steps,).

        `decodes` are the sequences that got a later token than their first.
        """
        self.passed_seconds = float(ends[-1])
        if self._is_open and self._steps <= LONGEST_STEPS:
            shortest = float((ends - starts).min())
            self._shortest_seconds = min(self._shortest_seconds, shortest)
            self._steps += len(ends)
            self._decodes += float(decodes.sum())

    def complete(
        self,
        tokens: float,
        ready_seconds: float,
        step: tuple[float, float],
        decodes: float,
        plain_seconds: float,
    ) -> None:
        """A prompt of so many tokens was done in a step, from start to end.

        All steps up to that one were passed. `ready_seconds` is when it may have been
        computed first, `decodes` are those of the step, and none that lasted no longer
        than `plain_seconds` computed a prompt.
        """
        start_seconds, end_seconds = step
        is_in_order = end_seconds == self.passed_seconds
        is_next = (
            self._is_open
            and is_in_order
            and ready_seconds <= self._full_from_seconds
            and self._shortest_seconds > plain_seconds
            and self._steps <= LONGEST_STEPS
        )
        if is_next:
            self._tokens += tokens
            self._bound(decodes)
        else:
            self.interrupt()
            self._is_open = is_in_order
        self._full_from_seconds = start_seconds
        done = self._tokens + self._decodes
        least = self._ends.get(self._steps, (done,))[0]
        self._ends[self._steps] = least, done, decodes

    def _bound(self, decodes: float) -> None:
        """What lies between the end of a prompt now and the ends of those before."""
        were = self._low, self._high
        ends = np.array(list(self._ends.values()))
        steps = self._steps - np.array(list(self._ends))
        done = self._tokens + self._decodes - ends[:, :2]
        self._low = max(
            self._low, float(((done[:, 0] + ends[:, 2]) / (steps + 1)).max())
        )
        is_apart = steps >= 2
        if is_apart.any():
            most = (done[:, 1] - decodes)[is_apart] / (steps[is_apart] - 1)
            self._high = min(self._high, float(most.min()))
            is_known = self._steps in self._ends and were == (self._low, self._high)
            if not is_known:  # else as after the last prompt of this step
                self.tokens = self._agreed()

    def _forget_stretch(self) -> None:
        self._tokens = self._decodes = 0.0
        self._steps = 0
        self._shortest_seconds = math.inf
        self._ends.clear()
        self._low, self._high = 0.0, math.inf

    def _agreed(self) -> float | None:
        """What nearly all stretches allow; None: there is nothing, or too much."""
        table = np.array([*self._samples, (self._low, self._high, self._steps)])
        table[:, :2] *= 1 - SLACK, 1 + SLACK
        stretches = len(table)
        table = table[table[:, 0] <= table[:, 1]]
        if float(table[:, 2].sum()) < ENOUGH_STEPS:
            return None
        bounds = np.sort(table[:, :2].ravel())
        middles = (bounds[1:] + bounds[:-1]) / 2
        allowed = (table[:, :1] <= middles) & (middles <= table[:, 1:2])
        count = allowed.sum(axis=0)
        best = int(count.max())
        if best < AGREED_PART * stretches:
            return None
        is_best = np.flatnonzero(count == best)
        low, high = float(bounds[is_best[0]]), float(bounds[is_best[-1] + 1])
        middle = (low + high) / 2
        return middle if high - low <= MAX_WIDTH * middle else None
