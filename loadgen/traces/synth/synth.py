"""New traces with the statistics of old ones: lengths, turns and arrivals.

`Statistics` is what is kept of a trace, a few kilobytes and no text; `synthesized`
draws sessions from it, the same ones for the same seed.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import msgspec
import numpy as np

from loadgen.errors import UsageError
from loadgen.traces.synth.bins import JointBins, apportioned, draw_lengths, joint_pct8
from loadgen.traces.synth.gaps import Shape, drawn_seconds, shape_of
from loadgen.traces.trace import Session, Turn

VERSION = "tracestats/1"


class Conversations(msgspec.Struct, frozen=True):
    """How long conversations are, and how long each new text and reply is."""

    turns: dict[int, int]
    """Conversations by their number of turns."""
    first: JointBins
    later: JointBins
    """New text of a turn, without the history it carries, and its reply."""
    longest_tokens: int
    """No conversation of the source grew beyond this."""

    def __post_init__(self) -> None:
        """Refuse what no conversation could be drawn from."""
        if not self.turns or min(self.turns) < 1 or not sum(self.turns.values()) > 0:
            raise ValueError(f"turns are {self.turns}, expected counts by turns >= 1")
        shortest = self.first.in_bin_mean[0] + self.first.out_bin_mean[0]
        if self.longest_tokens < shortest:
            raise ValueError(
                f"longest_tokens is {self.longest_tokens}, expected >= {shortest}"
            )


class Statistics(msgspec.Struct, frozen=True, kw_only=True):
    """What is kept of a trace."""

    statistics: str = VERSION
    name: str
    kind: str
    requests: int
    source: dict[str, Any] = {}
    lengths: JointBins
    """Whole prompt and reply of each request."""
    conversations: Conversations | None = None
    arrivals: Shape | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SynthOptions:
    """What a new trace should be like."""

    requests: int = 1000
    seed: int = 0
    max_turns: int | None = None
    """Longer conversations become several sessions, each carrying its history."""
    think_seconds: float = 4.0
    """Mean of exponential pauses; no source has them, so they are invented."""
    with_arrivals: bool = True


def chained(sessions: Iterable[Session]) -> Iterator[Session]:
    """Conversations rebuilt from rows that are one turn each, history and all.

    A row goes on from the one before when its prompt is at least as long as that
    row's prompt and reply together. Two conversations that fit by chance become
    one, and a turn the source left out counts as new text of the next.
    """
    held: list[Turn] = []
    for session in sessions:
        (turn,) = session.turns
        if held and _needs(turn)[0] >= sum(_needs(held[-1])):
            held.append(turn)
            continue
        if held:
            yield _chain(held)
        held = [turn]
    if held:
        yield _chain(held)


def statistics_of(
    sessions: Iterable[Session], *, name: str, source: dict[str, Any]
) -> Statistics:
    """What to keep of a trace whose turns all say their lengths."""
    totals: list[tuple[int, int]] = []
    first: list[tuple[int, int]] = []
    later: list[tuple[int, int]] = []
    turns: dict[int, int] = {}
    stamps: list[float] = []
    kinds: dict[str, int] = {}
    for session in sessions:
        turns[len(session.turns)] = turns.get(len(session.turns), 0) + 1
        if session.turns[0].at_seconds is not None:
            stamps.append(session.turns[0].at_seconds)
        history = 0
        for place, turn in enumerate(session.turns):
            fresh, reply = _needs(turn)
            prompt = fresh + history if turn.history == "append" else fresh
            totals.append((prompt, reply))
            (later if place else first).append((max(1, prompt - history), reply))
            history = prompt + reply
            kinds[turn.kind] = kinds.get(turn.kind, 0) + 1
    conversations = None
    if later:
        longest = max(prompt + reply for prompt, reply in totals)
        conversations = Conversations(
            dict(sorted(turns.items())), _joint(first), _joint(later), longest
        )
    has_shape = len(stamps) == sum(turns.values()) > 2 and stamps[-1] > stamps[0]
    return Statistics(
        name=name,
        kind=max(kinds, key=lambda kind: kinds[kind]),
        requests=len(totals),
        source=source,
        lengths=_joint(totals),
        conversations=conversations,
        arrivals=shape_of(stamps) if has_shape else None,
    )


def synthesized(statistics: Statistics, options: SynthOptions) -> list[Session]:
    """Sessions of a new trace, `wish.requests` requests in all."""
    generator = np.random.default_rng(options.seed)
    if statistics.conversations is None:
        sessions = _single_turns(statistics, options, generator)
    else:
        sessions = _conversations(statistics, options, generator)
    if statistics.arrivals is not None and options.with_arrivals:
        at_seconds = drawn_seconds(statistics.arrivals, len(sessions), generator)
        sessions = [
            _starting(session, round(at, 6))
            for session, at in zip(sessions, at_seconds.tolist(), strict=True)
        ]
    return sessions


def digest(statistics: Statistics) -> str:
    """The sha256 that names these statistics in a trace's header."""
    return hashlib.sha256(msgspec.json.encode(statistics)).hexdigest()


def _needs(turn: Turn) -> tuple[int, int]:
    if turn.input_tokens is None or turn.output_tokens is None:
        raise UsageError(
            "the trace has text without token counts: statistics need lengths, so "
            "tokenize it first or take a trace of lengths"
        )
    return turn.input_tokens, turn.output_tokens


def _chain(rows: list[Turn]) -> Session:
    turns = [replace(rows[0], history="append")]
    for before, row in itertools.pairwise(rows):
        fresh = max(1, _needs(row)[0] - sum(_needs(before)))
        turns.append(replace(row, history="append", input_tokens=fresh))
    return Session("chained", tuple(turns))


def _joint(pairs: list[tuple[int, int]]) -> JointBins:
    table = np.array(pairs)
    return joint_pct8(table[:, 0], table[:, 1])


def _single_turns(
    statistics: Statistics, options: SynthOptions, generator: np.random.Generator
) -> list[Session]:
    inputs, outputs = draw_lengths(statistics.lengths, options.requests, generator)
    return [
        Session(str(n), (Turn(statistics.kind, None, 0.0, tokens, out),))
        for n, (tokens, out) in enumerate(
            zip(inputs.tolist(), outputs.tolist(), strict=True), 1
        )
    ]


def _conversations(
    statistics: Statistics, options: SynthOptions, generator: np.random.Generator
) -> list[Session]:
    """Whole conversations first, then cut into stretches, shuffled and counted."""
    source = statistics.conversations
    assert source is not None
    counts = np.array(list(source.turns.values()))
    mean = float(np.dot(counts, list(source.turns)) / counts.sum())
    stretches: list[list[Turn]] = []
    while sum(map(len, stretches)) < options.requests:
        # A tenth more than needed: those that reach the longest length end early.
        wanted = max(1, round(1.1 * options.requests / mean))
        numbers = np.repeat(list(source.turns), apportioned(counts, wanted))
        first = iter(_lengths(source.first, len(numbers), generator))
        later = iter(_lengths(source.later, int(numbers.sum()), generator))
        for number in generator.permutation(numbers).tolist():
            pairs = [next(first), *(next(later) for _ in range(number - 1))]
            stretches += _stretches(pairs, source.longest_tokens, options, generator)
    return _numbered(stretches, statistics.kind, options, generator)


def _lengths(
    bins: JointBins, size: int, generator: np.random.Generator
) -> list[tuple[int, int]]:
    inputs, outputs = draw_lengths(bins, size, generator)
    return list(zip(inputs.tolist(), outputs.tolist(), strict=True))


def _stretches(
    pairs: list[tuple[int, int]],
    longest_tokens: int,
    options: SynthOptions,
    generator: np.random.Generator,
) -> list[list[Turn]]:
    """One conversation as sessions of at most `max_turns`, up to its longest length."""
    stretches: list[list[Turn]] = [[]]
    history = 0
    for fresh, reply in pairs:
        if history + fresh + reply > longest_tokens:
            break
        if options.max_turns is not None and len(stretches[-1]) == options.max_turns:
            stretches.append([])
        is_first = not stretches[-1]
        think = 0.0 if is_first else generator.exponential(options.think_seconds)
        tokens = history + fresh if is_first else fresh
        stretches[-1].append(Turn("", None, round(think, 3), tokens, reply))
        history += fresh + reply
    return [stretch for stretch in stretches if stretch]


def _numbered(
    stretches: list[list[Turn]],
    kind: str,
    options: SynthOptions,
    generator: np.random.Generator,
) -> list[Session]:
    """The stretches in random order, cut where the requests are enough."""
    sessions: list[Session] = []
    left = options.requests
    for place in generator.permutation(len(stretches)).tolist():
        if left <= 0:
            break
        turns = tuple(
            replace(turn, kind=kind, history="append")
            for turn in stretches[place][:left]
        )
        left -= len(turns)
        sessions.append(Session(f"s{len(sessions) + 1}", turns))
    return sessions


def _starting(session: Session, at_seconds: float) -> Session:
    first = replace(session.turns[0], at_seconds=at_seconds)
    return Session(session.session_id, (first, *session.turns[1:]))
