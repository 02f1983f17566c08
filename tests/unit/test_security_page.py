"""SECURITY.md names tests that exist and limits that are so."""

from __future__ import annotations

import re

from proxy.admin.limits import AdminLimits
from proxy.process.options import settings_of
from proxy.relay.config import RelayLimits
from tests.support.paths import ROOT

PAGE = (ROOT / "SECURITY.md").read_text()


def names_of_tests() -> set[str]:
    return {
        name
        for path in (ROOT / "tests").rglob("test_*.py")
        for name in re.findall(r"^ *def (test_\w+)\(", path.read_text(), re.MULTILINE)
    }


def rows_of(title: str) -> list[list[str]]:
    section = PAGE.split(f"\n## {title}\n")[1].split("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows[1:]]


def test_every_promise_names_tests_that_exist() -> None:
    there_are = names_of_tests()
    promises = rows_of("Promised")
    assert promises
    for promise, tests in promises:
        named = re.findall(r"`(test_\w+)`", tests)
        assert named, promise
        assert set(named) <= there_are, promise


def test_every_limit_is_told_with_its_default() -> None:
    told = {cells[0].strip("`"): cells[1].split()[0] for cells in rows_of("Limits")}
    limits = [*settings_of(RelayLimits), *settings_of(AdminLimits)]
    defaults = {f"--{limit.name}": f"{limit.default:g}" for limit in limits}
    assert {option: f"{float(value):g}" for option, value in told.items()} == defaults


def test_the_readme_leads_there() -> None:
    assert "(SECURITY.md)" in (ROOT / "README.md").read_text()
