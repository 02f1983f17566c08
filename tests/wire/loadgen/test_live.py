"""What a person sees while a run goes on."""

from __future__ import annotations

import io
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import msgspec
import pytest
from rich.console import Console

from loadgen.results.progress import Progress
from loadgen.run.live import EnergyMeter, EnergyNow, View, live_view, polling_energy
from proxy.wire.api import BooksReply, Phases


def books(joules: float, *, known: bool = True) -> BooksReply:
    """A proxy's books after so many joules: half active, a tenth idle share."""
    if not known:
        return BooksReply(complete=True)
    return BooksReply(
        complete=True,
        simulated=True,
        device_watts={"gpu0": 100.0, "gpu1": joules},
        measured_joules=joules,
        attributed_joules=Phases(prefill=0.2 * joules, decode=0.3 * joules),
        idle_share_joules=0.1 * joules,
        idle_joules=0.4 * joules,
        unattributed_joules={},
        residual_joules=0.0,
    )


def running() -> Progress:
    progress = Progress(
        planned=480, offered_per_second=4.0, sent=120, in_flight=4, ok=115,
        failed=1, tokens=14_000, zero_seconds=1000.0,
    )  # fmt: skip
    progress.ttft_seconds.extend([0.04, 0.05, 0.09])
    progress.lag_seconds.extend([0.0004])
    return progress


def view(progress: Progress, energy: EnergyNow | None) -> View:
    return View(progress, lambda: energy, is_simulated=False)


def drawn(shown: View, now: float) -> str:
    console = Console(width=100, file=io.StringIO())
    console.print(shown.panel(now))
    text = console.file
    assert isinstance(text, io.StringIO)
    return text.getvalue()


def test_the_line_says_everything_with_units() -> None:
    shown = view(running(), EnergyNow(watts=312.0, joules_per_request=77.7))
    line = shown.line(1030.0)
    for part in (
        "30 s:", "120 of 480 sent", "4 in flight", "115 done", "1 failed",
        "4.00 requests/s asked", "4.00 requests/s achieved", "467 tokens/s",
        "TTFT p50 50.0 ms", "schedule lag p50 400 µs", "312 W", "77.7 J/request",
    ):  # fmt: skip
        assert part in line
    assert "SIMULATED" not in line


def test_a_simulated_sensor_is_named_in_line_and_panel() -> None:
    shown = view(running(), EnergyNow(simulated=True))
    assert shown.line(1030.0).startswith("SIMULATED")
    assert "SIMULATED" in drawn(shown, 1030.0)


def test_what_is_unknown_is_a_dash_and_not_a_zero() -> None:
    line = view(Progress(planned=10), EnergyNow()).line(5.0)
    assert "– asked, – achieved, –; TTFT p50 –" in line
    assert "–, –/request" in line


def test_without_a_proxy_energy_is_said_to_be_unmetered() -> None:
    assert "energy not metered" in view(running(), None).line(1030.0)


def test_rates_are_of_the_last_ten_seconds() -> None:
    progress = running()
    shown = view(progress, None)
    for second in range(1, 31):
        progress.sent = 10 * second if second < 15 else 140
        line = shown.line(1000.0 + second)
    assert "0 requests/s achieved" in line


def test_the_commonest_failure_is_shown() -> None:
    progress = running()
    progress.errors |= {"HTTP 503: overloaded": 9, "connection refused": 2}
    assert "9 × HTTP 503: overloaded" in drawn(view(progress, None), 1030.0)


def test_watts_are_of_all_devices_and_joules_since_the_first_poll() -> None:
    meter = EnergyMeter()
    meter.take(books(50.0), finished=0)
    assert meter.now == EnergyNow(watts=150.0, simulated=True)
    meter.take(books(350.0), finished=2)
    meter.take(books(650.0), finished=6)
    assert meter.now is not None
    assert meter.now.watts == pytest.approx(750.0)
    assert meter.now.joules_per_request == pytest.approx(0.6 * 600 / 6)
    assert meter.now.simulated


def test_books_that_know_nothing_change_nothing() -> None:
    meter = EnergyMeter()
    meter.take(books(50.0), finished=0)
    before = meter.now
    meter.take(books(0.0, known=False), finished=3)
    assert meter.now == before


@contextmanager
def proxy_saying(replies: list[bytes], asked: threading.Event) -> Iterator[str]:
    """A real HTTP server that gives each reply once, then the last again."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            is_last = len(replies) == 1
            body = replies[0] if is_last else replies.pop(0)
            self.send_response(200)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
            if is_last:
                asked.set()

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def test_books_are_polled_until_the_block_ends() -> None:
    replies = [msgspec.json.encode(books(100.0 * n)) for n in range(4)]
    asked = threading.Event()
    progress = Progress(ok=5)
    with (
        proxy_saying(replies, asked) as url,
        polling_energy(url, progress, every_seconds=0.01) as meter,
    ):
        assert asked.wait(10)
    assert meter.now is not None
    assert meter.now.watts == pytest.approx(400.0)
    assert meter.now.simulated


def test_a_proxy_that_does_not_answer_breaks_nothing() -> None:
    with polling_energy("http://127.0.0.1:9", Progress(), 0.01) as meter:
        assert meter.now == EnergyNow()


@dataclass(frozen=True)
class Alone:
    admin_url: str | None = None
    admin_token: str | None = None
    is_simulated: bool = True


@pytest.mark.parametrize("terminal", [True, False])
def test_quiet_writes_nothing(terminal: bool) -> None:
    console = Console(file=io.StringIO(), force_terminal=terminal)
    with live_view(running(), Alone(), quiet=True, console=console):
        pass
    assert isinstance(console.file, io.StringIO)
    assert console.file.getvalue() == ""


def test_the_view_ends_with_its_block_and_leaves_no_thread() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=100)
    before = threading.active_count()
    with live_view(running(), Alone(), quiet=False, console=console):
        assert threading.active_count() > before
    assert threading.active_count() == before
