"""The settings of a config dataclass from a TOML file, where keys are options.

A mistake is one line that names file, key, value and what is expected.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import msgspec

from proxy.errors import ConfigError as ConfigError  # named by who reads documents
from proxy.errors import ProxyError
from proxy.process.files import os_reason
from proxy.process.options import Setting


def read_document(path: str) -> dict[str, Any]:
    """The tables and keys of a TOML file. Raises ConfigError."""
    try:
        return tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        reason = os_reason(error)
        raise ConfigError(f"--config {path}: {reason}") from None
    except ValueError as error:  # not TOML, or not UTF-8
        raise ConfigError(f"--config {path} is not TOML: {error}") from None


def decode_settings(
    document: Mapping[str, Any],
    settings: Collection[Setting],
    where: str,
    *,
    also: tuple[str, ...] = (),
    hides: Callable[[str], str] = str,
) -> dict[str, Any]:
    """Values by `Setting.variable`, of the settings that a table has keys for.

    `also` are keys of the table that were read before, to be named as known, and
    `hides` takes the secrets out of a value that is quoted. Raises ConfigError.
    """
    known = {setting.key: setting for setting in settings}
    values: dict[str, Any] = {}
    for key, written in document.items():
        setting = known.get(key.replace("_", "-"))
        if setting is None:
            names = ", ".join([*also, *sorted(known)])
            raise ConfigError(f"{where}: unknown key {key!r}; known: {names}")
        values[setting.variable] = _value(setting, written, f"{where}: {key}", hides)
    return values


def _value(
    setting: Setting, written: Any, where: str, hides: Callable[[str], str]
) -> Any:
    told = f"{where} is {hides(repr(written))}"
    try:
        value = msgspec.convert(written, setting.decoded, strict=setting.kind is bool)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{told}{_complaint(setting, str(error))}") from None
    if isinstance(value, dict):
        value = (
            [f"{k}={v}" for k, v in value.items()]
            if setting.option.multiple
            else (msgspec.json.encode(value).decode())
        )
    if isinstance(value, list) and setting.option.multiple:
        value = tuple(map(str, value))
    elif isinstance(value, list):
        value = ",".join(map(str, value))
    if setting.kind in (str, Path) and not isinstance(value, tuple):
        value = setting.kind(value)
    if setting.option.multiple and not isinstance(value, tuple):
        value = (value,)
    try:
        return setting.value(value)
    except (ValueError, ProxyError) as error:
        raise ConfigError(f"{told}: {error}") from None


def _complaint(setting: Setting, error: str) -> str:
    if setting.option.choices:
        return f": not one of {', '.join(setting.option.choices)}"
    if setting.kind is bool:
        return ", expected true or false"
    if setting.kind in (int, float):
        return f", {error[0].lower()}{error[1:].replace('`', '')}"
    return ", expected text, a number or a list"
