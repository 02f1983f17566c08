"""The report in a real browser: it reads without a script, and saves with its own."""

from __future__ import annotations

import asyncio
import csv
from collections.abc import Awaitable, Callable
from pathlib import Path
from xml.etree import ElementTree

import pytest

from loadgen.analysis.summary import RunInfo
from loadgen.energy.join import Patience
from loadgen.run.finish import finish_run
from tests.support.browser import (
    LOOK_SECONDS,
    Tab,
    needs_browser,
    open_tab,
)
from tests.support.canned_run import (
    ZERO_UNIX,
    CannedProxy,
    failed,
    made_results,
    serving,
    write_run,
)

pytestmark = needs_browser
PRESSES, SAVED_SECONDS = 4, 10.0
HOSTILE = "<img src=x onerror=\"document.title='run'\"></script><script>alert(1)"


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    results = [*made_results(60), failed("bad", at=2.0)]
    write_run(folder, results)
    info = RunInfo(
        zero_unix_seconds=ZERO_UNIX, metered=True, model=HOSTILE,
        metadata={HOSTILE: HOSTILE},
    )  # fmt: skip
    with serving(CannedProxy(results)) as url:
        finish_run(folder, info, admin_url=url, patience=Patience(10, 0))
    return folder / "report.html"


def looked_at(
    page: Path, width: int, look: Callable[[Tab], Awaitable[None]]
) -> list[str]:
    """What the browser complained of while somebody looked."""

    async def run() -> list[str]:
        async with open_tab(page.as_uri(), width=width) as tab:
            await tab.until("document.documentElement?.className === 'scripted'")
            await look(tab)
            return tab.complaints

    return asyncio.run(run())


def test_every_figure_is_saved_as_drawing_picture_and_table(
    page: Path, tmp_path: Path
) -> None:
    async def save(tab: Tab) -> None:
        await tab.call(
            "Page.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path)
        )
        buttons = await tab.value("document.querySelectorAll('button').length")
        assert buttons >= 9 * 3
        for at in range(buttons):
            # a browser with much to do drops one of many: press again, as people do
            for _ in range(PRESSES):
                if await pressed(tab, at, tmp_path):
                    break
            else:
                raise AssertionError(f"button {at} saved nothing: {complete(tmp_path)}")

    assert looked_at(page, 1200, save) == []
    files = complete(tmp_path)
    assert all("SIMULATED" in file.name for file in files)
    for file in files:
        if file.suffix == ".svg":
            drawn = ElementTree.parse(file).getroot()
            text = file.read_text()
            assert "var(" not in text
            assert "class=" not in text
            assert "SIMULATED" in text
            assert float(drawn.get("width", "0")) >= 480
        elif file.suffix == ".png":
            data = file.read_bytes()
            assert data.startswith(b"\x89PNG")
            assert int.from_bytes(data[16:20], "big") >= 960
        else:
            with file.open(newline="") as rows:
                assert len(list(csv.DictReader(rows))) > 1
    stems = {
        form: {file.stem for file in files if file.suffix == form}
        for form in (".svg", ".png", ".csv")
    }
    assert stems[".svg"] == stems[".png"]
    assert all(
        any(table.startswith(stem) for table in stems[".csv"]) for stem in stems[".svg"]
    )


async def pressed(tab: Tab, number: int, folder: Path) -> bool:
    """Whether a button that a person presses saves a file that was not there."""
    before = complete(folder)
    await tab.call(
        "Runtime.evaluate", userGesture=True,
        expression=f"document.querySelectorAll('button')[{number}].click()",
    )  # fmt: skip
    for _ in range(round(SAVED_SECONDS / LOOK_SECONDS)):
        if complete(folder) != before:
            return True
        await asyncio.sleep(LOOK_SECONDS)
    return False


def complete(folder: Path) -> list[Path]:
    return sorted(f for f in folder.iterdir() if f.suffix in {".svg", ".png", ".csv"})


@pytest.mark.parametrize("width", [380, 1200])
def test_the_page_fits_and_runs_nothing_of_others(page: Path, width: int) -> None:
    async def look(tab: Tab) -> None:
        assert await tab.value("document.documentElement.scrollWidth") <= width
        assert await tab.value("document.querySelectorAll('img').length") == 0
        assert "servewatt" in await tab.value("document.title")

    assert looked_at(page, width, look) == []


def test_a_script_that_got_in_would_not_run(page: Path, tmp_path: Path) -> None:
    changed = tmp_path / "report.html"
    text = page.read_text()
    changed.write_text(
        text.replace("<main>", "<main><script>document.title = 'run'</script>", 1)
    )

    async def look(tab: Tab) -> None:
        assert await tab.value("document.title") != "run"

    assert any("Content Security Policy" in c for c in looked_at(changed, 1200, look))
