"""The requests of a trace that are sent, and their times: the rules of a plan.

Two passes over the trace, both lazy. `surveyed` selects and counts, for a rate over
all turns; `scheduled` selects again and gives each session its
start. Neither holds more than a session, or the sessions tied at one instant.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace

from loadgen.errors import PlanError, UsageError
from loadgen.plan.arrivals import ARRIVALS, Pace, grid_seconds, spread_ties, staged
from loadgen.traces.trace import Session, Turn

OVER_LENGTH = ("drop", "truncate", "fail")


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """Options of a plan; None is an option not given."""

    rate_per_second: float | None = None
    """Requests per second over all turns; inf sends everything at once."""
    session_rate_per_second: float | None = None
    stages: tuple[tuple[float, float], ...] = ()
    """Seconds and requests per second over all turns, one after the other."""
    arrival: str = "auto"
    burstiness: float = 1.0
    speed: float | None = None
    num_prompts: int | None = None
    duration_seconds: float | None = None
    """Only sessions that start before this."""
    output_tokens: int | None = None
    """Output length of every request, in place of the trace's own."""
    max_model_len: int | None = None
    over_length: str = "drop"
    dejitter: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        """Raise UsageError for options that no trace could satisfy."""
        known = ("auto", *ARRIVALS)
        if self.arrival not in known:
            raise UsageError(
                f"unknown arrival {self.arrival!r}; known: {', '.join(known)}"
            )
        if self.over_length not in OVER_LENGTH:
            raise UsageError(
                f"unknown over-length rule {self.over_length!r}; "
                f"known: {', '.join(OVER_LENGTH)}"
            )
        for name in _POSITIVE:
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise UsageError(f"{name} is {value}, expected a number above 0")
        if self.seed < 0:
            raise UsageError(f"seed is {self.seed}, expected an integer >= 0")
        given = [n for n in _PACES if getattr(self, n) is not None]
        given += ["stages"] if self.stages else []
        if len(given) > 1:
            raise UsageError(f"{given[0]} and {given[1]} both given, expected one")


_PACES = ("rate_per_second", "session_rate_per_second", "speed")
_POSITIVE = (
    *_PACES, "burstiness", "num_prompts", "duration_seconds", "output_tokens",
    "max_model_len",
)  # fmt: skip


@dataclass(slots=True)
class Survey:
    """Counts of a first pass over the selected sessions."""

    sessions: int = 0
    turns: int = 0
    timed_sessions: int = 0
    first_seconds: float = 0.0
    last_seconds: float = 0.0
    grid: float | None = None
    dropped: dict[str, int] = field(default_factory=dict)
    truncated: int = 0

    @property
    def has_times(self) -> bool:
        """Whether every session has a start time."""
        return self.timed_sessions == self.sessions

    @property
    def turns_per_session(self) -> float:
        """Mean turns, by which a rate of requests becomes one of sessions."""
        return self.turns / self.sessions

    @property
    def own_sessions_per_second(self) -> float | None:
        """The trace's own rate: one over its mean gap; None without two instants."""
        span = self.last_seconds - self.first_seconds
        return (self.sessions - 1) / span if span > 0 else None


@dataclass(frozen=True, slots=True)
class ArrivalPlan:
    """The arrival process that is really used, and its pace."""

    arrival: str
    pace: Pace
    rate_per_second: float | None
    """Requests per second over all turns; None for the trace's own timing, or inf."""
    think_stretch: float = 1.0
    grid: float | None = None
    stages: tuple[tuple[float, float], ...] = ()
    """Seconds and sessions per second."""


def selected(
    sessions: Iterable[Session], load: Load, survey: Survey
) -> Iterator[Session]:
    """Sessions that will be sent: fitting the model, the first `num_prompts` requests.

    Requests left out or cut are counted in `survey`.
    """
    left = load.num_prompts
    for session in sessions:
        if left is not None and left <= 0:
            return
        turns = tuple(_fitting(session, load, survey))[:left]
        if not turns:
            continue
        if left is not None:
            left -= len(turns)
        survey.sessions += 1
        survey.turns += len(turns)
        yield Session(session.session_id, turns)


def surveyed(sessions: Iterable[Session], load: Load) -> Survey:
    """Counts of the sessions that `selected` keeps, and the grid of their instants."""
    survey = Survey()

    def instants() -> Iterator[float]:
        for session in selected(sessions, load, survey):
            at_seconds = session.turns[0].at_seconds
            if at_seconds is None:
                continue
            if not survey.timed_sessions:
                survey.first_seconds = at_seconds
            survey.timed_sessions += 1
            survey.last_seconds = at_seconds
            yield at_seconds

    survey.grid = grid_seconds(instants())
    return survey


def arrival_plan(load: Load, survey: Survey, trace: str) -> ArrivalPlan:
    """Choose process and pace for a trace; `trace` is its name in messages.

    A trace with instants keeps its own gaps, stretched to the rate; one without
    them gets Poisson at the rate. Raises `PlanError` where neither is possible.
    """
    if load.stages:
        return _staged_arrival_plan(load, survey, trace)
    rate = load.rate_per_second
    session_rate = load.session_rate_per_second
    if rate is not None and math.isfinite(rate):
        session_rate = rate / survey.turns_per_session
    if load.arrival == "inf" or math.inf in (rate, session_rate):
        return ArrivalPlan("inf", Pace(seed=load.seed), None)
    arrival = load.arrival
    if arrival == "auto":
        arrival = "trace" if survey.has_times else "poisson"
    if arrival == "trace" or load.speed is not None:
        return _own_arrival_plan(load, survey, session_rate, trace)
    session_rate = session_rate or survey.own_sessions_per_second
    if session_rate is None:
        raise PlanError(f"{trace} has no timestamps: give --rate R (requests/s)")
    pace = Pace(
        seed=load.seed, rate_per_second=session_rate, burstiness=load.burstiness
    )
    return ArrivalPlan(arrival, pace, session_rate * survey.turns_per_session)


def _staged_arrival_plan(load: Load, survey: Survey, trace: str) -> ArrivalPlan:
    """The process at one session a second, and the stages that bend its time."""
    seconds = sum(each for each, _ in load.stages)
    requests = sum(each * rate for each, rate in load.stages)
    unit = replace(load, stages=(), session_rate_per_second=1.0)
    if load.arrival == "inf":
        raise UsageError("--stages have rates, --arrival inf has none: give one")
    found = arrival_plan(unit, survey, trace)
    return replace(
        found,
        rate_per_second=requests / seconds,
        stages=tuple(
            (each, rate / survey.turns_per_session) for each, rate in load.stages
        ),
    )


def _own_arrival_plan(
    load: Load, survey: Survey, session_rate: float | None, trace: str
) -> ArrivalPlan:
    """The trace's own gaps, as they are, faster or slower."""
    if not survey.has_times:
        asked = "--speed" if load.speed is not None else "--arrival trace"
        raise PlanError(
            f"{trace} has no timestamps, which {asked} needs: give --rate R instead"
        )
    if load.arrival not in ("auto", "trace"):
        raise UsageError(
            f"--speed keeps the trace's own gaps, --arrival {load.arrival} draws new "
            "ones: give one of them"
        )
    own, stretch = survey.own_sessions_per_second, 1 / (load.speed or 1.0)
    rate = None
    if session_rate is not None:
        stretch = own / session_rate if own else 1.0
        rate = session_rate * survey.turns_per_session
    return ArrivalPlan(
        "trace",
        Pace(seed=load.seed, stretch=stretch),
        rate,
        think_stretch=1 / (load.speed or 1.0),
        grid=survey.grid if load.dejitter else None,
    )


def scheduled(
    sessions: Iterable[Session], load: Load, arrival_plan: ArrivalPlan
) -> Iterator[tuple[float, Session]]:
    """Each selected session with its start; later turns moved along with it.

    A first turn keeps the trace's instant: its session's start is what counts.
    """
    mine, counted = itertools.tee(selected(sessions, load, Survey()))
    own: Iterator[float] = (s.turns[0].at_seconds or 0.0 for s in counted)
    if arrival_plan.grid is not None:
        own = spread_ties(own, arrival_plan.grid, arrival_plan.pace.seed)
    starts = ARRIVALS[arrival_plan.arrival](own, arrival_plan.pace)
    if arrival_plan.stages:
        starts = staged(starts, arrival_plan.stages)
    for start, session in zip(starts, mine, strict=False):
        if load.duration_seconds is not None and start >= load.duration_seconds:
            return
        yield start, _moved(session, start, arrival_plan)


def _moved(session: Session, start: float, arrival_plan: ArrivalPlan) -> Session:
    if len(session.turns) == 1:
        return session
    first = session.turns[0].at_seconds
    turns = [session.turns[0]]
    for turn in session.turns[1:]:
        at_seconds = None
        if turn.at_seconds is not None and first is not None:
            at_seconds = start + (turn.at_seconds - first) * arrival_plan.pace.stretch
        think_seconds = turn.think_seconds * arrival_plan.think_stretch
        turns.append(replace(turn, at_seconds=at_seconds, think_seconds=think_seconds))
    return Session(session.session_id, tuple(turns))


def _fitting(session: Session, load: Load, survey: Survey) -> Iterator[Turn]:
    """Turns whose prompt and reply fit the model, by the stated rule."""
    history = 0
    for place, turn in enumerate(session.turns):
        if load.output_tokens is not None:
            turn = replace(turn, output_tokens=load.output_tokens)
        before = history if turn.history == "append" else 0
        wanted = before + (turn.input_tokens or 0) + (turn.output_tokens or 0)
        excess = wanted - load.max_model_len if load.max_model_len else 0
        if excess > 0:
            shorter = _shortened(turn, excess, session, load)
            if shorter is None:
                gone = len(session.turns) - place if turn.history == "append" else 1
                survey.dropped["over_length"] = (
                    survey.dropped.get("over_length", 0) + gone
                )
                if turn.history == "append":
                    return  # every later turn would carry this history as well
                continue
            survey.truncated += 1
            turn = shorter
        history = before + (turn.input_tokens or 0) + (turn.output_tokens or 0)
        yield turn


def _shortened(turn: Turn, excess: int, session: Session, load: Load) -> Turn | None:
    """The turn with a shorter prompt; None where the rule or the turn forbids it."""
    if load.over_length == "fail":
        raise PlanError(
            f"session {session.session_id}: a turn needs "
            f"{(load.max_model_len or 0) + excess} tokens, --max-model-len is "
            f"{load.max_model_len}; drop or truncate with --over-length"
        )
    length = (turn.input_tokens or 0) - excess
    has_text = turn.prompt is not None or turn.messages is not None
    if load.over_length == "drop" or has_text or length < 1:
        return None
    return replace(turn, input_tokens=length)
