"""`serve --config`: several upstreams, and every option of `serve`, from a TOML file.

Rule: a key is an option without its dashes and means the same; the command line wins.
What belongs to one upstream stands in its `[[upstream]]` table only.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import cache
from typing import Any

from proxy.errors import ConfigError
from proxy.power.boards import board_of
from proxy.power.probe import MEASURES, gpus_for
from proxy.power.sources import members_of
from proxy.process.document import decode_settings, read_document
from proxy.process.options import configured, settings_of
from proxy.security.secrets import without_user
from proxy.serve.config import ServeConfig, UpstreamConfig

BoardOf = Callable[[str, str], str | None]

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
"""It is a label of metrics and a part of admin paths."""
SETTINGS = settings_of(UpstreamConfig)
"""Keys of a `[[upstream]]` table, beside its name and models."""


def read_config(
    path: str, given: Collection[str], board_of: BoardOf = board_of
) -> tuple[tuple[UpstreamConfig, ...], dict[str, Any]]:
    """The upstreams, and what the file sets beside them, by `Setting.variable`.

    `given` are the variables that the command line sets; `board_of` tells which board
    a source shows under a name. Raises ConfigError naming
    file, table, key and value for what cannot be.
    """
    document = read_document(path)
    for setting in SETTINGS:
        if setting.variable in given:
            raise ConfigError(
                f"--{setting.name} is for one upstream and --config {path} names them "
                "all: give one of the two"
            )
    tables = document.pop("upstream", None)
    is_list = isinstance(tables, list) and all(isinstance(t, dict) for t in tables)
    if not tables or not is_list:
        raise ConfigError(f"{path} names no upstream: add a table [[upstream]]")
    upstreams = tuple(
        _upstream(table, path, number) for number, table in enumerate(tables, 1)
    )
    _check_apart(upstreams, path, cache(board_of))
    own = {setting.key for setting in SETTINGS}
    for key in document:
        if key.replace("_", "-") in own:
            raise ConfigError(
                f"{path}: {key} belongs to an upstream: move it into its [[upstream]]"
            )
    shared = decode_settings(
        document, settings_of(ServeConfig), path, hides=without_user
    )
    return upstreams, {n: value for n, value in shared.items() if n not in given}


def _upstream(table: Mapping[str, Any], path: str, number: int) -> UpstreamConfig:
    document = dict(table)
    name, models = document.pop("name", None), document.pop("models", [])
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise ConfigError(
            f"{path}: upstream {number}: name is {name!r}, expected letters, digits, "
            "dots, dashes, such as 'llama-a'"
        )
    where = f"{path}: upstream {name!r}"
    if not isinstance(models, list) or not all(
        isinstance(m, str) and m for m in models
    ):
        raise ConfigError(f"{where}: models is {models!r}, expected a list of names")
    for key, example in ("url", "http://127.0.0.1:8000"), ("power", "nvml, or none"):
        if key not in document:
            raise ConfigError(f"{where} has no {key}: add {key} = {example!r}")
    values = decode_settings(
        document, SETTINGS, where, also=("name", "models"), hides=without_user
    )
    return configured(UpstreamConfig, values, name=name, models=tuple(models))


def _check_apart(
    upstreams: Sequence[UpstreamConfig],
    path: str,
    board_of: BoardOf,
) -> None:
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
                    if not _may_be_one(source, gpu, theirs, their_gpu):
                        continue
                    board = board_of(source, gpu)
                    if board is not None and board == board_of(theirs, their_gpu):
                        raise ConfigError(
                            f"{both} both meter the board {board}, as {their_gpu} by "
                            f"{theirs} and as {gpu} by {source}: each joule has one "
                            "ledger"
                        )


def _may_be_one(source: str, gpu: str, theirs: str, their_gpu: str) -> bool:
    """Whether two names may mean one board; two indices of one source never do."""
    is_named = gpu != "" and their_gpu != ""
    are_indices = gpu.isdigit() and their_gpu.isdigit()
    return is_named and not (source == theirs and are_indices)


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
        (member, gpu)
        for source in upstream.power
        if source != "none"
        for member in members_of(source).values()
        for gpu in gpus_for(source, upstream.power, upstream.gpus) or ("",)
    ]
