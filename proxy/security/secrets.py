"""Secrets from files and the environment; never from arguments, which `ps` shows.

Errors name where a secret was looked for and what is wrong with it, never quote it.
"""

from __future__ import annotations

import os
from pathlib import Path

from proxy.errors import ConfigError
from proxy.process.files import os_reason

ADMIN_TOKEN_VARIABLE = "SERVEWATT_ADMIN_TOKEN"
MIN_CHARACTERS = 16
"""A secret that can be guessed is worse than none: it looks like one."""


def read_admin_token(path: str | None) -> str | None:
    """The token of the admin API: from the file, else the environment, else None.

    Raises ConfigError for one that could not be sent in a header, or be guessed.
    """
    if path is not None:
        return read_secret("--admin-token-file", path)
    token = os.environ.get(ADMIN_TOKEN_VARIABLE, "").strip()
    return _checked(ADMIN_TOKEN_VARIABLE, token) if token else None


def read_secret(option: str, path: str) -> str:
    """The one line of a file that an option names. Raises ConfigError."""
    where = f"{option} {path}"
    try:
        text = Path(path).read_text(encoding="ascii").strip()
    except OSError as error:
        reason = os_reason(error)
        raise ConfigError(f"{where}: {reason}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{where} is not ASCII text") from None
    return _checked(where, text)


def without_user(text: str) -> str:
    """A URL, or what was meant as one, less all that could be a user or password."""
    before, at, after = text.rpartition("@")
    scheme, slashes, _ = before.partition("//")
    return f"{scheme + slashes if slashes else ''}...@{after}" if at else text


def _checked(where: str, text: str) -> str:
    if not text.isprintable() or not text.isascii() or " " in text:
        raise ConfigError(f"{where} is not one line of printable ASCII without spaces")
    if len(text) < MIN_CHARACTERS:
        raise ConfigError(
            f"{where} has {len(text)} characters, at least {MIN_CHARACTERS} are "
            "needed; `openssl rand -hex 32` makes one"
        )
    return text
