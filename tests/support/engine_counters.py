"""The token counters of a scripted engine, scraped once a second."""

from __future__ import annotations

from collections.abc import Sequence

from proxy.wire.events import EngineObserved
from proxy.wire.facts import EngineGauges
from tests.support.meter_scenes import Asked


def scrapes_of(
    computed: Sequence[Asked],
    until: float,
    *,
    first: float = 0.37,
    early_seconds: float = 0.0,
    cached: Sequence[int] = (),
) -> list[EngineObserved]:
    """What vLLM's page says while an engine computes these requests.

    A prompt counts at its first token, `cached[k]` of it as found in a cache. The
    engine counts a token by `early_seconds` before its stamp (less than 0: after it).
    """
    found: list[EngineObserved] = []
    stamps = [at for one in computed for at in one.tokens]
    at = first
    while at < until:
        seen = at + early_seconds
        prompts = [
            k for k, one in enumerate(computed) if one.tokens and one.tokens[0] <= seen
        ]
        prompt_tokens = float(sum(computed[k].prompt for k in prompts))
        output_tokens = float(sum(stamp <= seen for stamp in stamps))
        running = sum(
            bool(one.tokens) and one.arrived <= at < one.tokens[-1] for one in computed
        )
        gauges = EngineGauges(
            running,
            0,
            0,
            prompt_tokens + output_tokens,
            prompt_tokens=prompt_tokens,
            output_tokens=output_tokens,
            cached_tokens=float(sum(cached[k] for k in prompts)) if cached else 0.0,
            steps=float(len({round(s, 4) for s in stamps if s <= seen})),
        )
        found.append(EngineObserved(at, gauges))
        at += 1.0
    return found
