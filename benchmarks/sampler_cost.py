"""What sampling costs: CPU of a core at 50 Hz for 8 GPUs, through the real pynvml.

    python benchmarks/sampler_cost.py [--gpus 8] [--hertz 50] [--seconds 10] [--json]

Without a GPU the NVML library is the one that the tests compile from C, so the
figure is of our side: the thread, pynvml, the readings and the energy curve. What
the driver itself takes per call comes on top and is not in it. Needs a C compiler.
"""

from __future__ import annotations

import argparse
import json
import os
import queue
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
TARGET_FRACTION = 0.01


def measure(gpus: int, hertz: float, seconds: float) -> dict[str, float]:
    """CPU of the whole process while the sampler feeds a meter; the rest sleeps."""
    from proxy.meter.meter import Meter
    from proxy.power.sampler import Sampler
    from proxy.power.sources import source_opener
    from proxy.wire.events import PowerSampled

    events: queue.SimpleQueue[PowerSampled] = queue.SimpleQueue()
    meter = Meter()
    names = tuple(str(index) for index in range(gpus))
    sampler = Sampler(source_opener("nvml", names), 1 / hertz, events.put)
    sampler.start()
    first = events.get()
    assert first.gap_reason is None, first
    wall, cpu = time.monotonic(), time.process_time()
    samples = 0
    while (now := time.monotonic()) < wall + seconds:
        event = events.get()
        assert event.gap_reason is None, event
        meter.feed(event)
        samples += 1
        if samples % 5 == 0:
            meter.settle(now)
    used, elapsed = time.process_time() - cpu, time.monotonic() - wall
    sampler.stop()
    return {
        "gpus": gpus,
        "hertz": samples / elapsed,
        "cpu_fraction": used / elapsed,
        "cpu_us_per_read": 1e6 * used / samples,
        "missed": sampler.stats.missed,
    }


def with_stub_library() -> int:
    """Run this program again where pynvml finds the compiled library."""
    source = ROOT / "tests" / "proxy" / "nvml_stub.c"
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "libnvidia-ml.so.1"
        subprocess.run(["cc", "-shared", "-fPIC", "-o", library, source], check=True)
        environment = os.environ | {
            "LD_LIBRARY_PATH": folder,
            "SERVEWATT_NVML_BOARDS": "8",
            "PYTHONPATH": str(ROOT),
        }
        command = [sys.executable, __file__, "--here", *sys.argv[1:]]
        return subprocess.run(command, env=environment).returncode


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gpus", type=int, default=8)
    parser.add_argument("--hertz", type=float, default=50.0)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    wish = parser.parse_args()
    if not wish.here:
        return with_stub_library()
    found = measure(wish.gpus, wish.hertz, wish.seconds)
    if wish.json:
        print(json.dumps(found))
        return 0
    reached = "reached" if found["cpu_fraction"] <= TARGET_FRACTION else "missed"
    print(
        f"{wish.gpus} GPUs at {found['hertz']:.1f} Hz: "
        f"{100 * found['cpu_fraction']:.2f} % of a core, "
        f"{found['cpu_us_per_read']:.0f} us per read of all of them, "
        f"{found['missed']:.0f} missed (target 1 %: {reached}; without the driver)"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
