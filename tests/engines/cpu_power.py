"""Joules that follow the work really done, on a machine without a GPU: SIMULATED.

A page in dcgm-exporter's text whose one "GPU" draws `IDLE_WATTS`, plus
`WATTS_PER_CORE` for each core that a process and its children keep busy. The work is
the engine's own; only what it costs is made up, so the page carries
`servewatt_simulated 1` and everything after it says SIMULATED.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

IDLE_WATTS = 50.0
WATTS_PER_CORE = 200.0
PAGE = """\
servewatt_simulated 1
DCGM_FI_DEV_POWER_USAGE{{gpu="0",modelName="SIMULATED from CPU time"}} {watts:.3f}
DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION{{gpu="0",modelName="SIMULATED from CPU time"}} \
{millijoules:.3f}
"""


def family(pid: int) -> list[int]:
    """A process and everything it started, now."""
    found = [pid]
    for parent in found:  # grows while it is read
        for tasks in Path(f"/proc/{parent}/task").glob("*/children"):
            with contextlib.suppress(OSError):
                found.extend(int(child) for child in tasks.read_text().split())
    return found


def cpu_seconds(pid: int) -> float:
    """CPU time of one process, all threads, in nanosecond steps; 0.0 once gone."""
    clock = (~pid << 3) | 2  # what clock_getcpuclockid(3) makes of a process id
    try:
        return time.clock_gettime(clock)
    except OSError:
        return 0.0


class CpuMeter:
    """The counter of a GPU that does what a family of processes does."""

    def __init__(self, pid: int) -> None:
        self._root = pid
        self._seen = {p: cpu_seconds(p) for p in family(pid)}
        self._at_seconds = time.monotonic()
        self._joules = 0.0
        self._lock = threading.Lock()

    def page(self) -> str:
        """What a scrape sees now; the counter never goes down."""
        with self._lock:
            now = time.monotonic()
            busy_seconds = 0.0
            for pid in {*family(self._root), *self._seen}:  # new ones and gone ones
                before = self._seen.get(pid, 0.0)
                used = max(cpu_seconds(pid), before)
                busy_seconds += used - before
                self._seen[pid] = used
            elapsed = max(now - self._at_seconds, 1e-6)
            self._at_seconds = now
            joules = IDLE_WATTS * elapsed + WATTS_PER_CORE * busy_seconds
            self._joules += joules
            return PAGE.format(watts=joules / elapsed, millijoules=1e3 * self._joules)


@contextlib.contextmanager
def power_of(pid: int) -> Iterator[str]:
    """`--power` argument of a proxy that is to meter a process' family."""
    meter = CpuMeter(pid)

    class Page(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = -1  # head and body in one write, or each scrape waits 40 ms

        def do_GET(self) -> None:
            body = meter.page().encode()
            self.send_response(200)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Fifty scrapes a second are not worth a line each."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Page)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield f"dcgm=http://127.0.0.1:{server.server_port}/metrics"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
