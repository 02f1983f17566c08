"""What a person sees while a run goes on."""

from __future__ import annotations

import io
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import msgspec
import pytest
from rich.console import Console

from loadgen.results.progress import Progress
from loadgen.results.results import Result
from loadgen.run.live import EnergyMeter, EnergyNow, View, live_view, polling_energy
from proxy.wire.api import BooksReply, EnergyReply, Phases, RequestReply


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


def record(request_id: str, joules: float | None, cursor: int = 1) -> RequestReply:
    part = None if joules is None else joules / 3
    return RequestReply(
        cursor=cursor, request_id=request_id,
        energy=EnergyReply(
            prefill_joules=part, decode_joules=part, idle_share_joules=part,
            energy_joules=joules, quality="exact", policy="phase", policy_joules={},
        ),
    )  # fmt: skip


def ended(request_id: str, outcome: str = "ok", **changes: Any) -> Result:
    result = Result(
        request_id=request_id, session_id="s", turn=0, kind="code", planned_seconds=0.0,
        sent_seconds=0.0, finished_seconds=1.0, outcome=outcome,
        status=200 if outcome == "ok" else None,
    )  # fmt: skip
    return msgspec.structs.replace(result, **changes)


def view(progress: Progress, energy: EnergyNow | None) -> View:
    return View(progress, lambda: energy, is_simulated=False)


def drawn(shown: View, now: float) -> str:
    console = Console(width=100, file=io.StringIO())
    console.print(shown.panel(now))
    text = console.file
    assert isinstance(text, io.StringIO)
    return text.getvalue()


def test_the_line_says_everything_with_units() -> None:
    energy = EnergyNow(watts=312.0, joules_per_request=77.7, settled=110, waiting=5)
    shown = view(running(), energy)
    line = shown.line(1030.0)
    for part in (
        "30 s, about 94 s left:", "120 of 480 sent", "4 in flight", "115 done",
        "1 failed",
        "4.00 requests/s asked", "4.00 requests/s achieved", "467 tokens/s",
        "TTFT p50 50.0 ms", "schedule lag p50 400 µs", "312 W",
        "77.7 J/request so far of 110 settled, 5 wait for their joules",
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
    assert line.endswith("; –")


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


def test_figures_so_far_are_of_settled_requests_and_say_how_many_wait() -> None:
    meter = EnergyMeter()
    for name in "abc":
        meter.finish(ended(name))
    meter.take(books(50.0), [record("a", 90.0), record("stranger", 1e9, 2)])
    assert meter.now == EnergyNow(
        watts=150.0, joules_per_request=90.0, settled=1, waiting=2, simulated=True
    )
    meter.take(books(60.0), [record("b", 30.0, 3), record("c", None, 4)])
    assert meter.cursor == 4
    assert meter.now is not None
    assert meter.now.joules_per_request == pytest.approx(60.0)  # of a and b
    assert (meter.now.settled, meter.now.waiting) == (3, 0)


def test_a_record_that_comes_before_the_reply_has_ended_counts() -> None:
    meter = EnergyMeter()
    meter.take(books(50.0), [record("a", 90.0)])
    meter.finish(ended("a"))
    meter.take(books(50.0), [])
    assert meter.now is not None
    assert meter.now.joules_per_request == pytest.approx(90.0)
    assert (meter.now.settled, meter.now.waiting) == (1, 0)


@pytest.mark.parametrize(
    ("result", "waiting"),
    [
        (ended("x", "dropped", sent_seconds=None), 0),
        (ended("x", "timeout"), 0),  # it may never have reached the proxy
        (ended("x", "error", status=503), 1),
    ],
    ids=["never-sent", "unanswered", "refused"],
)
def test_what_failed_is_in_no_mean_and_waits_if_the_proxy_saw_it(
    result: Result, waiting: int
) -> None:
    meter = EnergyMeter()
    meter.finish(result)
    meter.take(books(50.0), [])
    assert meter.now is not None
    assert meter.now.waiting == waiting
    meter.take(books(50.0), [record("x", 0.001)])
    assert meter.now.joules_per_request is None


@pytest.mark.parametrize(
    ("span", "done", "expected"),
    [(120.0, 240, "30 s, about 90 s left"), (None, 240, "30 s, about 30 s left"),
     (3630.0, 0, "30 s, about 1 h left"), (None, 0, "30 s"), (120.0, 480, "30 s")],
    ids=["plan", "pace", "nothing-yet", "unknown", "ended"],
)  # fmt: skip
def test_the_time_left_is_by_plan_and_pace(
    span: float | None, done: int, expected: str
) -> None:
    progress = running()
    progress.ok, progress.failed, progress.span_seconds = done, 0, span
    shown = view(progress, None)
    assert shown.line(1030.0).startswith(f"{expected}: ")


@pytest.mark.parametrize("width", [80, 200])
def test_the_panel_cuts_nothing_without_a_mark(width: int) -> None:
    progress = running()
    progress.errors["HTTP 503: " + "overloaded " * 40] = 9
    energy = EnergyNow(watts=312.0, joules_per_request=77.7, settled=110, waiting=5)
    console = Console(width=width, file=io.StringIO())
    console.print(view(progress, energy).panel(1030.0))
    assert isinstance(console.file, io.StringIO)
    text = " ".join(console.file.getvalue().split())
    assert "requests/s achieved, 467 tokens/s" in text
    assert "110 settled, 5 wait for their joules" in text
    assert re.search(r"9 × HTTP 503: [overlad ]{100,}…$", text)


@contextmanager
def proxy_saying(replies: list[bytes], asked: threading.Event) -> Iterator[str]:
    """A real HTTP server that gives each reply once, then the last again."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path.startswith("/requests"):
                self.send_response(200)
                self.send_header("content-length", "0")
                self.end_headers()
                return
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
