"""Divides one measured window: idle first, then what each request caused.

Rule: all joules of the window come back in the result. A span between two edges
in which nobody ran is idle as measured; where somebody ran part of it, idle watts
are charged for every second, to the idle account or to those who ran, and the
rest is what the requests caused.

What those who ran are charged of idle is divided twice. By default whoever makes the
engine busy longer pays: seconds of the steps are divided as joules are, with constants
of their own. Beside it stands the plain rule, in which whoever runs pays at every
moment alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from proxy.meter.activity.steps import Steps
from proxy.meter.activity.work import (
    Activity,
    Population,
    activity_between,
    busy_seconds_until,
)
from proxy.meter.attribution.fit import Learnt, work_of
from proxy.meter.attribution.policies import (
    FEATURES,
    FloatArray,
    Policy,
    attribute,
    both,
    by_running_time,
)
from proxy.meter.curve import Window

IDLE_MEMORY_SECONDS = 300.0
"""Idle watts are the mean of the last so many idle seconds: rooms warm up."""

IDLE_ENOUGH_SECONDS = 0.25
BUSY_ENOUGH_SECONDS = 1e-9  # below the resolution of any clock

WORKING_SECONDS = 5.0
"""So long after work a board is still at its working clocks: drivers lower them some
seconds later, on a real one from 118 W to 72 W with nothing to do either way."""
REST_SECONDS = 20.0
"""After so long, and before any work, it is at rest."""


class _Level:
    """Mean power of the newest seconds of one kind."""

    def __init__(self) -> None:
        self.joules = 0.0
        self.seconds = 0.0

    @property
    def watts(self) -> float | None:
        """None until a quarter second was seen."""
        if self.seconds < IDLE_ENOUGH_SECONDS:
            return None
        return self.joules / self.seconds

    def learn(self, joules: float, seconds: float) -> None:
        self.joules += joules
        self.seconds += seconds
        if self.seconds > IDLE_MEMORY_SECONDS:
            shrink = IDLE_MEMORY_SECONDS / self.seconds
            self.joules *= shrink
            self.seconds *= shrink


class IdleWatts:
    """Loaded idle: power with the weights resident and nothing to do.

    Two levels are learnt, right after work and long after it. What runs is charged
    for the first: that is what the board would draw at those clocks anyway.
    """

    def __init__(
        self, given_watts: float | None, last_watts: float | None = None
    ) -> None:
        """`last_watts` were measured just before, by a process that ended."""
        self._given_watts = given_watts
        self._last_watts = last_watts
        self._working = _Level()
        self._rest = _Level()

    @property
    def watts(self) -> float | None:
        """As given, else as measured; at rest until it was seen right after work."""
        if self._given_watts is not None:
            return self._given_watts
        working, rest = self._working.watts, self._rest.watts
        if working is None and rest is None:
            return self._last_watts
        return rest if working is None else working

    @property
    def rest_watts(self) -> float | None:
        """As measured long after work, or before any; None until it was seen."""
        return self._rest.watts

    @property
    def source(self) -> str:
        """`given`, `measured` or `unknown`."""
        if self._given_watts is not None:
            return "given"
        return "unknown" if self.watts is None else "measured"

    def learn(self, joules: float, seconds: float, since_work_seconds: float) -> None:
        """Nothing ran for so long, and the sensor counted so much.

        `since_work_seconds` is how long before that the last work had ended, inf
        where there was none. Between the two levels a board is at neither.
        """
        if since_work_seconds >= REST_SECONDS:
            self._rest.learn(joules, seconds)
        elif since_work_seconds <= WORKING_SECONDS:
            self._working.learn(joules, seconds)


@dataclass(frozen=True, slots=True)
class Division:
    """Where a window's joules went."""

    idle_joules: float
    idle_share_joules: FloatArray
    """By the time that each caused, shape (requests,)."""
    idle_by_time_joules: FloatArray
    """By the time that each ran, shape (requests,); of the books no part."""
    policy_joules: FloatArray
    """Shape (policies, requests, 2): prefill and decode."""
    caused_joules: float = 0.0
    """What the requests caused: the sum of every policy's joules."""
    busy_seconds: float = 0.0
    """How long anybody ran."""
    learnt: Learnt = field(default_factory=Learnt.nothing)
    """What all requests did, for the fit of constants."""
    own_work: FloatArray = field(default_factory=lambda: np.zeros((0, len(FEATURES))))
    """What each request did, shape (requests, features)."""
    external_joules: FloatArray = field(default_factory=lambda: np.zeros(0))
    """Idle share and caused joules of each that has no record."""

    @property
    def work(self) -> FloatArray:
        """What all requests did, shape (features,)."""
        return self.learnt.work


def divide(
    window: Window,
    population: Population,
    steps: Steps,
    starts: FloatArray,
    *,
    idle_watts: float | None,
    policies: Sequence[Policy],
    idle_policy: Policy = by_running_time,
    headline: int = 0,
    by_work: int = 0,
    by_time: int = 0,
) -> Division:
    """Divide a window among a population, all of whom ran in it.

    The last of them have no record here. Of `by_time` only the time they ran is
    known, so by that they get their part, under every policy the same, and of idle.
    Of `by_work`, before those, the work is known: they take part in the division of
    the rest like a request, and are charged what policy number `headline` says. What
    is left of idle `idle_policy` divides, whose weights are seconds. Unknown idle watts
    count as 0: then what requests caused includes their idle.
    """
    edges = window.edges_seconds
    spans = np.clip(np.diff(window.joules), 0.0, None)
    if not len(population.keys):
        return _all_idle(spans, len(policies), 0, 0)
    idle, shared, caused = split_idle(edges, spans, population, idle_watts)
    activity = activity_between(
        window.start_seconds, window.end_seconds, population, steps, starts
    )
    if not (activity.prefill_seconds + activity.decode_seconds).any():
        unseen = by_work + by_time
        return _all_idle(spans, len(policies), len(population.keys) - unseen, unseen)
    plain = both(attribute(shared, activity, by_running_time))
    known = len(plain) - by_time
    own = known - by_work
    theirs = max(shared - float(plain[known:].sum()), 0.0)
    among_known = partial(_among_first, known, idle_policy)
    shares = both(attribute(theirs, activity, among_known))
    shares[known:] = plain[known:]
    seconds = both(by_running_time(activity))
    parts = seconds[known:] / seconds.sum()
    left = max(caused - caused * float(seconds[known:].sum() / seconds.sum()), 0.0)
    charged = np.stack(
        [
            attribute(left, activity, partial(_among_first, known, policy))
            for policy in policies
        ]
    )
    worked = both(charged[headline, own:known])
    work = work_of(activity)
    return Division(
        idle,
        shares[:own],
        plain[:own],
        charged[:, :own],
        left,
        float(seconds.sum()),
        Learnt.of(work),
        work[:own],
        np.concatenate((worked, caused * parts)) + shares[own:],
    )


def _among_first(count: int, policy: Policy, activity: Activity) -> FloatArray:
    """What a policy says, nothing for those after the first `count`."""
    weights = policy(activity)
    if count == len(weights):
        return weights
    is_own = (np.arange(len(weights)) < count)[:, np.newaxis]
    weights = np.where(is_own, weights, 0.0)
    if not (weights > 0).any():
        weights = np.where(is_own, by_running_time(activity), 0.0)
    return np.asarray(weights, dtype=np.float64)


def split_idle(
    edges: FloatArray,
    spans: FloatArray,
    population: Population,
    idle_watts: float | None,
) -> tuple[float, float, float]:
    """Joules of the idle account, of the idle shares, and what requests caused.

    `spans` are the joules between consecutive edges.
    """
    busy = np.diff(busy_seconds_until(edges, float(edges[0]), population))
    watts = idle_watts or 0.0
    nobody = busy <= BUSY_ENOUGH_SECONDS
    quiet = np.clip(np.diff(edges) - busy, 0.0, None)
    idle = np.where(nobody, spans, np.minimum(watts * quiet, spans))
    shared = np.minimum(watts * busy, spans - idle)
    caused = max(float((spans - idle - shared).sum()), 0.0)
    return float(idle.sum()), float(shared.sum()), caused


def _all_idle(spans: FloatArray, policies: int, requests: int, unseen: int) -> Division:
    nothing = np.zeros((policies, requests, 2))
    none = np.zeros(requests)
    return Division(
        float(spans.sum()),
        none,
        none,
        nothing,
        own_work=np.zeros((requests, len(FEATURES))),
        external_joules=np.zeros(unseen),
    )
