"""What the live page costs the proxy while people look on.

    python -m benchmarks.live_page_cost [--running 500] [--seconds 20]

The admin port in front of a real meter with so many requests that run; readers are
other processes (curl). Prints the CPU time of this process as a part of a core, with no
page open, with one and with as many as there may be.
"""

from __future__ import annotations

import argparse
import asyncio
import subprocess
import time

from proxy.admin.live import MAX_PAGES
from proxy.admin.routes import AdminSources, admin_app
from proxy.admin.server import listen
from proxy.admin.views import EngineSources
from proxy.meter.meter import Meter
from proxy.metrics.samples import Measured
from proxy.power.sampler import SamplerStats
from proxy.store.archive import Archive
from proxy.wire.events import PowerSampled, RequestOpened, TokensReceived
from proxy.wire.facts import Labels, Reading, RequestFacts, Update

STEP_SECONDS, STEPS, WATTS = 0.05, 400, 400.0


def busy_meter(running: int) -> Meter:
    """A meter after 20 s of this many streams of 20 tokens/s, up to now."""
    meter, joules = Meter(), 0.0
    begun = time.monotonic() - STEPS * STEP_SECONDS
    facts = RequestFacts(route="chat", model="m", is_stream=True)
    labels = Labels("m", "conversation", "none")
    token = (Update(carries_token=True, tokens=1),)
    for step in range(STEPS):
        now = begun + step * STEP_SECONDS
        joules += STEP_SECONDS * WATTS
        meter.feed(PowerSampled("gpu", now, (Reading("gpu0", joules=joules),)))
        for key in range(1, running + 1):
            if step == 0:
                meter.feed(RequestOpened(key, now, f"request-{key}", facts, labels))
            else:
                meter.feed(TokensReceived(key, now, token))
        meter.settle(now)
    return meter


def sources_of(meter: Meter) -> AdminSources:
    """What the admin port shows of it."""

    async def is_up() -> str | None:
        return None

    def measured() -> list[Measured]:
        return [Measured("gpu", "nvml", meter.state(), SamplerStats())]

    return AdminSources(
        engines=[EngineSources("vllm", meter, measured, is_up)],
        records=Archive(),
        version="benchmark",
        config={},
        render_metrics=lambda _: b"",
        render_recent=lambda: b"",
        sample_interval_seconds=0.02,
        freshen=lambda: None,
    )


async def measure(running: int, seconds: float) -> None:
    """Print a line for each number of pages."""
    app = admin_app(sources_of(busy_meter(running)))
    server = await listen(app, "127.0.0.1", 0, None)
    url = f"http://127.0.0.1:{server.port}/live"
    for pages in (0, 1, MAX_PAGES):
        readers = [
            await asyncio.create_subprocess_exec(
                "curl", "-sN", url, stdout=subprocess.DEVNULL
            )
            for _ in range(pages)
        ]
        await asyncio.sleep(2)
        cpu, begun = time.process_time(), time.monotonic()
        await asyncio.sleep(seconds)
        part = (time.process_time() - cpu) / (time.monotonic() - begun)
        print(f"{running} running, {pages} pages: {part:.2%} of a core")
        for reader in readers:
            reader.terminate()
            await reader.wait()
    await server.close()


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--running", type=int, default=500)
    parser.add_argument("--seconds", type=float, default=20.0)
    asked = parser.parse_args()
    asyncio.run(measure(asked.running, asked.seconds))


if __name__ == "__main__":
    main()
