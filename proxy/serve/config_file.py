"""`serve --config`: several upstreams, and every option of `serve`, from a TOML file.

Rule: a key is an option without its dashes and means the same; what the command line
says wins. What belongs to one upstream stands in its `[[upstream]]` table only.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from proxy.errors import ConfigError, ProxyError
from proxy.power.probe import MEASURES, gpus_for
from proxy.security.secrets import without_user
from proxy.serve.upstream import UpstreamConfig

OWN = (
    "engine", "power", "gpus", "engine-metrics", "idle-watts", "bare-idle-watts",
    "calibration", "upstream-ca", "upstream-cert", "upstream-key",
)  # fmt: skip
"""Options of `serve` that are keys of a table; `url` is `--upstream`."""
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
"""It is a label of metrics and a part of admin paths."""
UNSET = ("config", "announce", "help")


def read_config(
    context: click.Context, path: str
) -> tuple[tuple[UpstreamConfig, ...], dict[str, Any]]:
    """The upstreams, and the other options by parameter, as `serve` has them.

    Raises ConfigError naming file, table, key and value for what cannot be.
    """
    document = _document(path)
    options = {
        option.opts[0].removeprefix("--"): option
        for option in context.command.params
        if isinstance(option, click.Option)
    }
    for name in (*OWN, "upstream"):
        _refuse_beside(context, options[name], path)
    tables = document.pop("upstream", None)
    is_list = isinstance(tables, list) and all(isinstance(t, dict) for t in tables)
    if not tables or not is_list:
        raise ConfigError(f"{path} names no upstream: add a table [[upstream]]")
    own = {name: options[name] for name in OWN} | {"url": options["upstream"]}
    upstreams = tuple(
        _upstream(context, own, table, path, number)
        for number, table in enumerate(tables, 1)
    )
    _check_apart(upstreams, path)
    rest = {n: o for n, o in options.items() if n not in (*OWN, "upstream", *UNSET)}
    shared: dict[str, Any] = {}
    for key, value in document.items():
        name = key.replace("_", "-")
        if name in own:
            raise ConfigError(
                f"{path}: {key} belongs to an upstream: move it into its [[upstream]]"
            )
        option = _known(rest, name, key, path)
        if option.name and not _is_given(context, option.name):
            shared[option.name] = _value(context, option, value, f"{path}: {key}")
    return upstreams, shared


def _document(path: str) -> dict[str, Any]:
    try:
        return tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise ConfigError(f"--config {path}: {reason}") from None
    except ValueError as error:  # not TOML, or not UTF-8
        raise ConfigError(f"--config {path} is not TOML: {error}") from None


def _refuse_beside(context: click.Context, option: click.Option, path: str) -> None:
    if option.name and _is_given(context, option.name):
        raise ConfigError(
            f"{option.opts[0]} is for one upstream and --config {path} names them "
            "all: give one of the two"
        )


def _is_given(context: click.Context, name: str) -> bool:
    return context.get_parameter_source(name) is ParameterSource.COMMANDLINE


def _upstream(
    context: click.Context,
    options: Mapping[str, click.Option],
    table: Mapping[str, Any],
    path: str,
    number: int,
) -> UpstreamConfig:
    given = {key.replace("_", "-"): value for key, value in table.items()}
    name = given.pop("name", None)
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise ConfigError(
            f"{path}: upstream {number}: name is {name!r}, expected letters, digits, "
            "dots, dashes, such as 'llama-a'"
        )
    where = f"{path}: upstream {name!r}"
    models = given.pop("models", [])
    if not isinstance(models, list) or not all(
        isinstance(m, str) and m for m in models
    ):
        raise ConfigError(f"{where}: models is {models!r}, expected a list of names")
    for key in ("url", "power"):
        if key not in given:
            example = "http://127.0.0.1:8000" if key == "url" else "nvml, or none"
            raise ConfigError(f"{where} has no {key}: add {key} = {example!r}")
    values: dict[str, Any] = {}
    for key, value in given.items():
        option = _known(options, key, key, where, "name, models")
        field = "url" if key == "url" else str(option.name)
        values[field] = _value(context, option, value, f"{where}: {key}")
    values.setdefault("engine", str(options["engine"].default))
    return UpstreamConfig(name=name, models=tuple(models), **values)


def _known(
    options: Mapping[str, click.Option], name: str, key: str, where: str, more: str = ""
) -> click.Option:
    if name not in options:
        known = ", ".join(filter(None, [more, *sorted(options)]))
        raise ConfigError(f"{where}: unknown key {key!r}; known: {known}")
    return options[name]


def _value(
    context: click.Context, option: click.Option, value: object, where: str
) -> Any:
    """What the option would make of it on the command line. Raises ConfigError."""
    items = value if isinstance(value, list) else [value]
    kinds = bool if option.is_flag else (str, int, float)
    is_wrong_bool = not option.is_flag and any(isinstance(i, bool) for i in items)
    if is_wrong_bool or not all(isinstance(item, kinds) for item in items):
        expected = "true or false" if option.is_flag else "text, a number or a list"
        raise ConfigError(f"{where} is {value!r}, expected {expected}")
    raw: Any = value if option.is_flag else ",".join(map(str, items))
    try:
        return option.process_value(context, (raw,) if option.multiple else raw)
    except click.BadParameter as error:
        reason = error.message.removesuffix(".")
        shown = without_user(repr(value))
        raise ConfigError(f"{where} is {shown}: {reason}") from None
    except ProxyError as error:
        shown = without_user(repr(value))
        raise ConfigError(f"{where} is {shown}: {error}") from None


def _check_apart(upstreams: Sequence[UpstreamConfig], path: str) -> None:
    """Each name, address and joule belongs to one upstream. Raises ConfigError."""
    for number, one in enumerate(upstreams):
        for other in upstreams[:number]:
            both = f"{path}: upstreams {other.name!r} and {one.name!r}"
            if one.name == other.name:
                raise ConfigError(f"{both} have the same name: metrics need two")
            if one.url == other.url:
                raise ConfigError(
                    f"{both} have the same url: one upstream may have several models"
                )
            for source, gpu in _claims(one):
                for theirs, their_gpu in _claims(other):
                    if source == theirs and (
                        gpu == their_gpu or "" in (gpu, their_gpu)
                    ):
                        raise ConfigError(_overlap(both, source, gpu, their_gpu))


def _overlap(both: str, source: str, gpu: str, other: str) -> str:
    if gpu and gpu == other:
        return f"{both} both meter GPU {gpu} by {source}: each joule has one ledger"
    if MEASURES.get(source.partition("=")[0], ("",))[0] == "gpu":
        return (
            f"{both} both meter GPUs by {source} and not both say which: give each "
            "its own gpus = [...]"
        )
    return (
        f"{both} both meter {source}: each joule has one ledger, so what both are "
        "in cannot be divided; name it for one of them"
    )


def _claims(upstream: UpstreamConfig) -> list[tuple[str, str]]:
    """Source and GPU of everything it meters; no GPU is all there is."""
    return [
        (source, gpu)
        for source in upstream.power
        if source != "none"
        for gpu in gpus_for(source, upstream.power, upstream.gpus) or ("",)
    ]
