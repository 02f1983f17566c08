"""How fast the engine computes prompts, learnt from those it has computed."""

from __future__ import annotations

from collections import deque
from statistics import median

PROMPT_TOKEN_SECONDS = 6e-5
"""Until observed: 2 x 8e9 FLOP at half of an A100's or H100's dense bf16 peak
takes 32 to 100 microseconds."""

SAMPLES = 64
SAMPLE_TOKENS = 4096
ENOUGH_SAMPLES = 3


class PromptSpeed:
    """Seconds per computed prompt token, learnt from finished prefills.

    Each sample is the time of some prompts by their tokens: of several, because
    prompts that share a step take its time once. The median is believed, because
    a prompt that waited for memory makes its sample many times too slow.
    """

    def __init__(self) -> None:
        self.token_seconds = PROMPT_TOKEN_SECONDS
        self._samples: deque[float] = deque(maxlen=SAMPLES)
        self._tokens = 0.0
        self._seconds = 0.0

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
