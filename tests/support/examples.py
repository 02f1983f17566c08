"""The command lines of `examples/`, as a shell would see them with nothing set."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.support.paths import ROOT

EXAMPLES = ROOT / "examples"
FILES = sorted(
    path
    for path in EXAMPLES.glob("*/*")
    if path.name in ("run.sh", "README.md", "compose.yaml")
)
PROGRAMS = ("loadgen", "metering-proxy", "vllm", "transformers", "docker", "curl")
_ASSIGNED = re.compile(r"^(\w+)=(\S+)")
_DEFAULT = re.compile(r"\$\{\w+:-([^}]*)\}")


@dataclass(frozen=True, slots=True)
class Line:
    """One command of an example."""

    path: Path
    words: tuple[str, ...]

    @property
    def program(self) -> str:
        """Its first word."""
        return self.words[0]

    def __str__(self) -> str:
        return f"{self.path.parent.name}: {' '.join(self.words[:2])}"


def shell_of(path: Path) -> str:
    """The shell of a script, or of the fenced blocks of a page; lines joined."""
    text = path.read_text()
    if path.suffix == ".md":
        text = "\n".join(re.findall(r"^```\n(.*?)^```", text, re.DOTALL | re.MULTILINE))
    return text.replace("\\\n", " ")


def lines_of(path: Path) -> Iterator[Line]:
    """Every command that runs one of `PROGRAMS`."""
    values: dict[str, str] = {}
    for text in shell_of(path).splitlines():
        if assigned := _ASSIGNED.match(text):
            values[assigned[1]] = _DEFAULT.sub(r"\1", assigned[2])
        if text.startswith("until "):
            text = text.removeprefix("until ").partition(";")[0]
        text = re.sub(r"\$(\w+)", lambda m: values.get(m[1], m[0]), text)
        words = shlex.split(text.strip().rstrip("&"), comments=True)
        while words and "=" in words[0]:
            words.pop(0)  # variables of this command alone
        if words and words[0] in PROGRAMS:
            yield Line(path, tuple(words))


LINES = [line for path in FILES for line in lines_of(path)]
