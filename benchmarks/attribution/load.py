"""Requests of a scenario, and what its engine made of them."""

from __future__ import annotations

import os
import pickle
from dataclasses import dataclass, field
from functools import cache
from hashlib import sha256
from pathlib import Path

import numpy as np

from benchmarks.attribution.board import BOARDS
from benchmarks.attribution.engine import BoardEngine, Run, textbook_run
from benchmarks.attribution.scenarios import Scenario
from loadgen.simulator.core.config import EngineConfig
from loadgen.simulator.core.presets import GPUS, MODELS, PRESETS
from loadgen.simulator.core.scheduler import SimRequest

# Input and output tokens as (mean, median): Azure traces, arXiv 2504.17674 Table 1, 2.
LENGTHS = {
    "conversation": ((1631.58, 928), (105.51, 41)),
    "code": ((2511.28, 1930), (22.69, 8)),
    "reasoning": ((200.0, 150), (600.0, 400)),  # made up: little in, much out
    "talk": ((400.0, 400.0), (100.0, 100.0)),  # two classes without any spread
    "paste": ((3000.0, 3000.0), (20.0, 20.0)),
}
EMBEDDING = "embedding"
LONGEST_TOKENS = 8192
QUIET_SECONDS = 5.0  # before the first arrival: loaded idle is measured here
NETWORK_SECONDS = 0.0005
BOARD_BLOCKS = 28_000
"""KV cache of a board, where the scenario says nothing: 450,000 tokens."""


@dataclass
class Load:
    """Requests in order of arrival, and the run of them."""

    requests: list[SimRequest] = field(default_factory=list)
    kinds: list[str] = field(default_factory=list)
    bypasses: list[bool] = field(default_factory=list)
    """Sent to the engine past the proxy."""
    run: Run | None = None

    @property
    def done(self) -> Run:
        """The run, made."""
        assert self.run is not None
        return self.run

    @property
    def recomputed_fraction(self) -> float:
        """Prompt tokens computed again after preemption, by prompt tokens."""
        truths = self.done.truth.values()
        asked = sum(truth.prompt_tokens - truth.cached_tokens for truth in truths)
        return sum(truth.prefilled_tokens for truth in truths) / asked - 1


def lognormal(
    rng: np.random.Generator, mean: float, median: float, low: int, high: int
) -> int:
    """A length, clipped to `low` and `high`."""
    sigma = np.sqrt(2 * np.log(mean / median))
    return int(np.clip(rng.lognormal(np.log(median), sigma), low, high))


def engine_config(scenario: Scenario) -> EngineConfig:
    """The engine's scheduling; of the textbook's also what it costs."""
    gpu, model, count = PRESETS[scenario.preset]
    blocks = scenario.kv_blocks
    if scenario.board is not None and blocks is None:
        blocks = BOARD_BLOCKS
    return EngineConfig(
        gpu=GPUS[gpu],
        model=MODELS[model],
        n_gpus=count,
        kv_blocks=blocks,
        prefix_cache=scenario.repeat_fraction > 0,
    )


def load(scenario: Scenario, count: int, folder: Path | None = None) -> Load:
    """Poisson arrivals, kinds drawn evenly; the engine's run of them.

    Runs are kept in `folder`, if there is one, for as long as the sources of engines
    and loads stay as they are.
    """
    return _kept(scenario.load, count, folder)


@cache
def _kept(scenario: Scenario, count: int, folder: Path | None) -> Load:
    if folder is None:
        return _load(scenario, count)
    name = sha256(f"{sources_sha256()} {scenario} {count}".encode()).hexdigest()
    path = folder / f"{name[:32]}.pickle"
    if path.exists():
        made = pickle.loads(path.read_bytes())
        assert isinstance(made, Load)
        return made
    made = _load(scenario, count)
    folder.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(f".{os.getpid()}")
    part.write_bytes(pickle.dumps(made))
    part.replace(path)
    return made


@cache
def sources_sha256() -> str:
    """Digest of all that a run depends on but its scenario."""
    root = Path(__file__).parents[2]
    own = sorted(Path(__file__).parent.glob("*.py"))
    core = sorted((root / "loadgen/simulator/core").glob("*.py"))
    sources = [path.read_bytes() for path in own + core if path.name != "sight.py"]
    return sha256(b"".join(sources)).hexdigest()


def _load(scenario: Scenario, count: int) -> Load:
    rng = np.random.default_rng(scenario.seed)
    sides = np.random.default_rng([scenario.seed, 3])
    made = Load()
    at_seconds = QUIET_SECONDS
    for number in range(count):
        gap = 1.0 if scenario.is_regular else rng.exponential()
        at_seconds += gap / scenario.rate_per_second
        kind = scenario.kinds[int(rng.integers(len(scenario.kinds)))]
        given, produced = LENGTHS[kind]
        prompt = lognormal(rng, *given, 8, LONGEST_TOKENS)
        output = lognormal(rng, *produced, 1, 2048)
        if sides.random() < scenario.embedding_fraction:
            kind, output = EMBEDDING, 1
            prompt = lognormal(sides, 900.0, 700.0, 64, 2000)
        origin = number
        if number and rng.random() < scenario.repeat_fraction:
            origin = int(rng.integers(max(number - 40, 0), number))
            prompt = made.requests[origin].prompt_tokens
            origin = made.requests[origin].block_hashes[0] >> 20
        hashes = tuple((origin << 20) + block for block in range(prompt // 16))
        arrived = at_seconds
        if scenario.burst_seconds:
            bursts = (at_seconds - QUIET_SECONDS) // scenario.burst_seconds
            arrived += bursts * scenario.burst_seconds
        made.requests.append(
            SimRequest(
                f"r{number}",
                arrived + NETWORK_SECONDS,
                prompt,
                output,
                hashes or ((origin << 20),),
            )
        )
        made.kinds.append(kind)
        made.bypasses.append(sides.random() < scenario.bypass_fraction)
    if scenario.board is None:
        made.run = textbook_run(made.requests, engine_config(scenario))
        return made
    silent = [
        request.request_id
        for request, kind in zip(made.requests, made.kinds, strict=True)
        if kind == EMBEDDING
    ]
    engine = BoardEngine(
        BOARDS[scenario.board],
        engine_config(scenario),
        silent=silent,
        seed=scenario.seed,
    )
    made.run = engine.run(made.requests)
    return made
