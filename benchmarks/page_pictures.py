"""Pictures of the report and of the live page, as a browser shows them.

    python -m benchmarks.page_pictures docs/pictures

A run of a minute goes through a proxy before a simulated engine; the live page is
looked at meanwhile, the report afterwards, in Debian's Chromium. Two minutes. What is
on them is SIMULATED, and they say so.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import sys
import tempfile
from pathlib import Path

from tests.support.browser import Tab, open_tab
from tests.support.children import metering, simulating
from tests.support.paths import ROOT

WIDTH = 1200
LIVE_HEIGHT, REPORT_HEIGHT = 1150, 1420
LOOK_SECONDS = 45.0
REQUESTS = 240
QUALITY = 85


async def pictures(work: Path) -> dict[str, bytes]:
    """The pages' pictures by file name."""
    with simulating(work) as engine, metering(work, engine) as proxy:
        run = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "loadgen", "replay",
            str(ROOT / "traces" / "sharegpt.jsonl"), "--rate", "4", "--quiet",
            "--num-prompts", str(REQUESTS), "--url", proxy["url"],
            "--ledger", proxy["admin_url"], "--out", str(work / "run"),
            cwd=ROOT, stdout=asyncio.subprocess.DEVNULL,
        )  # fmt: skip
        async with open_tab(proxy["admin_url"], width=WIDTH, height=LIVE_HEIGHT) as tab:
            await asyncio.sleep(LOOK_SECONDS)
            live = await shown(tab)
        if await run.wait():
            sys.exit(f"the run ended with exit code {run.returncode}")
    page = (work / "run" / "report.html").as_uri()
    async with open_tab(page, width=WIDTH, height=REPORT_HEIGHT) as tab:
        await tab.until("document.readyState == 'complete'")
        return {"live.webp": live, "report.webp": await shown(tab)}


async def shown(tab: Tab) -> bytes:
    """What the tab shows."""
    found = await tab.call("Page.captureScreenshot", format="webp", quality=QUALITY)
    return base64.b64decode(found["data"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as work:
        for name, picture in asyncio.run(pictures(Path(work))).items():
            (folder / name).write_bytes(picture)
            print(folder / name)


if __name__ == "__main__":
    main()
