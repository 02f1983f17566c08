"""A run folder made up from a seed, and a proxy's admin API that knows its joules.

The API is a real HTTP server on loopback; its books are the sums of what its
requests cost, so that a report made from it must close.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import msgspec
import numpy as np

from loadgen.plan.plan import PlanHeader
from loadgen.results.results import EnergyPart, Result
from proxy.wire.api import EngineHardware, HardwareReply

ZERO_UNIX = 1_800_000_000.0
IDLE_WATTS = 60.0


def made_results(count: int, *, rate: float = 4.0, seed: int = 1) -> list[Result]:
    """Answered requests with Poisson starts and lognormal lengths, in order of end."""
    draw = np.random.default_rng(seed)
    starts = np.cumsum(draw.exponential(1 / rate, count)).tolist()
    results = [_answered(index, start, draw) for index, start in enumerate(starts)]
    return sorted(results, key=lambda result: result.finished_seconds)


def _answered(index: int, start: float, draw: np.random.Generator) -> Result:
    sent = start + float(draw.exponential(0.0005))
    tokens = int(np.clip(draw.lognormal(3.5, 0.8), 1, 400))
    prompt = int(np.clip(draw.lognormal(5.0, 0.8), 1, 8000))
    first = sent + 0.02 + prompt * 1e-5
    stamps = (first + 0.01 * np.arange(tokens)).tolist()
    return Result(
        request_id=f"r{index}", session_id=f"s{index // 2}", turn=index % 2,
        kind="code" if index % 3 == 0 else "conversation",
        planned_seconds=start, sent_seconds=sent, first_token_seconds=first,
        first_visible_seconds=first, last_token_seconds=stamps[-1],
        finished_seconds=stamps[-1] + 0.001, prompt_tokens=prompt, cached_tokens=0,
        output_tokens=tokens, requested_input_tokens=prompt,
        requested_output_tokens=tokens, chunk_seconds=stamps,
        chunk_tokens=[1] * tokens, outcome="ok", status=200,
    )  # fmt: skip


def failed(request_id: str, *, at: float, outcome: str = "error") -> Result:
    return Result(
        request_id=request_id, session_id=request_id, turn=0, kind="code",
        planned_seconds=at, sent_seconds=None if outcome == "dropped" else at,
        finished_seconds=at + 0.1, outcome=outcome,
        status=503 if outcome == "error" else None, error="HTTP 503: overloaded",
    )  # fmt: skip


def cost_of(result: Result) -> EnergyPart:
    """What the canned proxy says a request cost."""
    prefill = 0.01 * (result.prompt_tokens or 100)
    decode = 0.5 * (result.output_tokens or 0)
    share = 7.0
    return EnergyPart(
        prefill_joules=prefill, decode_joules=decode, idle_share_joules=share,
        energy_joules=prefill + decode + share, policy="phase", quality="exact",
        policy_joules={"phase": prefill + decode, "equal": 20.0},
    )  # fmt: skip


def write_run(folder: Path, results: Sequence[Result], rate: float = 4.0) -> Path:
    """`plan.jsonl` and `requests.jsonl` as a replay leaves them."""
    folder.mkdir(parents=True, exist_ok=True)
    planned = [result.planned_seconds for result in results] or [0.0]
    header = PlanHeader(
        trace="traces/made.jsonl", trace_format="loadtrace", arrival="poisson",
        rate_per_second=rate, burstiness=None, seed=1, sessions=len(results),
        requests=len(results), span_seconds=max(planned),
    )  # fmt: skip
    (folder / "plan.jsonl").write_bytes(msgspec.json.encode(header) + b"\n")
    lines = [msgspec.json.encode(result) + b"\n" for result in results]
    (folder / "requests.jsonl").write_bytes(b"".join(lines))
    return folder


@dataclass
class CannedProxy:
    """What the admin API answers; change it to make the proxy misbehave."""

    results: list[Result]
    unsettled_rounds: int = 0
    """So many asks of `/requests` come back without the last record."""
    settled_seconds: float = 1e9
    knows_joules: bool = True
    body: bytes | None = None
    """Instead of every reply."""
    status: int = 200
    hardware: dict[str, EngineHardware] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    asked_from: list[float] = field(default_factory=list)
    """Of every reading of records, the instant it began at."""

    def reply(self, path: str, query: dict[str, list[str]]) -> bytes:
        self.asked.append(path)
        if self.body is not None:
            return self.body
        if path == "/books":
            at = float(query["at"][0]) if "at" in query else ZERO_UNIX + 1e6
            return msgspec.json.encode(self.books(at - ZERO_UNIX))
        if path == "/requests":
            self.asked_from.append(float(query["from_unix"][0]))
            return self.requests(int(query["since"][0]), int(query["limit"][0]))
        if path == "/hardware":
            return msgspec.json.encode(HardwareReply(engines=self.hardware))
        raise AssertionError(path)

    def books(self, at_seconds: float) -> dict[str, Any]:
        """Each request's joules fall at the moment it ends."""
        ended = [r for r in self.results if r.finished_seconds < at_seconds + 1e-5]
        costs = [cost_of(result) for result in ended]
        prefill = sum(cost.prefill_joules or 0 for cost in costs)
        decode = sum(cost.decode_joules or 0 for cost in costs)
        share = sum(cost.idle_share_joules or 0 for cost in costs)
        idle, bypass = IDLE_WATTS * (at_seconds + 100), 0.25 * (at_seconds + 100)
        known = {
            "measured_joules": prefill + decode + share + idle + bypass,
            "attributed_joules": {"prefill": prefill, "decode": decode},
            "idle_share_joules": share,
            "idle_joules": idle,
            "unattributed_joules": {"bypass": bypass},
            "residual_joules": 0.0,
        }
        return {
            "settled_unix_seconds": ZERO_UNIX + self.settled_seconds,
            "complete": self.settled_seconds >= at_seconds,
            "boundary": "gpu", "source": "dcgm" if self.knows_joules else "none",
            "simulated": True, "policy": "phase", "sample_interval_seconds": 0.1,
            "window_seconds": 0.5, "idle_watts": IDLE_WATTS, "idle_source": "measured",
            "gaps_total": 3, "samples_total": int(10 * (at_seconds + 100)),
            "counter_period_seconds": 0.1, "counter_power_ratio": 1.0,
            "unsettled_seconds": 0.2,
            **(known if self.knows_joules else dict.fromkeys(known)),
        }  # fmt: skip

    def requests(self, since: int, limit: int) -> bytes:
        shown = self.results
        if self.unsettled_rounds > 0:
            self.unsettled_rounds -= 1
            shown = shown[:-1]
        lines: list[bytes] = []
        for sequence, result in enumerate(shown, start=1):
            if sequence > since and len(lines) < limit:
                record = {
                    "sequence": sequence,
                    "request_id": result.request_id,
                    "route": "/v1/chat/completions",
                    "energy": cost_of(result),
                }
                lines.append(msgspec.json.encode(record) + b"\n")
        return b"".join(lines)


@contextmanager
def serving(proxy: CannedProxy) -> Iterator[str]:
    """The admin API on a free port of loopback, while the block runs."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            url = urlsplit(self.path)
            body = proxy.reply(url.path, parse_qs(url.query))
            self.send_response(proxy.status)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()
