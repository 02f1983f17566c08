"""The runs: what is sent, what computes it, and how much of it the meter sees."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace


@dataclass(frozen=True)
class Scenario:
    """One run: load, engine, what the sensor, the engine and the proxy tell."""

    name: str
    rate_per_second: float = 8.0
    kinds: tuple[str, ...] = ("conversation", "code")
    preset: str = "h100-8b"
    """Of the simulator, where there is no `board`."""
    board: str | None = None
    """A board that is not the textbook's, see `board.BOARDS`."""
    repeat_fraction: float = 0.0
    """Requests whose prompt repeats an earlier one: the prefix cache has it."""
    bypass_fraction: float = 0.0
    """Requests of the kinds above that go to the engine past the proxy."""
    embedding_fraction: float = 0.0
    """Requests that are embeddings of 64 to 2,000 tokens: prefill, and nothing out."""
    burst_seconds: float = 0.0
    """Work comes in bursts of so long, with as much silence in between."""
    kv_blocks: int | None = None
    is_regular: bool = False
    """Arrivals one like the other, for checks that need steady load."""
    seed: int = 1

    counter_seconds: float = 0.1
    has_counter: bool = True
    averaging_seconds: float = 0.0
    lag_seconds: float = 0.0
    """The sensor shows what was so long ago."""
    has_phase_times: bool = False
    has_gauges: bool = True
    """The engine's `/metrics` is scraped every second."""
    hides_cache: bool = False
    """No reply says how much of its prompt was cached."""
    whole_fraction: float = 0.0
    """Replies that are not streamed."""
    embeddings_pass: bool = False
    """Embeddings go through the proxy as `unmetered`, not past it."""
    stall_fraction: float = 0.0
    """First tokens around which the proxy's process stands still for 0.1 to 0.3 s."""
    loop_seconds: float = 0.0
    """Mean time between two turns of a proxy's loop that is starved."""

    @property
    def load(self) -> Scenario:
        """The same load and engine, whatever is seen of it: computed once."""
        plain = {
            each.name: each.default
            for each in fields(Scenario)
            if each.name in SIGHT_FIELDS
        }
        return replace(self, name="", **plain)  # type: ignore[arg-type]


SIGHT_FIELDS = frozenset(
    (
        "counter_seconds", "has_counter", "averaging_seconds", "lag_seconds",
        "has_phase_times", "has_gauges", "hides_cache", "whole_fraction",
        "embeddings_pass", "stall_fraction", "loop_seconds",
    )
)  # fmt: skip

TEXTBOOK = [
    *(Scenario(f"mixed, {rate} req/s", rate) for rate in (2, 8, 14)),
    Scenario("mixed, 24 req/s (saturated)", 24),
    Scenario("conversation, 8 req/s", kinds=("conversation",)),
    Scenario("code, 8 req/s", kinds=("code",)),
    Scenario("mixed, 8 req/s, phase times", has_phase_times=True),
    Scenario("mixed, 8 req/s, half the prompts cached", repeat_fraction=0.5),
    Scenario("mixed, 14 req/s, KV cache too small", 14, kv_blocks=4000),
    Scenario("reasoning, 8 req/s", kinds=("reasoning",)),
    Scenario("reasoning, 8 req/s, KV too small", kinds=("reasoning",), kv_blocks=1000),
    Scenario("mixed, 8 req/s, 20 ms counter", counter_seconds=0.02),
    Scenario("mixed, 8 req/s, 50 ms counter", counter_seconds=0.05),
    Scenario("mixed, 8 req/s, power only", has_counter=False),
    Scenario(
        "mixed, 8 req/s, power only, 1 s average",
        has_counter=False,
        averaging_seconds=1.0,
    ),
    Scenario("mixed, 3 req/s, A100", 3, preset="a100-8b"),
    Scenario("mixed, 1 req/s, A6000", 1, preset="a6000-8b"),
    Scenario("mixed, 8 req/s, H200", preset="h200-8b"),
    Scenario("mixed, 3 req/s, 70B on 4 H100", 3, preset="h100-70b"),
]
"""Loads on the simulator's roofline, nothing hidden."""


def _bent(
    name: str, rate: float = 8.0, board: str = "dense", **more: object
) -> Scenario:
    plain = Scenario(f"bent: {name}", rate, board=board)
    return replace(plain, **more)  # type: ignore[arg-type]


BENT = [
    *(_bent(f"dense, {rate} req/s", rate) for rate in (2, 8, 14)),
    _bent("dense, 26 req/s (saturated)", 26),
    _bent("dense in bursts", burst_seconds=12.0),
    _bent("board that rests", board="resting"),
    _bent("board that rests, bursts", board="resting", burst_seconds=20.0),
    _bent("conversation", kinds=("conversation",)),
    _bent("70B on 4 boards", 3, "tp4"),
    _bent("power cap 300 W", 6, "capped"),
    _bent("mixture of experts", 6, "moe"),
    _bent("mixture of experts, 10 req/s", 10, "moe"),
    _bent("speculative", 8, "speculative"),
    _bent("speculative, reasoning", 6, "speculative", kinds=("reasoning",)),
    _bent("cache told", repeat_fraction=0.5),
    _bent("cache hidden", repeat_fraction=0.5, hides_cache=True),
    _bent("bypass", bypass_fraction=0.3),
    _bent("bypass, engine without metrics", bypass_fraction=0.3, has_gauges=False),
    _bent("embeddings past the proxy", 14, embedding_fraction=0.6),
    _bent("embeddings unmetered", 14, embedding_fraction=0.6, embeddings_pass=True),
    _bent("whole replies, half", whole_fraction=0.5),
    _bent("whole replies, all", whole_fraction=1.0),
    _bent("power, 1 s average", has_counter=False, averaging_seconds=1.0),
    _bent("counter 0.4 s late", lag_seconds=0.4),
    _bent("KV cache too small", 14, kv_blocks=4000),
    _bent("proxy stands still", stall_fraction=0.06),
    _bent("proxy stands still, phase times", stall_fraction=0.06, has_phase_times=True),
    _bent("proxy's loop 25 ms late", loop_seconds=0.025),
]
"""Loads on boards that are not the textbook's, some of it hidden from the meter."""
