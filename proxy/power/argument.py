"""Arguments of a source, `--power NAME=ADDRESS#key=value&key=value`; visible GPUs.

Options hang on the address as a URL's fragment does, so they can be told from
the address's own query. Secrets are never among them: an option names the
environment variable that holds one.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from proxy.errors import ConfigError, SensorError

MAX_WATTS = "max-watts"
BOUNDARIES = ("gpu", "host", "node")


@dataclass(frozen=True, slots=True)
class Argument:
    """An address (may be empty) and the options that followed it."""

    source: str
    address: str
    options: Mapping[str, str]

    def secret(self, key: str) -> str | None:
        """Value of the environment variable an option names; None without the option.

        Raises ConfigError when the variable is not set.
        """
        variable = self.options.get(key)
        if variable is None:
            return None
        if variable not in os.environ:
            raise ConfigError(
                f"--power {self.source}: {key} names the environment variable "
                f"{variable!r}, which is not set"
            )
        return os.environ[variable]

    def number(self, key: str, default: float) -> float:
        """An option that is a number above 0. Raises ConfigError otherwise."""
        text = self.options.get(key)
        try:
            value = default if text is None else float(text)
        except ValueError:
            value = 0.0
        if not 0 < value < float("inf"):
            raise ConfigError(
                f"--power {self.source}: {key} is {text!r}, expected a number above 0"
            )
        return value

    def choice(self, key: str, known: Sequence[str], default: str) -> str:
        """An option out of a few. Raises ConfigError for any other."""
        value = self.options.get(key, default)
        if value not in known:
            raise ConfigError(
                f"--power {self.source}: {key} is {value!r}, "
                f"expected one of {', '.join(known)}"
            )
        return value


def parse_argument(
    source: str, text: str | None, known: Sequence[str] = ()
) -> Argument:
    """Address and options. Raises ConfigError for an option that is not known.

    Every source takes `max-watts`, see `stated_max_watts`.
    """
    known = (*known, MAX_WATTS)
    address, _, rest = (text or "").partition("#")
    options: dict[str, str] = {}
    for part in filter(None, rest.split("&")):
        key, equals, value = part.partition("=")
        if key not in known or not equals or not value:
            raise ConfigError(
                f"--power {source} does not know the option {part!r}; it takes "
                f"{', '.join(known)}, written ADDRESS#key=value&key=value"
            )
        options[key] = value
    return Argument(source, address, options)


def stated_max_watts(power: str) -> float | None:
    """What one device of `--power NAME=ADDRESS#max-watts=W` draws at most, if told.

    Raises ConfigError for what is no number above 0.
    """
    source, _, text = power.partition("=")
    options = dict(
        part.partition("=")[::2] for part in text.partition("#")[2].split("&")
    )
    if MAX_WATTS not in options:
        return None
    return Argument(source, "", options).number(MAX_WATTS, 0.0)


def base_url(source: str, address: str, example: str) -> str:
    """An http(s) address without a trailing slash and without a password in it.

    Raises ConfigError for anything else: argv and logs are no place for secrets.
    """
    try:
        parts = urlsplit(address)
        host = parts.hostname
    except ValueError:
        host = None
    if host is None or parts.scheme not in {"http", "https"}:
        raise ConfigError(f"--power {source} needs an address: {example}")
    if parts.username is not None or parts.password is not None:
        raise ConfigError(
            f"--power {source}: the address holds a user or password, which would "
            f"show in logs; name environment variables instead: {example}"
        )
    return address.rstrip("/")


def visible_gpus(variable: str) -> list[str] | None:
    """Indices or UUIDs in order; None where the variable is not set: all.

    An entry of -1 (or an empty one) hides itself and what follows. Raises
    SensorError when nothing is left: the engine then uses no GPU.
    """
    value = os.environ.get(variable)
    if value is None:
        return None
    entries = [entry.strip() for entry in value.split(",")]
    hidden = [at for at, entry in enumerate(entries) if entry in ("", "-1")]
    shown = entries[: hidden[0]] if hidden else entries
    if not shown:
        raise SensorError(
            f"{variable} is {value!r}, which hides every GPU; unset it or give --gpus"
        )
    return shown
