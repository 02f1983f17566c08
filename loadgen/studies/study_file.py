"""The file of `loadgen study`: a matrix of servers, decoding, workloads and loads.

Written in YAML 1.2, read through ruamel.yaml, which keeps the line of every key, into
msgspec structs, which know what may be there. Each mistake is one line with file,
line, path in the file and the way out.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import Meta, field

from loadgen.errors import StudyFileError, UsageError
from loadgen.run.config import parse_url
from loadgen.studies.presets import (
    PLACEHOLDER,
    PLACEHOLDERS,
    PRESETS,
    Preset,
    simulated_arguments,
    split_command,
)
from loadgen.traces.readers.open import files_of
from proxy.process.files import os_reason

MAX_BYTES = 1_000_000
MAX_CELLS = 10_000
MAX_DEPTH = 12
MAX_VALUES = 20_000
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,39}")
"""Of an entry: part of a folder's name and of a table's."""
INSTALL = "loadgen study reads YAML by ruamel.yaml: pip install 'servewatt[studies]'"

Positive = Annotated[int, Meta(ge=1)]
Fraction = Annotated[float, Meta(gt=0, le=1)]
Seconds = Annotated[float, Meta(ge=0)]
Rate = Annotated[float, Meta(gt=0)] | Literal["inf"]
Scalar = bool | int | float | str


class _Strict(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is not a field is a mistake."""


class Speculative(_Strict, frozen=True, kw_only=True):
    """Speculative decoding: a draft model, or a method that needs none."""

    model: str | None = None
    method: str | None = None
    """Such as `ngram`."""
    tokens: Positive = 4
    """Drafted per step."""


class Server(_Strict, frozen=True, kw_only=True):
    """One configuration of a server: a preset, a command, or a running one's URL."""

    preset: str | None = None
    command: str | list[str] | None = None
    """Its words; `{port}`, `{model}` and `{host}` are filled in."""
    url: str | None = None
    """It runs already, and goes on running."""
    backend: str | None = None
    """API of a `command` or `url`."""
    model: str | None = None
    """Instead of the study's."""
    dtype: str | None = None
    quantization: str | None = None
    tensor_parallel: Positive | None = None
    max_num_seqs: Positive | None = None
    max_num_batched_tokens: Positive | None = None
    max_model_len: Positive | None = None
    prefix_caching: bool | None = None
    speculative: Speculative | None = None
    arguments: list[str] = field(default_factory=list)
    """Added to the command."""
    environment: dict[str, str] = field(default_factory=dict)
    gpus: str | None = None
    """Instead of the study's: what it may see and what is metered."""
    power: str | None = None
    """Instead of the study's."""
    health: str | None = None
    """The path that answers 200 once it serves."""
    start_seconds: Annotated[float, Meta(gt=0)] | None = None
    """Longest wait for that."""
    simulate: dict[str, Scalar] = field(default_factory=dict)
    """Options of `loadgen simulate` that stand for it with --simulate."""


class Decoding(_Strict, frozen=True, kw_only=True):
    """How tokens are chosen."""

    temperature: Annotated[float, Meta(ge=0, le=10)] | None = None
    top_p: Fraction | None = None
    n: Positive | None = None
    """Outputs of each request."""
    beam: Annotated[int, Meta(ge=2, le=64)] | None = None
    """Width of a beam search."""
    extra_body: dict[str, Any] = field(default_factory=dict)


class Spread(_Strict, frozen=True, kw_only=True):
    """Lengths in tokens: log-normal with this mean, or all alike without `sd`."""

    mean: Annotated[float, Meta(ge=1, le=1_000_000)]
    sd: Annotated[float, Meta(ge=0)] = 0.0
    most: Positive = 131_072


class Workload(_Strict, frozen=True, kw_only=True):
    """What is asked: a trace, or lengths."""

    trace: str | None = None
    """A file beside the study's, or what `loadgen replay` takes."""
    input: Spread | Positive | None = None
    output: Spread | Positive | None = None
    requests: Positive | None = None
    """The first of a trace; of lengths how many, 200 unless it is said."""
    kind: Literal["conversation", "code", "other"] = "other"
    about: str | None = None


class Load(_Strict, frozen=True, kw_only=True):
    """When it is asked: arrivals at a rate, or all at once with so many in flight."""

    rate: Rate | None = None
    concurrency: Positive | None = None
    arrival: Literal["auto", "constant", "gamma", "poisson", "trace"] | None = None
    burstiness: Annotated[float, Meta(gt=0)] | None = None
    speed: Annotated[float, Meta(gt=0)] | None = None
    duration: Annotated[float, Meta(gt=0)] | None = None


class Simulated(_Strict, frozen=True, kw_only=True):
    """What --simulate puts in the place of the hardware."""

    gpu: str | None = None
    model: str | None = None
    requests: Positive | None = None
    """At most so many of each workload: the simulator runs in real time."""


class Study(_Strict, frozen=True, kw_only=True):
    """The whole file."""

    study: str
    """Its name."""
    about: str | None = None
    model: str | None = None
    power: str = "nvml"
    gpus: str | None = None
    baseline: str | dict[str, str] | None = None
    """A server's name, or entries by axis: what all others are compared with."""
    servers: dict[str, Server]
    decoding: dict[str, Decoding] = field(default_factory=dict)
    workloads: dict[str, Workload]
    loads: dict[str, Load] = field(default_factory=dict)
    skip: list[dict[str, str]] = field(default_factory=list)
    """Combinations that make no sense, as entries by axis."""
    repeat: Annotated[int, Meta(ge=1, le=100)] = 1
    seed: int = 0
    warmup: Seconds = 0.0
    cooldown: Seconds = 0.0
    timeout: Annotated[float, Meta(gt=0)] | None = None
    simulate: Simulated = field(default_factory=Simulated)


AXES: dict[str, type[_Strict]] = {
    "servers": Server,
    "decoding": Decoding,
    "workloads": Workload,
    "loads": Load,
}
"""The axes of the matrix, in the order of its rows."""
DEFAULTS: dict[str, Mapping[str, Any]] = {
    "decoding": {"greedy": Decoding(temperature=0.0)},
    "loads": {"as-traced": Load()},
}
"""Of axes that a file leaves out."""
GENERATED_REQUESTS = 200

Made = TypeVar("Made")


@dataclass(frozen=True, slots=True)
class Point:
    """One combination of the matrix: the name of its entry by axis."""

    names: Mapping[str, str]
    server: Server
    decoding: Decoding
    workload: Workload
    load: Load


@dataclass(frozen=True, slots=True)
class StudyFile:
    """A study as it was read, and where."""

    path: Path
    study: Study

    def axis(self, name: str) -> Mapping[str, Any]:
        """The entries of an axis, by name; a file may leave out all but two."""
        found: Mapping[str, Any] = getattr(self.study, name)
        return found or DEFAULTS[name]

    @property
    def baseline(self) -> Mapping[str, str]:
        """Entries by axis of the baseline; empty where the file names none."""
        named = self.study.baseline
        return {"servers": named} if isinstance(named, str) else (named or {})

    def points(self) -> Iterator[Point]:
        """Every combination that is not skipped, row by row."""
        for server_name, server in self.axis("servers").items():
            for decoding_name, decoding in self.axis("decoding").items():
                for workload_name, workload in self.axis("workloads").items():
                    for load_name, load in self.axis("loads").items():
                        names = {
                            "servers": server_name,
                            "decoding": decoding_name,
                            "workloads": workload_name,
                            "loads": load_name,
                        }
                        if not any(s.items() <= names.items() for s in self.study.skip):
                            yield Point(names, server, decoding, workload, load)

    def baseline_of(self, names: Mapping[str, str]) -> dict[str, str]:
        """The combination that another one is compared with."""
        return {**names, **self.baseline}


def backend_of(server: Server) -> str:
    """The API that a server speaks."""
    return server.backend or preset_of(server).backend


def preset_of(server: Server) -> Preset:
    """The preset; of a command or a URL what is assumed of any server."""
    return PRESETS[server.preset] if server.preset is not None else PRESETS["vllm"]


# -- reading -------------------------------------------------------------------


def read_study(path: Path, overrides: Mapping[str, Any] | None = None) -> StudyFile:
    """A study's file, with what was said instead on the command line.

    Raises StudyFileError, one line; UsageError without ruamel.
    """
    document = _Document(path, _parsed(path))
    values = document.plain
    if not isinstance(values, dict):
        raise document.error((), "expected keys such as study, servers and workloads")
    values |= overrides or {}
    document.check_keys(values, Study, ())
    for axis, kind in AXES.items():
        entries = values.get(axis)
        if entries is None and (axis in DEFAULTS or axis not in values):
            continue
        if not isinstance(entries, dict) or not entries:
            raise document.error(
                (axis,), f"expected entries by name, such as `mine:` with its {axis}"
            )
        for name, entry in entries.items():
            if not NAME.fullmatch(name):
                raise document.error(
                    (axis, name),
                    "a name has up to 40 letters, digits, dots, dashes and "
                    "underscores: it is part of a folder's",
                )
            entries[name] = document.made(kind, entry, (axis, name))
    found = StudyFile(path, document.made(Study, values, ()))
    _check(found, document)
    return found


def _parsed(path: Path) -> Any:
    try:
        from ruamel.yaml import YAML
        from ruamel.yaml.error import MarkedYAMLError, YAMLError
    except ImportError:
        raise UsageError(INSTALL) from None
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        reason = os_reason(error)
        raise StudyFileError(path, None, (), f"cannot be read: {reason}") from None
    if len(content) > MAX_BYTES:
        raise StudyFileError(path, None, (), f"over {MAX_BYTES:,} bytes: not a study")
    try:
        return YAML(typ="rt", pure=True).load(content.decode("utf-8-sig"))
    except UnicodeDecodeError:
        raise StudyFileError(path, None, (), "not UTF-8 text") from None
    except MarkedYAMLError as error:
        mark = error.problem_mark
        line = None if mark is None else mark.line + 1
        problem = " ".join(str(error.problem or error.context).split("\n")[0].split())
        problem = problem.partition(" with value ")[0]
        raise StudyFileError(path, line, (), f"not YAML: {problem}") from None
    except (YAMLError, ValueError, RecursionError, AttributeError) as error:
        problem = str(error).split("\n")[0] or type(error).__name__
        raise StudyFileError(path, None, (), f"not YAML: {problem}") from None


class _Document:
    """A parsed file: its plain values, and the line of each."""

    def __init__(self, path: Path, parsed: Any) -> None:
        self.path = path
        self._parsed = parsed
        self._count = 0
        self.plain = self._plain(parsed, ())

    def error(self, where: tuple[str | int, ...], reason: str) -> StudyFileError:
        """The mistake at a place, with its line."""
        return StudyFileError(self.path, self._line(where), where, reason)

    def made(self, kind: type[Made], values: Any, where: tuple[str | int, ...]) -> Made:
        """The struct of what is written at a place. Raises StudyFileError."""
        if isinstance(values, dict):
            self.check_keys(values, kind, where)
        try:
            return msgspec.convert(values, kind)
        except msgspec.ValidationError as error:
            text, _, inner = str(error).partition(" - at `")
            path = tuple(
                int(index) if index else key
                for key, index in re.findall(
                    r"\.([^.\[\]`]+)|\[(\d+)\]", inner.removesuffix("`")
                )
            )
            text = text.replace("`", "")
            reason = text[:1].lower() + text[1:]
            raise self.error((*where, *path), reason) from None

    def check_keys(
        self, values: Mapping[str, Any], kind: Any, where: tuple[str | int, ...]
    ) -> None:
        """Raises StudyFileError for a key that a struct has not, with the nearest."""
        known = [one.encode_name for one in msgspec.structs.fields(kind)]
        for key in values:
            if key in known:
                continue
            near = difflib.get_close_matches(key, known, 1, 0.5)
            hint = f"; did you mean {near[0]}?" if near else ""
            what = "key" if where else "axis or key"
            raise self.error(
                (*where, key), f"unknown {what}{hint} (known: {', '.join(known)})"
            )
        for one in msgspec.structs.fields(kind):
            inner = _struct_in(one.type)
            value = values.get(one.encode_name)
            if inner is not None and isinstance(value, dict):
                self.check_keys(value, inner, (*where, one.encode_name))

    def _line(self, where: tuple[str | int, ...]) -> int | None:
        """Of the last key on the way to a place that the file really has."""
        node, found = self._parsed, None
        for key in where:
            try:
                place = node.lc
                line = place.item(key) if isinstance(key, int) else place.key(key)
                found = line[0] + 1
                node = node[key]
            except (AttributeError, KeyError, IndexError, TypeError):
                break
        return found

    def _plain(self, node: Any, where: tuple[str | int, ...]) -> Any:
        """Python's own values of what ruamel read."""
        self._count += 1
        if len(where) > MAX_DEPTH or self._count > MAX_VALUES:
            raise self.error(where[:4], "too much inside: an alias of itself?")
        if isinstance(node, Mapping):
            found = {}
            for key, value in node.items():
                if not isinstance(key, str):
                    raise self.error(
                        (*where, key),
                        f"the key {key!r} is not a text: put it in quotes",
                    )
                found[str(key)] = self._plain(value, (*where, key))
            return found
        if isinstance(node, list):
            return [self._plain(v, (*where, n)) for n, v in enumerate(node)]
        if node is None or isinstance(node, bool):
            return node
        if isinstance(node, str):
            return str(node)
        if isinstance(node, int):
            if abs(node) >= 2**63:
                raise self.error(where, f"{node} is too large")
            return int(node)
        if isinstance(node, float):
            if math.isnan(node):
                raise self.error(where, "not a number")
            return "inf" if node == math.inf else float(node)
        raise self.error(where, f"{str(node)!r} is not plain: put it in quotes")


def _struct_in(kind: Any) -> Any:
    """The struct that a field holds itself; None where it holds none."""
    options = getattr(kind, "__args__", (kind,))
    for one in options if getattr(kind, "__origin__", None) is not dict else ():
        if isinstance(one, type) and issubclass(one, _Strict):
            return one
    return None


# -- what no type says ---------------------------------------------------------


def _check(found: StudyFile, document: _Document) -> None:
    """Raises StudyFileError for what cannot work, before anything is started."""
    study = found.study
    for name, server in study.servers.items():
        _check_server(name, server, study, document)
    for name, workload in study.workloads.items():
        _check_workload(name, workload, found, document)
    for name, load in study.loads.items():
        if load.rate is not None and load.speed is not None:
            raise document.error(
                ("loads", name, "speed"), "give rate or speed, not both"
            )
    if study.baseline is not None:
        _check_names(found.baseline, ("baseline",), found, document)
    for place, names in enumerate(study.skip):
        _check_names(names, ("skip", place), found, document)
    points = 0
    for point in found.points():
        points += 1
        _check_point(point, document)
    if not points:
        raise document.error(("skip",), "nothing is left to run")
    if points * study.repeat > MAX_CELLS:
        raise document.error(
            (), f"{points * study.repeat:,} cells, at most {MAX_CELLS:,}: use fewer"
        )
    if study.baseline is not None:
        every = [dict(point.names) for point in found.points()]
        if not any(found.baseline.items() <= names.items() for names in every):
            raise document.error(("baseline",), "skip leaves no cell of the baseline")


def _check_server(name: str, server: Server, study: Study, document: _Document) -> None:
    where = ("servers", name)
    kinds = [k for k in ("preset", "command", "url") if getattr(server, k) is not None]
    if len(kinds) != 1:
        given = " and ".join(kinds) or "none of them"
        raise document.error(
            where, f"expected one of preset, command and url, has {given}"
        )
    if server.preset is not None:
        _check_preset(where, server, document)
    from loadgen.client.backends import BACKENDS

    if server.backend is not None and server.backend not in BACKENDS:
        known = ", ".join(sorted(BACKENDS))
        raise document.error(
            (*where, "backend"), f"unknown backend {server.backend!r}; known: {known}"
        )
    if server.health is not None and not server.health.startswith("/"):
        raise document.error(
            (*where, "health"), f"{server.health!r} is no path, such as /health"
        )
    for option in ("gpus", "power"):
        value = getattr(server, option)
        if value is not None and not value.strip():
            raise document.error((*where, option), "is empty; leave it out")
    if server.command is not None:
        words = server.command
        text = words if isinstance(words, str) else " ".join(words)
        named = PLACEHOLDER.findall(text)
        wrong = [one for one in named if one not in PLACEHOLDERS]
        if wrong:
            known = ", ".join(f"{{{one}}}" for one in PLACEHOLDERS)
            raise document.error(
                (*where, "command"), f"unknown {{{wrong[0]}}}; known: {known}"
            )
        try:
            split_command(words)
        except ValueError as error:
            reason = str(error)
            raise document.error(
                (*where, "command"), reason[:1].lower() + reason[1:]
            ) from None
        if "port" not in named:
            raise document.error(
                (*where, "command"),
                "has no {port}: the study gives each server a free port of its own",
            )
    if server.url is not None:
        try:
            parse_url(server.url)
        except ValueError as error:
            raise document.error((*where, "url"), str(error)) from None
    needs_model = server.url is None and (
        server.preset is not None or "{model}" in str(server.command)
    )
    if needs_model and (server.model or study.model) is None:
        raise document.error(
            where, "no model: name one here or once for the whole study, as `model:`"
        )
    try:
        simulated_arguments(server, study.simulate)
    except UsageError as error:
        raise document.error((*where, "simulate"), str(error)) from None


def _check_preset(where: tuple[str, str], server: Server, document: _Document) -> None:
    assert server.preset is not None
    preset = PRESETS.get(server.preset)
    if preset is None:
        near = difflib.get_close_matches(server.preset, PRESETS, 1, 0.5)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise document.error(
            (*where, "preset"),
            f"unknown preset {server.preset!r}{hint} (known: {', '.join(PRESETS)})",
        )
    for option in preset.missing(server):
        raise document.error(
            (*where, option),
            f"{server.preset} has no such option; leave it out, or give what it has "
            "by `arguments:`",
        )
    if server.backend is not None and server.backend != preset.backend:
        raise document.error(
            (*where, "backend"),
            f"{server.preset} speaks {preset.backend}; leave it out",
        )


def _check_workload(
    name: str, workload: Workload, found: StudyFile, document: _Document
) -> None:
    where = ("workloads", name)
    if workload.trace is None:
        if workload.input is None or workload.output is None:
            raise document.error(
                where, "expected trace, or both input and output (tokens)"
            )
        return
    if workload.input is not None or workload.output is not None:
        raise document.error(where, "has its lengths from the trace: leave out input "
                             "and output, or trace")  # fmt: skip
    trace = trace_path(found, workload)
    if not any(each.is_file() for each in files_of(trace)):
        raise document.error(
            (*where, "trace"),
            f"no file {trace}; a path is relative to the study's file",
        )


def trace_path(found: StudyFile, workload: Workload) -> Path:
    """The trace of a workload, from the folder of the study's file."""
    assert workload.trace is not None
    return found.path.parent / Path(workload.trace).expanduser()


def _check_names(
    names: Mapping[str, str],
    where: tuple[str | int, ...],
    found: StudyFile,
    document: _Document,
) -> None:
    """Entries by axis, of the baseline or of what is skipped."""
    if not names:
        raise document.error(where, "is empty; name entries by axis, or leave it out")
    for axis, name in names.items():
        if axis not in AXES:
            raise document.error(
                (*where, axis), f"unknown axis {axis!r}; known: {', '.join(AXES)}"
            )
        entries = found.axis(axis)
        if name not in entries:
            near = difflib.get_close_matches(name, entries, 1, 0.5)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise document.error(
                (*where, axis),
                f"{axis} has no {name!r}{hint} (known: {', '.join(entries)})",
            )


def _check_point(point: Point, document: _Document) -> None:
    """A combination that its server would refuse request by request."""
    from loadgen.client.abilities import check_options
    from loadgen.client.backends import RequestOptions, Target

    backend = backend_of(point.server)
    where = ("decoding", point.names["decoding"])
    row = f"skip: [{{servers: {point.names['servers']}, decoding: {where[1]}}}]"
    if point.decoding.beam is not None and backend != "vllm":
        raise document.error(
            (*where, "beam"),
            f"{point.names['servers']} ({backend}) cannot stream a beam search; leave "
            f"the combination out by {row}",
        )
    copies = point.decoding.n or 1
    try:
        target = Target(url="http://127.0.0.1:1", backend=backend)
        check_options(target, RequestOptions(n=copies))
    except UsageError as error:
        reason = str(error).partition(";")[0]
        raise document.error(
            (*where, "n"), f"{reason}; leave the combination out by {row}"
        ) from None
    if copies > 1 and not point.decoding.temperature and point.decoding.beam is None:
        raise document.error(
            (*where, "n"), "several outputs need a temperature above 0"
        )
