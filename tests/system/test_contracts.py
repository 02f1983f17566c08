"""What users hold on to, against `tests/data/contracts/`: options, keys, names.

Each file there is a list of `name: what it is`, sorted, made from the programs as a
user starts them and never from their modules, so that it outlives any move of code.
A difference is a change that users will notice: it belongs in CHANGELOG.md, then

    python tests/system/test_contracts.py --write

makes the files anew. `SOMETIMES` has what a run may lack; the files have it always.
"""

from __future__ import annotations

import contextlib
import difflib
import importlib
import json
import os
import re
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import click
import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.support.children import (
    PATIENCE_SECONDS,
    get,
    is_ready,
    metering,
    simulating,
    wait_for,
)
from tests.support.paths import ROOT

GOLDEN = ROOT / "tests" / "data" / "contracts"
Contract = dict[str, str]
"""What it is by name."""

PLANS = (
    ("sharegpt.jsonl", "--rate", "4"),
    ("sharegpt.jsonl", "--rate", "4", "--arrival", "gamma", "--burstiness", "0.5"),
    ("azure-conv.jsonl", "--rate", "2", "--arrival", "constant"),
    ("azure-code.jsonl", "--speed", "2", "--num-prompts", "200"),
)
SEED = ("--seed", "7")
PROMPTS = 5
"""The trace's first two conversations, 3.5 s; the last reply is made to break off."""

DATA_KEYS = re.compile(
    r"(.*[. ])?(boundaries|by_kind|by_turn|device_watts|devices|dropped|engines"
    r"|gap_seconds|grade|grade_reasons|idle_accelerators_watts|labels|lacking"
    r"|metadata|outcomes"
    r"|quality|sensors|throttled_seconds_by_reason|timing|unattributed_joules"
    r"|policy_joules\.[a-z]+)"
)
"""Objects whose keys are what was measured, and no names of ours: written as `*`."""

FORMS = (
    "drafted", "experts", "experts_drafted", "experts_overlapped", "overlapped",
    "plain",
)  # fmt: skip
CONSTANTS = (
    "decode_token_joules", "experts_16_joules", "experts_4_joules",
    "experts_64_joules", "hidden_256_joules", "kv_token_joules",
    "mixed_kv_token_joules", "prefill_context_joules", "prefill_token_joules",
    "sequence_kv_joules", "sequence_step_joules", "step_joules",
)  # fmt: skip
"""Of one form or another; the form in use depends on the run."""

SOMETIMES: dict[str, Contract] = {
    "admin-api": {
        "GET /calibration calibrations[].doubt": "null|string",
        **{
            f"GET /calibration calibrations[].form_errors.{form}": "number"
            for form in FORMS
        },
        **{
            f"GET /calibration calibrations[].constants.{name}{key}": kind
            for name in CONSTANTS
            for key, kind in (
                ("", "object"),
                (".joules", "number"),
                (".standard_error_joules", "number"),
                (".unit", "string"),
            )
        },
        "GET /calibration calibrations[].reason": "null|string",
        "GET /books boundaries.*.unattributed_joules.*": "number",
        "GET /books unattributed_joules.*": "number",
        "GET /hardware engines.*.now[].throttle_reasons[]": "string",
        "GET /info engines.*.sensor.last_error": "null|string",
        "GET /info engines.*.sensors.*.last_error": "null|string",
        "GET /info sensor.last_error": "null|string",
        "GET /info sensors.*.last_error": "null|string",
        "GET /readyz lacking.*": "string",
        "GET /readyz reasons[]": "string",
    },
    "admin-metrics": {
        "servewatt_device_other_processes": "gauge, boundary, device, engine",
        "servewatt_client_timeouts_total": "counter, awaited",
        "servewatt_engine_accepted_tokens_total": "counter, engine",
        "servewatt_engine_drafted_tokens_total": "counter, engine",
        "servewatt_loop_errors_total": "counter, loop",
        "servewatt_unattributed_energy_joules_total": (
            "counter, boundary, engine, reason"
        ),
    },
    "meter-report": {
        "sources[].devices.*.gap_seconds.*": "number",
        "sources[].devices.*.unknown_because": "null|string",
        "sources[].failure": "null|string",
        "sources[].gap_seconds.*": "number",
        "sources[].unknown_because": "null|string",
        "phases_failure": "null|string",
        "phases[].begin_seconds": "number",
        "phases[].duration_seconds": "number",
        "phases[].name": "string",
        "phases[].sources.*.above_baseline_joules": "null|number",
        "phases[].sources.*.at_least_joules": "number",
        "phases[].sources.*.at_most_joules": "null|number",
        "phases[].sources.*.joules": "null|number",
        "phases[].sources.*.mean_watts": "null|number",
        "phases[].sources.*.uncertainty_joules": "null|number",
        "phases[].sources.*.unknown_because": "null|string",
    },
    "summary": {
        "energy.boundaries.*.reason": "null|string",
        "energy.constants[].doubt": "null|string",
        "energy.constants[].reason": "null|string",
        "energy.boundaries.*.unattributed_joules.*": "number",
        "energy.reason": "null|string",
        "energy.unattributed_joules.*": "number",
    },
}
"""Depends on the run: why it lacks something, and what happens in trouble only."""


class Live:
    """The replies of a proxy, and the files of a run that went through it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.store = folder / "records.sqlite"
        self.run = folder / "run"
        self.admin: dict[str, Any] = {}
        """JSON by request, such as `GET /books`."""
        self.metrics = self.recent_metrics = self.load_metrics = ""
        self.routes: Contract = {}
        with self._proxy() as (engine, proxy):
            url = proxy["admin_url"]
            wait_for(lambda: is_ready(url))
            meter = start(
                "proxy", "meter", "--power", f"dcgm={engine['power_url']}",
                "--json", str(folder / "meter.json"), "--label", "job=1",
                "--", sys.executable, "-c", "import time; time.sleep(2)", cwd=folder,
            )  # fmt: skip
            self._replay(proxy)
            get(f"{proxy['url']}/no/such/route")  # so that a refusal is counted
            self._ask(url)
            finish(meter)

    @contextlib.contextmanager
    def _proxy(self) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
        """A simulator with two GPUs, one of them the engine's, in a measured node."""
        node = self.folder / "node.csv"
        rows = [f"{second},900\n" for second in range(600)]
        node.write_text("".join(["# boundary=node\nseconds,watts\n", *rows]))
        with (
            simulating(
                self.folder, "--n-gpus", "2", "--fail-every", str(PROMPTS)
            ) as engine,
            metering(
                self.folder, engine, "--gpus", "0", "--bare-idle-watts", "40",
                "--store", f"sqlite:///{self.store}",
                power=f"dcgm={engine['power_url']},csv={node}", waits=False,
            ) as proxy,
        ):  # fmt: skip
            yield engine, proxy

    def _replay(self, proxy: dict[str, Any]) -> None:
        """A run of which one request fails; its metrics are read until it ends."""
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{probe.getsockname()[1]}"
        process = start(
            "loadgen", "replay", str(ROOT / "traces" / "sharegpt.jsonl"), *SEED,
            "--rate", "20", "--num-prompts", str(PROMPTS), "--output-len", "20",
            "--url", proxy["url"], "--ledger", proxy["admin_url"],
            "--metrics-port", address, "--out", str(self.run), "--metadata", "of=test",
            "--goodput", "ttft:2000", "tpot:200", cwd=self.folder,
        )  # fmt: skip
        deadline = time.monotonic() + PATIENCE_SECONDS
        while process.poll() is None and time.monotonic() < deadline:
            with contextlib.suppress(httpx.TransportError):
                self.load_metrics = get(f"http://{address}/metrics").text
            time.sleep(0.1)
        finish(process, code=3)  # a failure in five is an invalid run

    def _ask(self, admin: str) -> None:
        self.metrics = get(f"{admin}/metrics").text
        self.recent_metrics = get(f"{admin}/metrics/requests").text
        records = get(f"{admin}/requests").text.splitlines()
        self.admin["GET /requests"] = [json.loads(line) for line in records]
        some_id = self.admin["GET /requests"][0]["request_id"]
        (upstream,) = get(f"{admin}/upstreams").json()["upstreams"]
        real = {"{request_id}": some_id, "{name}": upstream["name"]}
        with httpx.Client(base_url=admin, trust_env=False) as client:
            for route in ("/", *client.get("/").json()["paths"]):
                path = route
                for placeholder, value in real.items():
                    path = path.replace(placeholder, value)
                allowed = client.delete(path).headers["allow"]
                self.routes[route] = ", ".join(sorted(re.split(r"[, ]+", allowed)))
                method = "POST" if "POST" in allowed else "GET"
                with client.stream(method, path) as reply:  # /live has no end
                    assert reply.status_code == 200, (path, reply.read())
                    if reply.headers["content-type"].startswith("application/json"):
                        reply.read()
                        self.admin[f"{method} {route}"] = reply.json()


def start(*command: str, cwd: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", *command], cwd=cwd, text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def finish(process: subprocess.Popen[str], code: int = 0) -> str:
    printed, _ = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == code, printed
    return printed


def admin_api(live: Live) -> Contract:
    found: Contract = {}
    for request, body in live.admin.items():
        found |= shape([body] if isinstance(body, dict) else body, f"{request} ")
    return found


def admin_metrics(live: Live) -> Contract:
    return families(live.metrics) | families(live.recent_metrics)


def plan(live: Live) -> Contract:
    header, *sessions = json_lines(live.run / "plan.jsonl")
    return shape([header], "header ") | shape(sessions, "session ")


def trace_stats(folder: Path) -> Contract:
    trace = str(ROOT / "traces" / "azure-conv.jsonl")
    process = start("loadgen", "traces", "stats", "--json", trace, cwd=folder)
    return shape([json.loads(finish(process))])


def json_file(path: Path) -> Any:
    return json.loads(path.read_text())


def json_lines(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def shape(values: Iterable[Any], prefix: str = "") -> Contract:
    """The types of every key path over all the values: `a.b[].c: null|number`."""
    seen: dict[str, set[str]] = {}
    for value in values:
        _walk(value, prefix, "", seen)
    return {path: "|".join(sorted(types)) for path, types in seen.items()}


def _walk(value: Any, prefix: str, path: str, seen: dict[str, set[str]]) -> None:
    if path or not isinstance(value, dict):
        seen.setdefault(prefix + path, set()).add(_json_type(value))
    if isinstance(value, list):
        for element in value:
            _walk(element, prefix, f"{path}[]", seen)
    elif isinstance(value, dict):
        is_data = DATA_KEYS.fullmatch(path) is not None
        for key, inner in value.items():
            name = "*" if is_data else key
            _walk(inner, prefix, f"{path}.{name}" if path else name, seen)


def _json_type(value: Any) -> str:
    if value is None:
        return "null"
    names = {bool: "boolean", int: "number", float: "number", str: "string",
             list: "array", dict: "object"}  # fmt: skip
    return names[type(value)]


def families(text: str) -> Contract:
    """Metrics of an exposition, each with its type and the labels of its series."""
    found: Contract = {}
    for family in text_string_to_metric_families(text):
        labels = {label for sample in family.samples for label in sample.labels}
        is_total = family.type == "counter"
        name = f"{family.name}_total" if is_total else family.name
        labels -= {"le"} if family.type == "histogram" else set()
        found[name] = ", ".join([family.type, *sorted(labels)])
    return found


def plan_digests(folder: Path) -> Contract:
    """sha256 of plans; a dry run ends with its plan."""
    found: Contract = {}
    for trace, *load in PLANS:
        shown = subprocess.run(
            [sys.executable, "-m", "loadgen", "replay", str(ROOT / "traces" / trace),
             *load, *SEED, "--dry-run", "--json"],
            cwd=folder, env=os.environ | {"PYTHONPATH": str(ROOT)}, check=True,
            capture_output=True, timeout=PATIENCE_SECONDS,
        )  # fmt: skip
        words = " ".join([trace, *load, *SEED])
        found[words] = json.loads(shown.stdout)["plan_sha256"]
    return found


def store_schema(path: Path) -> Contract:
    """Tables, columns and indexes of the records in SQLite."""
    found: Contract = {}
    with contextlib.closing(sqlite3.connect(path)) as database:
        ask = database.execute
        for (table,) in ask("SELECT name FROM sqlite_master WHERE type = 'table'"):
            columns = ask(f"PRAGMA table_info({table})").fetchall()
            for _, column, kind, is_not_null, default, key in columns:
                words = [kind, "not null" if is_not_null else "null"]
                words += [] if default is None else [f"default {default}"]
                words += [f"primary key {key}"] if key else []
                found[f"{table}.{column}"] = ", ".join(words)
            for _, index, is_unique, origin, _ in ask(f"PRAGMA index_list({table})"):
                if origin == "c":
                    over = [row[2] for row in ask(f"PRAGMA index_info({index})")]
                    kind = "unique index" if is_unique else "index"
                    found[f"{table} {kind} {index}"] = ", ".join(over)
        for name, value in ask("SELECT name, value FROM servewatt_meta"):
            found[f"servewatt_meta {name}"] = str(value)
    return found


def commands(_: Path) -> Contract:
    """Every command and parameter of the installed scripts; not their help."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    found: Contract = {}
    for script, target in project["scripts"].items():
        _add_command(command_behind(target), script, None, found)
    return found


def command_behind(target: str) -> click.Command:
    """The click command that a script's function runs, caught before it does."""
    module, _, function = target.partition(":")
    main = getattr(importlib.import_module(module), function)
    caught: list[click.Command] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(click.Command, "main", lambda self, **_: caught.append(self))
        with pytest.raises(SystemExit):
            main()
    (command,) = caught
    return command


def _add_command(
    command: click.Command, path: str, above: click.Context | None, found: Contract
) -> None:
    context = click.Context(command, info_name=path, parent=above)
    inner = command.list_commands(context) if isinstance(command, click.Group) else []
    found[path] = "group" if inner else "command"
    position = 0
    for parameter in command.get_params(context):
        if isinstance(parameter, click.Option):
            names = ", ".join(parameter.opts)
            off = ", ".join(parameter.secondary_opts)
            name = f"{names}/{off}" if off else names
        else:
            position += 1
            name = f"argument {position}"
        found[f"{path} {name}"] = ", ".join(_parameter(parameter))
    for name in inner:
        below = command.get_command(context, name)  # type: ignore[attr-defined]  # a group
        assert below is not None
        assert not below.hidden
        _add_command(below, f"{path} {name}", context, found)


def _parameter(parameter: click.Parameter) -> Iterator[str]:
    told = parameter.to_info_dict()
    if told.get("is_flag"):
        yield "flag"
    else:
        yield _parameter_type(parameter.type)
    if told["default"] is not None and told["name"] not in {"help", "version"}:
        yield f"default {json.dumps(told['default'], default=str)}"
    for word in ("required", "multiple", "count", "hidden"):
        if told.get(word):
            yield word
    if told["nargs"] != 1:
        yield f"nargs {told['nargs']}"
    if told["envvar"]:
        yield f"environment {told['envvar']}"


def _parameter_type(of: click.ParamType[Any]) -> str:
    if isinstance(of, click.Choice):
        return f"one of {' '.join(sorted(map(str, of.choices)))}"
    if isinstance(of, (click.IntRange, click.FloatRange)):
        kind = "integer" if isinstance(of, click.IntRange) else "number"
        low = "" if of.min is None else f"{of.min}{'<' if of.min_open else '<='}"
        high = "" if of.max is None else f"{'<' if of.max_open else '<='}{of.max}"
        return f"{kind} {low}x{high}"
    if isinstance(of, click.Path):
        return "path"
    known = {"integer": "integer", "float": "number", "boolean": "boolean"}
    return known.get(of.name, "text")  # also what a function of ours reads


OF_A_RUN: dict[str, Callable[[Live], Contract]] = {
    "admin-api": admin_api,
    "admin-metrics": admin_metrics,
    "admin-routes": lambda live: live.routes,
    "loadgen-metrics": lambda live: families(live.load_metrics),
    "meter-report": lambda live: shape([json_file(live.folder / "meter.json")]),
    "plan": plan,
    "requests": lambda live: shape(json_lines(live.run / "requests.jsonl")),
    "store": lambda live: store_schema(live.store),
    "summary": lambda live: shape([json_file(live.run / "summary.json")]),
}
WITHOUT_A_RUN: dict[str, Callable[[Path], Contract]] = {
    "commands": commands,
    "plan-sha256": plan_digests,
    "trace-stats": trace_stats,
}
"""Made in a folder."""


def settled(name: str, found: Contract) -> list[str]:
    """The lines of a file: with what a run may lack as if it had been there."""
    may_be = SOMETIMES.get(name, {})
    for key, whole in may_be.items():
        parts = set(re.split(r"\||, ", found.get(key, whole)))
        if parts <= set(re.split(r"\||, ", whole)):
            found = found | {key: whole}
    return sorted(f"{key}: {what}\n" for key, what in found.items())


def path_of(name: str) -> Path:
    return GOLDEN / f"{name}.txt"


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Live:
    return Live(tmp_path_factory.mktemp("contracts"))


@pytest.mark.parametrize("name", WITHOUT_A_RUN)
def test_commands_and_plans_are_as_users_know_them(name: str, tmp_path: Path) -> None:
    compare(name, WITHOUT_A_RUN[name](tmp_path))


@pytest.mark.parametrize("name", OF_A_RUN)
def test_files_and_replies_are_as_users_know_them(name: str, live: Live) -> None:
    compare(name, OF_A_RUN[name](live))


def compare(name: str, contract: Contract) -> None:
    wanted = path_of(name).read_text().splitlines(keepends=True)
    changed = [
        line
        for line in difflib.ndiff(wanted, settled(name, contract))
        if line.startswith(("- ", "+ "))
    ]
    if changed:
        pytest.fail(
            f"{path_of(name).relative_to(ROOT)} (- as it was, + as it is):\n"
            f"{''.join(changed)}"
            "if that is meant to change: python tests/system/test_contracts.py --write",
            pytrace=False,
        )


def test_no_contract_is_left_unchecked() -> None:
    files = {path.stem for path in GOLDEN.iterdir()}
    assert files == {*WITHOUT_A_RUN, *OF_A_RUN}


def write() -> None:
    """Make every golden file from the programs as they are."""
    GOLDEN.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        live = Live(folder)
        found = {name: make(folder) for name, make in WITHOUT_A_RUN.items()}
        found |= {name: make(live) for name, make in OF_A_RUN.items()}
    for name, contract in found.items():
        path_of(name).write_text("".join(settled(name, contract)))


if __name__ == "__main__":
    if sys.argv[1:] != ["--write"]:
        sys.exit(f"usage: python {sys.argv[0]} --write")
    write()
