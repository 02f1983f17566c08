"""What all pages share: their frame, their style, their one script, their figures.

A page is one file that reaches nothing outside of it. Its policy
(Content-Security-Policy) lets only the script below run, by its hash: text from
outside could not run even if it were taken for markup, which the templates prevent.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import jinja2
from markupsafe import Markup

from proxy.process.csv_rows import csv_line
from proxy.process.terminal import escaped_lines

SCRIPT, STYLE = "page.js", "style.css"


@dataclass(frozen=True, slots=True)
class Figure:
    """A drawing, and the numbers that it shows, as they are downloaded."""

    name: str
    """Of its files."""
    title: str
    svg: str
    tables: dict[str, str]
    """csv texts by what they hold; the name may be empty where there is one."""
    note: str = ""

    @property
    def drawing(self) -> Markup:
        """The SVG, as markup: `charts` escapes what it is given."""
        return Markup(self.svg)


def table(heads: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """The csv text of a figure: six digits, empty where a value is not known."""
    lines = [csv_line(heads), *(csv_line(map(_number, row)) for row in rows)]
    return b"".join(lines).decode("utf-8", "replace")


def templates() -> jinja2.Environment:
    """The pages' templates; whatever is put into them is shown as text."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("loadgen", "report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=_shown,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    script = _source(environment, SCRIPT)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    environment.globals |= {
        "script": Markup(script),
        "style": Markup(_source(environment, STYLE)),
        "policy": "default-src 'none'; style-src 'unsafe-inline'; "
        f"script-src 'sha256-{digest}'; img-src blob:; base-uri 'none'; "
        "form-action 'none'",
    }
    return environment


def _source(environment: jinja2.Environment, name: str) -> str:
    assert environment.loader is not None
    return environment.loader.get_source(environment, name)[0]


def _number(value: object) -> object:
    return f"{value:.6g}" if isinstance(value, float) else value


def _shown(value: object) -> object:
    """A value as the page shows it: text from outside turns no line round."""
    if isinstance(value, str) and not isinstance(value, Markup):
        return escaped_lines(value)
    return value
