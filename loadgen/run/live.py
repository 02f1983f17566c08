"""The live view of a run: it reads counters and never slows the run.

On a terminal a few lines are redrawn twice a second, elsewhere one plain line
is written every five. Drawing happens on a thread of its own, from counters.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from loadgen.energy.join import CLOCK_SKEW_SECONDS
from loadgen.energy.ledgers import ledger_at
from loadgen.report import format as fmt
from loadgen.results.progress import Progress
from loadgen.results.results import Result
from proxy.admin.client import AdminError
from proxy.wire.api import BooksReply, RequestReply

REDRAW_SECONDS = 0.5
LINE_SECONDS = 5.0
POLL_SECONDS = 1.0
_LONGEST_FAILURE = 150
_RATE_SECONDS = 10.0
"""Rates are means of so long: a Poisson stream jitters over less."""


class RunEnvironment(Protocol):
    """Facts of a run for the view."""

    @property
    def admin_url(self) -> str | None:
        """The metering proxy's admin API, if there is one."""

    @property
    def admin_token(self) -> str | None:
        """Its token, where it needs one."""

    @property
    def is_simulated(self) -> bool:
        """Whether engine and GPU are ours."""


@dataclass(frozen=True, slots=True)
class EnergyNow:
    """The latest that is known of the energy; None is not known."""

    watts: float | None = None
    joules_per_request: float | None = None
    """Mean of the answered requests that are settled, idle share included."""
    settled: int = 0
    """Finished requests whose energy is final."""
    waiting: int = 0
    """Finished requests whose energy is not: they are in no figure yet."""
    simulated: bool = False


class EnergyMeter:
    """Turns books and records, as they are polled, into what is shown.

    Requests are told from those of others by their id; only ids that wait are kept.
    """

    def __init__(self) -> None:
        self.now: EnergyNow | None = EnergyNow()
        """None when nobody meters."""
        self.cursor = 0
        """Of the newest record taken."""
        self._waiting: dict[str, bool] = {}
        """Finished requests without a record, and whether they were answered."""
        self._early: dict[str, float | None] = {}
        """Joules of the newest records that no finished request has claimed yet."""
        self._settled = self._metered = 0
        self._joules = 0.0
        self._lock = threading.Lock()

    def finish(self, result: Result) -> None:
        """Take a request that has just ended into account."""
        if result.sent_seconds is None:
            return
        with self._lock:
            is_ok = result.outcome == "ok"
            if result.request_id in self._early:
                self._settle(self._early.pop(result.request_id), is_ok)
            elif is_ok or result.status is not None:  # else it may never have arrived
                self._waiting[result.request_id] = is_ok

    def take(self, books: BooksReply, records: Iterable[RequestReply]) -> None:
        """Take the newest books, and the records since, into account."""
        with self._lock:
            early: dict[str, float | None] = {}
            for record in records:
                self.cursor = record.cursor
                joules = record.energy.energy_joules
                is_ok = self._waiting.pop(record.request_id, None)
                if is_ok is None:
                    early[record.request_id] = joules
                else:
                    self._settle(joules, is_ok)
            self._early = early
            self.now = EnergyNow(
                watts=sum(books.device_watts.values()) if books.device_watts else None,
                joules_per_request=(
                    self._joules / self._metered if self._metered else None
                ),
                settled=self._settled,
                waiting=len(self._waiting),
                simulated=books.simulated,
            )

    def _settle(self, joules: float | None, is_ok: bool) -> None:
        self._settled += 1
        if is_ok and joules is not None:
            self._metered += 1
            self._joules += joules


@contextmanager
def polling_energy(
    admin_url: str | None,
    progress: Progress,
    every_seconds: float = POLL_SECONDS,
    *,
    token: str | None = None,
) -> Iterator[EnergyMeter]:
    """Ask the proxy every second, on a thread, while the block runs.

    A proxy that does not answer leaves the last figures; the verdict names it.
    """
    meter = EnergyMeter()
    if admin_url is None:
        meter.now = None
        yield meter
        return
    begun_unix_seconds = time.time() - CLOCK_SKEW_SECONDS
    progress.watchers.append(meter.finish)
    try:
        with ledger_at(admin_url, timeout_seconds=2.0, token=token) as admin:

            def poll() -> None:
                try:
                    records = list(admin.requests(meter.cursor, begun_unix_seconds))
                    meter.take(admin.books(), records)
                except AdminError:
                    return

            poll()
            with _repeating(poll, every_seconds):
                yield meter
    finally:
        progress.watchers.remove(meter.finish)


@dataclass(frozen=True, slots=True)
class RedrawPace:
    """Counts by a moment; two of them make a rate."""

    at_seconds: float
    sent: int
    tokens: int
    done: int


class View:
    """The lines to show, from counters; remembers ten seconds for the rates."""

    def __init__(
        self,
        progress: Progress,
        energy: Callable[[], EnergyNow | None],
        *,
        is_simulated: bool,
    ) -> None:
        self._progress = progress
        self._energy = energy
        self._is_simulated = is_simulated
        self._paces: list[RedrawPace] = []

    def figures(self, now_seconds: float) -> list[tuple[str, str]]:
        """Names and what to write behind them; `now_seconds` is monotonic."""
        progress, energy = self._progress, self._energy()
        offered = progress.offered_per_second
        sent_rate, token_rate = self._rates(now_seconds)
        counts = f"{progress.sent:,} of {progress.planned:,} sent"
        counts += f", {progress.in_flight} in flight, {progress.ok:,} done"
        counts += f", {progress.failed:,} failed"
        if progress.dropped:
            counts += f", {progress.dropped:,} never sent"
        return [
            ("requests", counts),
            (
                "rate",
                f"{fmt.rate(offered, 'requests/s')} asked, "
                f"{fmt.rate(sent_rate, 'requests/s')} achieved, "
                f"{fmt.rate(token_rate, 'tokens/s')}",
            ),
            (
                "latency",
                f"TTFT p50 {fmt.seconds(progress.ttft_seconds.quantile(0.5))}, "
                f"schedule lag p50 {fmt.seconds(progress.lag_seconds.quantile(0.5))}",
            ),
            ("energy", _energy_text(energy)),
        ]

    @property
    def is_simulated(self) -> bool:
        """Whether engine or sensor are a model."""
        energy = self._energy()
        return self._is_simulated or (energy is not None and energy.simulated)

    def line(self, now_seconds: float) -> str:
        """All figures in one plain line."""
        start = "SIMULATED " if self.is_simulated else ""
        parts = "; ".join(text for _, text in self.figures(now_seconds))  # sets paces
        return f"{start}{self._clock(now_seconds)}: {parts}"

    def panel(self, now_seconds: float) -> Table:
        """The same, a line each, below a bar."""
        progress = self._progress
        done = _done(progress)
        table = Table.grid(padding=(0, 2))
        table.add_column(style="dim")
        table.add_column()
        bar = Table.grid(padding=(0, 1))
        bar.add_row(
            ProgressBar(total=max(progress.planned, 1), completed=done, width=30),
            self._clock(now_seconds),
            Text("SIMULATED", style="bold magenta") if self.is_simulated else "",
        )
        table.add_row("run", bar)
        for name, text in self.figures(now_seconds):
            table.add_row(name, Text(text))
        common = _most_common(progress.errors)
        if common is not None:
            table.add_row(
                "failures", Text(fmt.shortened(common, _LONGEST_FAILURE), style="red")
            )
        return table

    def _elapsed(self, now_seconds: float) -> float:
        zero = self._progress.zero_seconds
        return 0.0 if zero is None else max(now_seconds - zero, 0.0)

    def _clock(self, now_seconds: float) -> str:
        """Time since the start, and how long it will go on."""
        left = self._left_seconds(now_seconds)
        if left is None:
            return _whole(self._elapsed(now_seconds))
        return f"{_whole(self._elapsed(now_seconds))}, about {_whole(left)} left"

    def _left_seconds(self, now_seconds: float) -> float | None:
        """By the pace of the last seconds, and no less than the plan goes on for."""
        progress = self._progress
        remaining = progress.planned - _done(progress)
        if progress.zero_seconds is None or remaining <= 0 or not self._paces:
            return None
        left = 0.0
        if progress.span_seconds is not None:
            left = progress.span_seconds - self._elapsed(now_seconds)
        oldest, newest = self._paces[0], self._paces[-1]
        pace = _per(newest.done - oldest.done, newest.at_seconds - oldest.at_seconds)
        if not pace:
            return left if left > 0 else None
        return max(left, remaining / pace)

    def _rates(self, now_seconds: float) -> tuple[float | None, float | None]:
        progress = self._progress
        if progress.zero_seconds is None:
            return None, None
        if not self._paces:
            self._paces.append(RedrawPace(progress.zero_seconds, 0, 0, 0))
        newest = RedrawPace(
            now_seconds, progress.sent, progress.tokens, _done(progress)
        )
        self._paces.append(newest)
        while len(self._paces) > 2 and (
            self._paces[1].at_seconds <= now_seconds - _RATE_SECONDS
        ):
            del self._paces[0]
        oldest = self._paces[0]
        seconds = newest.at_seconds - oldest.at_seconds
        return (
            _per(newest.sent - oldest.sent, seconds),
            _per(newest.tokens - oldest.tokens, seconds),
        )


@contextmanager
def live_view(
    progress: Progress, environment: RunEnvironment, quiet: bool, console: Console
) -> Iterator[None]:
    """Show a run while the block runs, as the console allows; quiet shows nothing."""
    if quiet:
        yield
        return
    with polling_energy(
        environment.admin_url, progress, token=environment.admin_token
    ) as meter:
        view = View(
            progress, lambda: meter.now, is_simulated=environment.is_simulated
        )  # fmt: skip
        if console.is_terminal:
            shown = Live(console=console, auto_refresh=False, transient=True)
            with shown, _repeating(_redraw(shown, view), REDRAW_SECONDS):
                yield
        else:
            with _repeating(_write_line(console, view), LINE_SECONDS):
                yield


def _redraw(shown: Live, view: View) -> Callable[[], None]:
    return lambda: shown.update(view.panel(time.monotonic()), refresh=True)


def _write_line(console: Console, view: View) -> Callable[[], None]:
    def write() -> None:
        console.print(view.line(time.monotonic()), soft_wrap=True, highlight=False)

    return write


@contextmanager
def _repeating(step: Callable[[], None], every_seconds: float) -> Iterator[None]:
    """Call `step` on a thread again and again, and wait for its end on leaving."""
    ended = threading.Event()

    def work() -> None:
        while not ended.wait(every_seconds):
            step()

    thread = threading.Thread(target=work, name="live", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _energy_text(energy: EnergyNow | None) -> str:
    if energy is None:
        return "energy not metered"
    text = fmt.watts(energy.watts)
    if energy.settled:
        text += f", {fmt.joules(energy.joules_per_request)}/request so far"
        text += f" of {energy.settled:,} settled"
    if energy.waiting:
        text += f", {energy.waiting:,} wait for their joules"
    return text


def _whole(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 99.5 else fmt.duration(seconds)


def _done(progress: Progress) -> int:
    return progress.ok + progress.failed + progress.dropped


def _most_common(errors: dict[str, int]) -> str | None:
    # a copy in one step: the run's loop may add a text at any moment
    found: Sequence[tuple[str, int]] = list(errors.items())
    if not found:
        return None
    text, count = max(found, key=lambda item: item[1])
    return f"{count:,} × {text}"


def _per(amount: float, seconds: float) -> float | None:
    return amount / seconds if seconds > 0 else None
