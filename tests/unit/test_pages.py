"""The pages: what they link to exists, and the README stays short."""

import re
from pathlib import Path

import click
import pytest

from loadgen.cli import cli as loadgen
from proxy.cli import cli as proxy

ROOT = Path(__file__).parents[2]
FOLDERS = "*.md", "docs/*.md", "*/README.md", "examples/*/README.md"
PAGES = sorted(page for folder in FOLDERS for page in ROOT.glob(folder))
LINK = re.compile(r"\[[^\]]*\]\((?!https?://|mailto:)([^)\s]*)\)")
FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)


def anchors(page: Path) -> set[str]:
    """Headings as a forge turns them into anchors."""
    heads = re.findall(r"^#+ (.*)$", FENCE.sub("", page.read_text()), re.MULTILINE)
    words = (re.sub(r"[^\w\s-]", "", head.lower()) for head in heads)
    return {word.strip().replace(" ", "-") for word in words}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_of_a_page_leads_somewhere(page: Path) -> None:
    for link in LINK.findall(FENCE.sub("", page.read_text())):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target), link


def test_the_readme_is_short_and_leads_to_every_page() -> None:
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 150
    linked = {(ROOT / link.partition("#")[0]).resolve() for link in LINK.findall(text)}
    assert {page.resolve() for page in ROOT.glob("docs/*.md")} <= linked


@pytest.mark.parametrize(
    ("name", "group"), [("loadgen", loadgen), ("metering-proxy", proxy)]
)
def test_every_command_is_in_the_readme(name: str, group: click.Group) -> None:
    text = (ROOT / "README.md").read_text()
    table = text[text.index("## Commands") : text.index("## Where to read on")]
    for command in group.commands:
        assert re.search(rf"`{name} {command}\b|`{command}[ `]", table), command
