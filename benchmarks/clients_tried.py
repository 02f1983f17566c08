"""Load generators and a gateway, unchanged, through the proxy before a real vLLM: what
each counted itself, what the ledger counted, and what the engine counted.

    python -m benchmarks.clients_tried --engines $(.ci/engines)
    python -m benchmarks.clients_tried --engines $(.ci/engines) --only aiperf,wrk

The commands are the lines of `docs/clients.md`, with a bound to the load added. Each
program is installed in an environment of its own, kept in ~/.cache/servewatt; wrk and
h2load are Debian's (`apt-get install wrk nghttp2-client`). One that is not there is a
line that says so. Exits 1 where any count differs.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import re
import secrets
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from tests.engines.vllm_server import (
    MODEL,
    OFFLINE,
    Metered,
    free_port,
    metered,
    metric_of,
    running_vllm,
)
from tests.support.children import get, wait_for
from tests.support.client_calls import ON_THE_PAGE, PAGE
from tests.support.paths import ROOT

REQUESTS = 20
TOKENS = 16
CHATS = 12
"""Sent through a gateway, a third of them each way."""
RUN_SECONDS = 400
SETTLE_SECONDS = 4.0
"""The last window of a sensor that is read ten times a second is settled by then."""
COUNTERS = {
    "requests": "vllm:request_success_total",
    "prompt_tokens": "vllm:prompt_tokens_total",
    "output_tokens": "vllm:generation_tokens_total",
}
QUIET = {
    "DO_NOT_TRACK": "1", "TOKENIZERS_PARALLELISM": "false",
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
}  # fmt: skip
BODY: dict[str, object] = {
    "model": MODEL, "messages": [{"role": "user", "content": "where is it warm?"}],
    "max_tokens": TOKENS, "ignore_eos": True,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Counts:
    """What was asked and served; None where nobody tells."""

    requests: int
    prompt_tokens: int | None = None
    output_tokens: int | None = None

    def agrees(self, ledger: Counts) -> bool:
        """Every count that is told is the ledger's."""
        return (
            self.requests == ledger.requests
            and self.prompt_tokens in (None, ledger.prompt_tokens)
            and self.output_tokens in (None, ledger.output_tokens)
        )


@dataclass(frozen=True, slots=True)
class Bench:
    """Where a program runs, and what it runs against."""

    folder: Path
    """Its own, for what it writes."""
    tokenizer: Path
    engine: Metered


@dataclass(frozen=True, slots=True)
class Program:
    """One to try."""

    package: str
    """Pinned, as pip takes it; "" for a Debian package or the engines' own."""
    bound: Callable[[Bench], list[str]]
    """What is added to the page's line: how much, and where results go."""
    counted: Callable[[Bench, str], Counts]
    """Its own results, from its folder or its output."""
    version: str = ""
    """What prints it, where no package is pinned."""
    python: str = sys.executable
    in_flight: int = 0
    """Requests that may run when its time is over: it cuts and does not count them."""


def aiperf_bound(bench: Bench) -> list[str]:
    return shlex.split(
        f"--tokenizer {bench.tokenizer} --request-count {REQUESTS} --concurrency 4 "
        f"--synthetic-input-tokens-mean 60 --output-tokens-mean {TOKENS} "
        "--extra-inputs ignore_eos:true --use-server-token-count --ui none "
        f"--output-artifact-dir {bench.folder}"
    )


def aiperf_counted(bench: Bench, output: str) -> Counts:
    found = read_json(bench.folder / "profile_export_aiperf.json")
    names = (
        "request_count", "total_usage_prompt_tokens", "total_usage_completion_tokens",
    )  # fmt: skip
    return Counts(*(int(found[name]["avg"]) for name in names))


def guidellm_bound(bench: Bench) -> list[str]:
    return shlex.split(
        f"--profile kind=concurrent,streams=4 --constraint "
        f"kind=max_requests,count={REQUESTS} --data kind=synthetic_text,"
        f"prompt_tokens=60,output_tokens={TOKENS} --tokenizer "
        f"kind=hf_auto,model={bench.tokenizer} --disable-console "
        f"--output kind=json,path={bench.folder / 'out.json'}"
    )


def guidellm_counted(bench: Bench, output: str) -> Counts:
    (run,) = read_json(bench.folder / "out.json")["benchmarks"]
    metrics = run["metrics"]
    return Counts(
        metrics["request_totals"]["successful"],
        int(metrics["prompt_token_count"]["successful"]["total_sum"]),
        int(metrics["output_token_count"]["successful"]["total_sum"]),
    )


def inference_perf_bound(bench: Bench) -> list[str]:
    lengths = " ".join(
        f"--data.{side}_distribution.{name} {value}"
        for side, middle in (("input", 40), ("output", TOKENS))
        for name, value in {
            "min": middle // 2, "max": middle * 2, "mean": middle, "std_dev": 3,
            "total_count": REQUESTS + 1,
        }.items()
    )  # fmt: skip
    stages = json.dumps([{"rate": 4, "duration": REQUESTS // 4}])
    return shlex.split(
        "--server.ignore_eos true --api.type completion --api.streaming true "
        f"--tokenizer.pretrained_model_name_or_path {bench.tokenizer} "
        f"--data.type random {lengths} --load.type constant "
        f"--load.stages '{stages}' --load.num_workers 1 "
        f"--storage.local_storage.path {bench.folder / 'out'} "
        "--report.request_lifecycle.per_request true"
    )


def inference_perf_counted(bench: Bench, output: str) -> Counts:
    found = read_json(bench.folder / "out/per_request_lifecycle_metrics.json")
    usages = [
        one["info"]["response_metrics"]["server_usage"]
        for one in found
        if one["error"] is None
    ]
    return Counts(
        len(usages),
        sum(usage["prompt_tokens"] for usage in usages),
        sum(usage["completion_tokens"] for usage in usages),
    )


def vllm_bound(bench: Bench) -> list[str]:
    return shlex.split(
        f"--tokenizer {bench.tokenizer} --dataset-name random --random-input-len 60 "
        f"--random-output-len {TOKENS} --num-prompts {REQUESTS} --ignore-eos "
        "--max-concurrency 4 --disable-tqdm --save-result "
        f"--result-dir {bench.folder} --result-filename out.json"
    )


def vllm_counted(bench: Bench, output: str) -> Counts:
    found = read_json(bench.folder / "out.json")
    names = ("completed", "total_input_tokens", "total_output_tokens")
    return Counts(*(found[name] for name in names))


def wrk_counted(bench: Bench, output: str) -> Counts:
    found = re.search(r"(\d+) requests in", output)
    assert found is not None, output
    assert "Non-2xx" not in output, output
    return Counts(int(found[1]))


def h2load_counted(bench: Bench, output: str) -> Counts:
    found = re.search(r"status codes: (\d+) 2xx", output)
    assert found is not None, output
    return Counts(int(found[1]))


PROGRAMS = {
    "aiperf": Program("aiperf==0.13.0", aiperf_bound, aiperf_counted),
    "guidellm": Program("guidellm==0.8.1", guidellm_bound, guidellm_counted),
    "inference-perf": Program(
        "inference-perf==0.7.0", inference_perf_bound, inference_perf_counted,
        python="python3.12",
    ),
    "vllm": Program("", vllm_bound, vllm_counted, "vllm --version"),
    "wrk": Program(
        "", lambda bench: shlex.split("-t 1 -c 2 -d 3s"), wrk_counted, "wrk -v",
        in_flight=2,
    ),
    "h2load": Program(
        "", lambda bench: shlex.split(f"-n {REQUESTS} -c 4"), h2load_counted,
        "h2load --version",
    ),
}  # fmt: skip
BEHIND = (
    "--engine", "openai", "--health-path", "/health/liveliness",
    "--usage-event", "drop",
)  # fmt: skip
"""How the page has a proxy before LiteLLM."""
GATEWAY = "litellm[proxy]==1.108.7"


FAILED = "FAILED"


class NotThere(Exception):
    """A program cannot be had on this machine, and why."""


def read_json(path: Path) -> Any:
    return json.loads(path.read_text())


def commands_of(page: str) -> dict[str, str]:
    """The commands in the page's tables, by their first word."""
    found = re.findall(r"^\| [^|]+ \| `([\w-]+ [^`]+)` \|", page, re.MULTILINE)
    return {shlex.split(line)[0]: line for line in found}


def block_of(page: str, language: str) -> str:
    """The page's only fenced block in a language."""
    (block,) = re.findall(rf"^```{language}\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    return str(block)


def environment(name: str, package: str, python: str, engines: Path) -> Path:
    """The `bin` folder of an environment that has a package; made where it is not."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser()
    folder = cache / "servewatt" / f"tried-{name}-{package.partition('==')[2]}"
    if not (folder / "complete").exists():
        found = shutil.which(python)
        if found is None:
            raise NotThere(f"needs {python}, which is not installed")
        print(f"installing {package} in {folder}", file=sys.stderr)
        shutil.rmtree(folder, ignore_errors=True)
        subprocess.run([found, "-m", "venv", folder], check=True)
        install = [str(folder / "bin/pip"), "install", "-q"]
        if name == "guidellm":  # torch for CPUs where pip has it; else what it asks for
            torch = ["--no-deps", "-r", str(engines / "torch.lock")]
            subprocess.run([*install, *torch], capture_output=True)
        subprocess.run([*install, package], check=True)
        (folder / "complete").touch()
    return folder / "bin"


def tried(name: str, line: str, program: Program, bench: Bench, bin: Path) -> Counts:
    """One bounded run of a program through the proxy, and what it counted itself."""
    line = line.replace(ON_THE_PAGE, bench.engine.url).replace("MODEL", MODEL)
    command, *words = shlex.split(line)
    path = bin / command if (bin / command).exists() else shutil.which(command)
    # a URL that stands at the end stays there
    last = [words.pop()] if words[-1].startswith("http") else []
    (bench.folder / "post.lua").write_text(block_of(PAGE.read_text(), "lua"))
    (bench.folder / "body.json").write_text(json.dumps(BODY))
    done = subprocess.run(
        [str(path), *words, *program.bound(bench), *last], cwd=bench.folder, text=True,
        env=os.environ | QUIET, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, timeout=RUN_SECONDS,
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(
            f"{name} ended with {done.returncode}: {done.stdout[-2000:]}"
        )
    return program.counted(bench, done.stdout)


def place_of(name: str, program: Program, engines: Path) -> tuple[Path, str]:
    """Where a program's commands are, and its version; NotThere where they are not."""
    if program.package:
        bin = environment(name, program.package, program.python, engines)
        return bin, program.package.partition("==")[2]
    bin = engines / "bin"
    if not (bin / name).exists() and shutil.which(name) is None:
        raise NotThere("not installed")
    words = shlex.split(program.version)
    found = subprocess.run(
        [str(bin / name) if (bin / name).exists() else name, *words[1:]],
        capture_output=True, text=True,
    )  # fmt: skip
    version = re.search(r"\d+\.\d+[\w.]*", found.stdout + found.stderr)
    return bin, version[0] if version else "?"


# --- a gateway, on either side of the proxy ---------------------------------------


@contextlib.contextmanager
def gateway(bin: Path, line: str, upstream: str, folder: Path) -> Iterator[str]:
    """LiteLLM before an address; its own, with the key that it insists on."""
    port = free_port()
    words = shlex.split(
        line.replace(ON_THE_PAGE, upstream).replace("MODEL", MODEL)
    )  # fmt: skip
    with (folder / "litellm.log").open("wb") as log:
        process = subprocess.Popen(
            [bin / words[0], *words[1:], "--host", "127.0.0.1", "--port", str(port)],
            env=os.environ | QUIET | {"LITELLM_MASTER_KEY": KEY}, cwd=folder,
            stdin=subprocess.DEVNULL, stdout=log, stderr=log,
        )  # fmt: skip
    url = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + RUN_SECONDS
        while not answers(f"{url}/health/liveliness"):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError((folder / "litellm.log").read_text()[-2000:])
            time.sleep(0.5)
        yield url
    finally:
        process.terminate()
        process.wait(60)


KEY = f"sk-{secrets.token_hex(16)}"


def answers(url: str) -> bool:
    with contextlib.suppress(httpx.TransportError):
        return get(url).status_code == 200
    return False


def asked_of(url: str, model: str) -> Counts:
    """Some chats, whole and streamed, with usage and without; how many there were."""
    ways: tuple[dict[str, object], ...] = (
        {}, {"stream": True, "stream_options": {"include_usage": True}},
        {"stream": True},
    )  # fmt: skip
    with httpx.Client(timeout=60, trust_env=False) as client:
        for number in range(CHATS):
            way = ways[number % 3]
            reply = client.post(
                f"{url}/v1/chat/completions", json=BODY | {"model": model} | way,
                headers={"authorization": f"Bearer {KEY}"},
            )  # fmt: skip
            reply.raise_for_status()
            if ('"completion_tokens"' in reply.text) == (way == ways[2]):
                raise RuntimeError(
                    f"usage asked for and not there, or the other way "
                    f"round: {reply.text[-500:]}"
                )
    return Counts(CHATS)


# --- counting ---------------------------------------------------------------------


def records_of(admin: str) -> list[dict[str, Any]]:
    lines = get(f"{admin}/requests?limit=10000").text.splitlines()
    return [json.loads(line) for line in lines]


def ledger_of(admin: str, before: int) -> tuple[Counts, int]:
    """The counts of the records since, and how many of them did not end well."""
    records = records_of(admin)[before:]
    good = [one for one in records if one["outcome"] == "ok"]
    unknown = [one for one in good if one["output_tokens"] is None]
    counts = Counts(
        len(good),
        None if unknown else sum(one["prompt_tokens"] for one in good),
        None if unknown else sum(one["output_tokens"] for one in good),
    )
    return counts, len(records) - len(good)


def engine_of(url: str) -> dict[str, int]:
    return {name: int(metric_of(url, key)) for name, key in COUNTERS.items()}


@dataclass(frozen=True, slots=True)
class Row:
    """One program's line of the table."""

    name: str
    version: str
    own: Counts
    ledger: Counts
    engine: Counts
    others: int
    in_flight: int = 0

    @property
    def is_same(self) -> bool:
        """Program, ledger and engine agree, but for requests that were cut off."""
        if self.in_flight:  # the engine may have ended what the client no longer read
            extra = self.ledger.requests + self.others - self.own.requests
            ended = self.engine.requests - self.ledger.requests
            return 0 <= ended <= self.others and 0 <= extra <= self.in_flight
        return self.own.agrees(self.ledger) and self.engine.agrees(self.ledger)

    def cells(self) -> list[str]:
        """The table's columns."""
        counts = [
            " / ".join("-" if value is None else f"{value:,}" for value in values)
            for values in zip(
                *(
                    (one.requests, one.prompt_tokens, one.output_tokens)
                    for one in (self.own, self.ledger, self.engine)
                ),
                strict=True,
            )
        ]
        notes = ["same" if self.is_same else "DIFFERENT"]
        if self.in_flight:
            notes.append("it does not count what runs when it stops")
        if self.others:
            notes.append(f"{self.others} `aborted`")
        return [self.name, self.version, *counts, "; ".join(notes)]


def counting(
    name: str, version: str, engine: Metered, admin: str, run: Callable[[], Counts],
    in_flight: int = 0,
) -> Row:  # fmt: skip
    """A row, from what three parties count while `run` runs."""
    before, counted = len(records_of(admin)), engine_of(engine.vllm.url)
    own = run()
    wait_for(lambda: len(records_of(admin)) >= before + own.requests)
    time.sleep(SETTLE_SECONDS)
    ledger, others = ledger_of(admin, before)
    after = engine_of(engine.vllm.url)
    of_engine = Counts(**{key: after[key] - counted[key] for key in after})
    return Row(name, version, own, ledger, of_engine, others, in_flight)


def try_all(engines: Path, only: set[str], folder: Path) -> Iterator[Row | str]:
    """A row for each program, or a line that says why there is none."""
    lines = commands_of(PAGE.read_text())
    model = folder / "model"
    subprocess.run(
        [engines / "bin/python", ROOT / "tests/engines/tiny_model.py", model],
        env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, check=True,
    )  # fmt: skip
    with contextlib.ExitStack() as stack:
        vllm = stack.enter_context(running_vllm(engines / "bin", model, folder))
        engine = stack.enter_context(metered(vllm, folder))
        for name, program in PROGRAMS.items():
            if only and name not in only:
                continue
            place = folder / name
            place.mkdir()
            bench = Bench(place, model, engine)
            yield try_program(name, program, lines[name], bench, engines)
        if not only or "litellm" in only:
            yield from try_gateway(engines, lines["litellm"], engine, folder)


def try_program(
    name: str, program: Program, line: str, bench: Bench, engines: Path
) -> Row | str:
    """One program's row, or why there is none."""
    try:
        bin, version = place_of(name, program, engines)
        return counting(
            name, version, bench.engine, bench.engine.admin,
            lambda: tried(name, line, program, bench, bin), program.in_flight,
        )  # fmt: skip
    except NotThere as reason:
        return f"{name}: left out: {reason}"
    except (RuntimeError, LookupError, AssertionError, OSError) as error:
        return f"{name}: {FAILED}: {error!r}"
    except subprocess.SubprocessError as error:
        return f"{name}: {FAILED}: {error}"


def try_gateway(
    engines: Path, line: str, engine: Metered, folder: Path
) -> Iterator[Row]:
    """LiteLLM between client and proxy, then between proxy and engine."""
    bin = environment("litellm", GATEWAY, sys.executable, engines)
    version = GATEWAY.partition("==")[2]
    model = f"hosted_vllm/{MODEL}"
    with gateway(bin, line, engine.url, folder) as url:
        yield counting(
            "litellm, before the proxy", version, engine, engine.admin,
            lambda: asked_of(url, model),
        )  # fmt: skip
    with (
        gateway(bin, line, engine.vllm.url, folder) as url,
        metered(engine.vllm, folder, "--upstream", url, *BEHIND) as behind,
    ):
        yield counting(
            "litellm, behind the proxy", version, engine, behind.admin,
            lambda: asked_of(behind.url, model),
        )  # fmt: skip


HEAD = (
    "program", "version", "requests", "prompt tokens", "output tokens", "counts"
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--engines", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--only", default="", metavar="NAME,NAME")
    options = parser.parse_args()
    os.environ.update(OFFLINE)
    os.environ.pop("HF_HUB_OFFLINE")  # with it, a tokenizer's folder is not looked at
    only = set(filter(None, options.only.split(",")))
    print(
        f"{time.strftime('%Y-%m-%d')}, {os.cpu_count()} vCPU {platform.machine()}, "
        f"load {os.getloadavg()[0]:.0f}, Python {platform.python_version()}"
    )
    print(f"\n| {' | '.join(HEAD)} |\n|{'---|' * len(HEAD)}", flush=True)
    is_same = True
    with tempfile.TemporaryDirectory() as folder:
        for row in try_all(options.engines, only, Path(folder)):
            if isinstance(row, str):
                print(row, file=sys.stderr)
                is_same = is_same and FAILED not in row
                continue
            is_same = is_same and row.is_same
            print(f"| {' | '.join(row.cells())} |", flush=True)
    sys.exit(not is_same)


if __name__ == "__main__":
    main()
