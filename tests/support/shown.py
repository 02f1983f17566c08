"""What a person is shown of a run, as text and as a parsed page."""

from __future__ import annotations

from html.parser import HTMLParser

from rich.console import Console, RenderableType


def printed(shown: RenderableType, width: int = 100) -> str:
    console = Console(width=width, no_color=True, force_terminal=False)
    with console.capture() as capture:
        console.print(shown)
    return capture.get()


class Page(HTMLParser):
    """Collects what would reach out of the file, and which tags stay open.

    `scripts` are the types of its scripts, `data` the texts of those that are none but
    data, `structure` its tags with the names of their attributes, in order.
    """

    VOID = ("meta", "br", "link", "img")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.open: list[str] = []
        self.outside: list[str] = []
        self.scripts: list[str | None] = []
        self.data: list[str] = []
        self.structure: list[tuple[str, ...]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.structure.append((tag, *(name for name, _ in attrs)))
        if tag == "script":
            self.scripts.append(dict(attrs).get("type"))
        if tag not in self.VOID and tag != "path":
            self.open.append(tag)
        self.outside += [
            f"{tag} {name}={value}" for name, value in attrs if name in ("src", "href")
        ]

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.structure.append((tag, *(name for name, _ in attrs)))

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "script" and self.scripts[-1] is not None:
            self.data.append(data)

    def handle_endtag(self, tag: str) -> None:
        if tag != "path":
            assert self.open.pop() == tag

    @property
    def is_closed(self) -> bool:
        """Whether it reaches nothing, leaves nothing open and runs one script."""
        ours = [kind for kind in self.scripts if kind != "application/json"]
        return (self.outside, self.open, ours) == ([], [], [None])
