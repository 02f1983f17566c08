"""The accounts: what was measured, where every joule went, and what is left.

`measured = prefill + decode + idle share + idle + unattributed` for every
settled interval; `residual_joules` is what the books miss, and is exported.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from proxy.meter.attribution.interval import DOUBTS

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class RequestEnergy:
    """What one request cost, under the headline policy; joules, or None if unknown."""

    prefill_joules: float | None
    decode_joules: float | None
    idle_share_joules: float | None
    energy_joules: float | None
    """Sum of the three above, the inclusive view; less the idle share: active."""
    policy: str
    timing: str
    """`timed`, `estimated` or `unknown`: how well it is known who ran when."""
    policy_joules: Mapping[str, float] = field(default_factory=dict)
    """Active joules (prefill + decode) under every policy, on the same intervals."""
    boundaries: Mapping[str, RequestEnergy] = field(default_factory=dict)
    """What it cost at the other boundaries metered; never summed: they overlap."""
    low_joules: float | None = None
    """`energy_joules` are no less, and no more than `high_joules`, with 90 %."""
    high_joules: float | None = None
    grade: str = "unknown"
    """`good`, `fair`, `poor` or `unknown`: how far the joules can be trusted."""
    grade_reasons: tuple[str, ...] = ()
    """Why it is not `good`; empty where it is, or where nothing is known."""
    idle_share_by_time_joules: float | None = None
    """The idle share under the other rule, which is in no sum: every moment of idle
    divided equally among those who ran, and not by the time that each caused."""

    @property
    def quality(self) -> str:
        """The timing under its older name, with its older word for `timed`."""
        return QUALITY_OF.get(self.timing, self.timing)


QUALITY_OF = {"timed": "exact"}
"""Deprecated values by those of `timing`; the others are the same."""


def unknown_energy(policy: str) -> RequestEnergy:
    """Nothing was measured, or not all of the request's time."""
    return RequestEnergy(None, None, None, None, policy, "unknown")


@dataclass(frozen=True, slots=True)
class RequestRecord:
    """One finished request: what it was, when it ran, what it cost.

    Instants are on the proxy's monotonic clock; None is "did not happen".
    """

    request_id: str
    route: str
    model: str
    kind: str
    tenant: str
    outcome: str
    """`ok`, `error`, `upstream_error`, `aborted` (client left) or `timeout`."""
    error: str | None
    status: int | None
    arrived_seconds: float
    scheduled_seconds: float | None
    first_token_seconds: float | None
    last_token_seconds: float | None
    finished_seconds: float
    prompt_tokens: int | None
    cached_tokens: int | None
    output_tokens: int | None
    energy: RequestEnergy
    inferred_cached_tokens: int | None = None
    """Prompt tokens taken as cached although no reply told of it; see
    `activity/hidden_cache`."""
    stored_model: str | None = None
    """The model as asked for, where that is not bounded as the label is."""
    stored_tenant: str | None = None
    """The tenant as filed, where that is not bounded as the label is."""
    engine: str = ""
    """Name of the upstream that got it."""
    is_output_lower_bound: bool = False
    """The reply broke off: `output_tokens` are those seen, the engine may have made
    more."""
    leg: str | None = None
    """`prefill` or `decode`: the half of a request that two engines serve; None: it
    is a whole one."""
    key: int = 0
    """The request's key, by which a record follows the note of it; 0: it has none."""


@dataclass(frozen=True, slots=True)
class Books:
    """The accounts from the first reading up to `settled_seconds`, in joules."""

    settled_seconds: float
    measured_joules: float
    prefill_joules: float
    decode_joules: float
    idle_share_joules: float
    idle_joules: float
    unattributed_joules: Mapping[str, float]
    """By reason; never silently spread over requests."""
    residual_joules: float
    """measured minus all accounts; not 0 means a defect."""
    gap_seconds: float = 0.0
    """Time without measurement so far: its joules are unattributed or unknown."""
    attributed_low_joules: float = 0.0
    """What all requests were charged is no less, and no more than the next, with
    90 %: prefill, decode and idle share together."""
    attributed_high_joules: float = 0.0


HISTORY_WINDOWS = 200_000
"""About a day of half-second windows can be asked for, in 20 MB."""

CLASSES = 200
"""Distinct label sets kept; more share the last one, so memory stays bounded."""

UNATTRIBUTED_REASONS = (
    "sensor_gap", "counter_reset", "external", "shared_gpu", "unmetered",
)  # fmt: skip
_ACCOUNTS = 5 + len(UNATTRIBUTED_REASONS)
_GAP = _ACCOUNTS  # after the accounts comes one column of seconds


@dataclass(frozen=True, slots=True)
class Closing:
    """One window, fully divided: what `Ledger.close` posts."""

    end_seconds: float
    measured_joules: float
    """Cumulative at the window's end, read from the sensor's curve."""
    idle_joules: float = 0.0
    unattributed_joules: Mapping[str, float] = field(default_factory=dict)
    """By reason."""
    gap_seconds: float = 0.0
    """Seconds of the window that were not measured."""
    keys: Sequence[int] = ()
    """Keys of the requests, each at most once."""
    idle_share_joules: FloatArray = field(default_factory=lambda: np.empty(0))
    idle_by_time_joules: FloatArray | None = None
    """The idle shares under the other rule; None: the same."""
    policy_joules: FloatArray = field(default_factory=lambda: np.empty((0, 0, 2)))
    """Shape (policies, requests, 2): prefill and decode, in the ledger's order."""
    doubts: FloatArray | None = None
    """Shape (requests, DOUBTS): what their intervals are made of; None adds none."""


class Ledger:
    """Entries of requests in flight, totals by account, class and policy."""

    def __init__(self, policies: Sequence[str], headline: str) -> None:
        self.policies = tuple(policies)
        self.headline = headline
        self._head = self.policies.index(headline)
        self._entries = np.zeros((64, len(self.policies), 2))
        self._idle_shares = np.zeros(64)
        self._doubts = np.zeros((64, DOUBTS))
        self._idle_by_time = np.zeros(64)
        self._classes = np.zeros(64, np.int64)
        self._free = list(range(63, -1, -1))
        self._slots: dict[int, int] = {}
        """Row of every open entry."""
        self._class_ids: dict[tuple[str, ...], int] = {}
        self._class_joules = np.zeros((CLASSES + 1, 3))
        """The last row is of entries that have no class yet."""
        self._class_tokens = np.zeros((CLASSES, 3), np.int64)
        self._policy_totals = np.zeros((len(self.policies), 2))
        self._totals = np.zeros(_ACCOUNTS + 1)
        self._opening_joules = 0.0
        self._history = [array("d") for _ in range(2 + _ACCOUNTS)]

    def open(self, key: int, labels: tuple[str, ...] | None) -> None:
        """A new entry, all zero; `labels` is the class it is summed under.

        None where that is not known yet: `classify` must follow, or the entry is in
        the accounts and in no class.
        """
        if not self._free:
            self._grow()
        slot = self._slots[key] = self._free.pop()
        self._entries[slot] = 0.0
        self._idle_shares[slot] = self._idle_by_time[slot] = 0.0
        self._doubts[slot] = 0.0
        self._classes[slot] = CLASSES if labels is None else self._class_id(labels)

    def classify(self, key: int, labels: tuple[str, ...]) -> None:
        """Sum the entry under this class from now on, with all it has so far."""
        slot = self._slots[key]
        posted = np.append(self._entries[slot, self._head], self._idle_shares[slot])
        self._class_joules[self._classes[slot]] -= posted
        self._classes[slot] = self._class_id(labels)
        self._class_joules[self._classes[slot]] += posted

    def entry(self, key: int) -> tuple[FloatArray, float]:
        """Joules so far, shape (policies, 2), and the idle share."""
        slot = self._slots[key]
        return self._entries[slot].copy(), float(self._idle_shares[slot])

    def doubts(self, key: int) -> list[float]:
        """Doubts so far, of length DOUBTS."""
        found: list[float] = self._doubts[self._slots[key]].tolist()
        return found

    def idle_by_time(self, key: int) -> float:
        """The idle share so far, under the other rule."""
        return float(self._idle_by_time[self._slots[key]])

    def count_tokens(self, key: int, tokens: Sequence[int | None]) -> None:
        """Prompt, cached and output tokens of a finished request; None adds none."""
        row = self._class_tokens[self._classes[self._slots[key]]]
        for column, count in enumerate(tokens):
            if count:
                row[column] += count

    def release(self, key: int) -> None:
        """The entry's record is written."""
        self._free.append(self._slots.pop(key))

    def begin(self, at_seconds: float, measured_joules: float = 0.0) -> None:
        """The books open here, all accounts at zero.

        What was measured before, of devices that were read earlier than the last
        one of their group, is in no account.
        """
        if not self._history[0]:
            self._opening_joules = measured_joules
            self._remember(at_seconds)

    def close(self, closing: Closing) -> None:
        """Post one window: the only way a joule gets into any account.

        Totals are summed from what was posted to the entries, and the measured
        total comes from the sensor, so a joule lost in between shows as residual.
        """
        if closing.keys:
            slots = np.fromiter(
                map(self._slots.__getitem__, closing.keys), np.int64, len(closing.keys)
            )
            self._entries[slots] += closing.policy_joules.swapaxes(0, 1)
            self._idle_shares[slots] += closing.idle_share_joules
            if closing.doubts is not None:
                self._doubts[slots] += closing.doubts
            by_time = closing.idle_by_time_joules
            self._idle_by_time[slots] += (
                closing.idle_share_joules if by_time is None else by_time
            )
            head = closing.policy_joules[self._head]
            posted = np.column_stack((head, closing.idle_share_joules))
            classes, rows = self._classes[slots], len(self._class_joules)
            for column, joules in enumerate(posted.T):
                self._class_joules[:, column] += np.bincount(classes, joules, rows)
            self._policy_totals += closing.policy_joules.sum(axis=1)
            self._totals[1:4] += posted.sum(axis=0)
        self._totals[0] = closing.measured_joules - self._opening_joules
        self._totals[4] += closing.idle_joules
        for reason, joules in closing.unattributed_joules.items():
            self._totals[5 + UNATTRIBUTED_REASONS.index(reason)] += joules
        self._totals[_GAP] += closing.gap_seconds
        self._remember(closing.end_seconds)

    def books_at(self, at_seconds: float | None = None) -> Books | None:
        """The accounts at an instant; None before the books opened.

        Within a window they are interpolated in proportion to time. After the
        last one, and before the oldest kept, they are those of its end.
        """
        ends = self._history[0]
        if not ends:
            return None
        if at_seconds is None or at_seconds >= ends[-1]:
            return self._books(ends[-1], self._row(len(ends) - 1))
        after = bisect_left(ends, at_seconds)
        if after == 0:
            return self._books(ends[0], self._row(0))
        part = (at_seconds - ends[after - 1]) / (ends[after] - ends[after - 1])
        row = (1 - part) * self._row(after - 1) + part * self._row(after)
        return self._books(at_seconds, row)

    @property
    def oldest_seconds(self) -> float | None:
        """The earliest instant that can be asked for; None before the books opened."""
        return self._history[0][0] if self._history[0] else None

    @property
    def class_joules(self) -> dict[tuple[str, ...], tuple[float, float, float]]:
        """Prefill, decode and idle share joules by class, headline policy."""
        return {
            labels: (float(row[0]), float(row[1]), float(row[2]))
            for labels, number in self._class_ids.items()
            for row in (self._class_joules[number],)
        }

    @property
    def class_tokens(self) -> dict[tuple[str, ...], tuple[int, int, int]]:
        """Prompt, cached and output tokens of finished requests, by class."""
        return {
            labels: (int(row[0]), int(row[1]), int(row[2]))
            for labels, number in self._class_ids.items()
            for row in (self._class_tokens[number],)
        }

    @property
    def policy_joules(self) -> dict[str, tuple[float, float]]:
        """Prefill and decode joules of all requests, by policy."""
        return {
            name: (float(row[0]), float(row[1]))
            for name, row in zip(self.policies, self._policy_totals, strict=True)
        }

    def _class_id(self, labels: tuple[str, ...]) -> int:
        known = len(self._class_ids)
        if known >= CLASSES - 1 and labels not in self._class_ids:
            labels = ("other",) * len(labels)
        return self._class_ids.setdefault(labels, known)

    def _grow(self) -> None:
        size = len(self._entries)
        self._entries = np.concatenate((self._entries, np.zeros_like(self._entries)))
        self._idle_shares = np.concatenate((self._idle_shares, np.zeros(size)))
        self._doubts = np.concatenate((self._doubts, np.zeros_like(self._doubts)))
        self._idle_by_time = np.concatenate((self._idle_by_time, np.zeros(size)))
        self._classes = np.concatenate((self._classes, np.zeros(size, np.int64)))
        self._free = list(range(2 * size - 1, size - 1, -1))

    def _remember(self, at_seconds: float) -> None:
        for column, value in zip(
            self._history, (at_seconds, *self._totals.tolist()), strict=True
        ):
            column.append(value)
            if len(column) > HISTORY_WINDOWS:
                del column[: HISTORY_WINDOWS // 10]

    def _row(self, index: int) -> FloatArray:
        return np.array([column[index] for column in self._history[1:]])

    def _books(self, at_seconds: float, row: FloatArray) -> Books:
        measured, prefill, decode, idle_share, idle = (float(v) for v in row[:5])
        return Books(
            settled_seconds=at_seconds,
            measured_joules=measured,
            prefill_joules=prefill,
            decode_joules=decode,
            idle_share_joules=idle_share,
            idle_joules=idle,
            unattributed_joules={
                reason: float(joules)
                for reason, joules in zip(
                    UNATTRIBUTED_REASONS, row[5:_ACCOUNTS], strict=True
                )
                if joules > 0
            },
            residual_joules=measured - float(row[1:_ACCOUNTS].sum()),
            gap_seconds=float(row[_GAP]),
        )
