"""The arguments of `--store` and `--retain`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from proxy.errors import ConfigError
from proxy.process.files import readable_name
from proxy.security.secrets import without_user

if TYPE_CHECKING:  # a help page needs none of it
    from sqlalchemy import URL

DRIVERS = {
    "sqlite": "sqlite",
    "postgresql": "postgresql+psycopg",
    "postgres": "postgresql+psycopg",
    "postgresql+psycopg": "postgresql+psycopg",
}
"""Names that a user may write, and SQLAlchemy's."""
EXAMPLES = "sqlite:////var/lib/servewatt.sqlite or postgresql://user@host/database"
DAY_SECONDS = 86_400.0
_AGE_SECONDS = {"h": 3600.0, "d": DAY_SECONDS, "w": 7 * DAY_SECONDS}


def store_url(text: str) -> URL:
    """The database a user named. Raises ConfigError for what can never work."""
    from sqlalchemy import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        url = make_url(text)
    except ArgumentError:
        raise ConfigError(
            f"--store {without_user(text)!r} is no database URL, such as {EXAMPLES}, "
            "or none"
        ) from None
    driver = DRIVERS.get(url.drivername)
    if driver is None:
        raise ConfigError(
            f"--store {url.drivername}: is no database known here; try {EXAMPLES}"
        )
    if driver == "sqlite" and url.database in {None, "", ":memory:"}:
        raise ConfigError(
            "--store sqlite: names no file; give a path, such as "
            "sqlite:////var/lib/servewatt.sqlite, or none to keep nothing"
        )
    if driver != "sqlite" and find_spec("psycopg") is None:
        raise ConfigError(
            "--store postgresql: needs psycopg; pip install 'servewatt[postgres]'"
        )
    return url.set(drivername=driver)


def shown_url(url: URL) -> str:
    """The URL for logs and replies, without user, password or options."""
    bare = url._replace(username=None, password=None).set(query={})
    if bare.database is not None:
        bare = bare.set(database=readable_name(bare.database))
    return bare.render_as_string()


def sqlite_url(path: Path) -> str:
    """The URL of a file."""
    return f"sqlite:///{path.absolute()}"


@dataclass(frozen=True, slots=True)
class Retention:
    """Bounds on the records kept of one upstream; None is no bound."""

    age_seconds: float | None = 30 * DAY_SECONDS
    """A month by default: 1 request a second is about 1.5 GB of it."""
    rows: int | None = None


def parse_retention(text: str) -> Retention:
    """`30d`, `100000`, both with a comma, or `forever`. Raises ConfigError."""
    age_seconds: float | None = None
    rows: int | None = None
    if text.strip() == "forever":
        return Retention(None, None)
    for part in text.split(","):
        match = re.fullmatch(r"(\d+)([hdw]?)", part.strip())
        if match is None or int(match[1]) == 0:
            raise ConfigError(
                f"--retain {part.strip()!r} is neither an age (12h, 30d, 8w), a number "
                "of records, nor forever"
            )
        if match[2]:
            age_seconds = int(match[1]) * _AGE_SECONDS[match[2]]
        else:
            rows = int(match[1])
    return Retention(age_seconds, rows)
