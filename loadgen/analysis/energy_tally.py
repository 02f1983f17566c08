"""The joules of a run's requests, summed as records pass by.

Rule: a request whose joules are not known is counted, never taken as 0.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from loadgen.analysis.distribution import Distribution
from loadgen.results.measures import is_ok
from loadgen.results.results import BoundaryPart, Result


@dataclass(slots=True)
class BoundaryTally:
    """Joules of the requests at one boundary."""

    inclusive: Distribution = field(default_factory=Distribution)
    """Of single answered requests: prefill, decode and idle share."""
    active: Distribution = field(default_factory=Distribution)
    answered_joules: float = 0.0
    answered_output_tokens: int = 0
    requests_with: int = 0
    """Sent requests of any outcome."""
    requests_without: int = 0

    def add(self, result: Result, part: BoundaryPart) -> None:
        """Take one sent request into account."""
        joules, share = part.energy_joules, part.idle_share_joules
        if joules is None or share is None:
            self.requests_without += is_ok(result)
            return
        self.requests_with += 1
        if is_ok(result):
            self.inclusive.add(joules)
            self.active.add(joules - share)
            self.answered_joules += joules
            self.answered_output_tokens += result.output_tokens or 0


@dataclass(slots=True)
class EnergyTally:
    """Joules of the requests themselves, as joined by id."""

    requests_with: int = 0
    """Sent requests of any outcome."""
    requests_without: int = 0
    """Answered requests only: one that never reached the proxy has no joules."""
    joined_joules: float = 0.0
    failed_joules: float = 0.0
    answered_joules: float = 0.0
    answered_output_tokens: int = 0
    answered_total_tokens: int = 0
    policy_joules: dict[str, Counter[str]] = field(default_factory=dict)
    """Active joules by policy, then kind."""
    by_policy: dict[str, Distribution] = field(default_factory=dict)
    """Active joules of single answered requests, as each policy would have it."""
    quality: Counter[str] = field(default_factory=Counter)
    by_boundary: dict[str, BoundaryTally] = field(default_factory=dict)
    """At the boundaries beside the headline."""

    def add(self, result: Result) -> None:
        """Take one sent request into account."""
        energy = result.energy
        for name, part in (energy.boundaries if energy else {}).items():
            self.by_boundary.setdefault(name, BoundaryTally()).add(result, part)
        if energy is None or energy.energy_joules is None:
            self.requests_without += is_ok(result)
            return
        self.requests_with += 1
        self.quality[energy.quality] += 1
        self.joined_joules += energy.energy_joules
        for policy, joules in energy.policy_joules.items():
            self.policy_joules.setdefault(policy, Counter())[result.kind] += joules  # type: ignore[assignment]  # a Counter of floats adds as well
        if not is_ok(result):
            self.failed_joules += energy.energy_joules
            return
        for policy, joules in energy.policy_joules.items():
            self.by_policy.setdefault(policy, Distribution()).add(joules)
        self.answered_joules += energy.energy_joules
        self.answered_output_tokens += result.output_tokens or 0
        self.answered_total_tokens += (result.prompt_tokens or 0) + (
            result.output_tokens or 0
        )
