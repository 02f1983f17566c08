"""`loadgen offline`: batches of one length at controlled sizes."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from loadgen.cli.output import result_options, show_result
from loadgen.errors import UsageError
from loadgen.simulator.core.presets import GPUS, MODELS
from proxy.process.command import Command
from proxy.process.terminal import echo

if TYPE_CHECKING:
    from loadgen.analysis.offline import OfflineReport
    from loadgen.studies.offline import Found, Shape, Sizes

EXAMPLES = """\b
Examples:
  loadgen offline --input-len 512 --output-len 64
  loadgen offline traces/azure-conv.jsonl --bins 4 --batch 1,8,largest
  loadgen offline --input-len 512 --output-len 64 --engine transformers \\
      --model meta-llama/Llama-3.1-8B --compile --python ~/hf/bin/python
  loadgen offline --input-len 512 --output-len 64 --batch 64 \\
      --url http://127.0.0.1:8000 --power nvml
"""
ENGINES = ("http", "vllm", "transformers")
IN_PROCESS = (
    "compile", "eager", "dtype", "device", "tensor_parallel", "beam", "engine_args",
    "python",
)  # fmt: skip


@click.command(cls=Command, epilog=EXAMPLES)
@click.argument("trace", required=False, type=click.Path(path_type=Path))
@click.option("--input-len", type=click.IntRange(1, 1_000_000), metavar="N",
              help="One length instead of a trace's bins.")  # fmt: skip
@click.option("--output-len", type=click.IntRange(1, 1_000_000), metavar="N",
              help="Its output tokens.")  # fmt: skip
@click.option("--edges", type=click.Choice(["paper", "powers", "percentile"]),
              default="paper", show_default=True, help="Bins, as of loadgen bins.",
)  # fmt: skip
@click.option("--bins", "most_bins", type=click.IntRange(1), metavar="N",
              help="Only the N bins with the most requests.")  # fmt: skip
@click.option("--batch", "batch_text", default="largest", show_default=True,
              metavar="SIZES", help="Sizes, such as 1,8,largest.")  # fmt: skip
@click.option("--most", type=click.IntRange(1, 100_000), default=256,
              show_default=True, metavar="N", help="End of the search.")  # fmt: skip
@click.option("--seconds", type=click.FloatRange(0.1, 3600), default=5.0,
              show_default=True, metavar="S", help="Measure each size so long, in "
              "process.")  # fmt: skip
@click.option("--rounds", type=click.IntRange(1, 1000), default=3, show_default=True,
              metavar="N", help="At least so many batches of each.")  # fmt: skip
@click.option("--engine", type=click.Choice(ENGINES), default="http",
              show_default=True, help="A server, or an engine in process.")  # fmt: skip
@click.option("--url", metavar="URL", help="The server; none: a simulated one.")
@click.option("--backend", default="vllm", show_default=True, metavar="NAME",
              help="Its API.")  # fmt: skip
@click.option("--gpu", type=click.Choice(sorted(GPUS)), default="h100",
              metavar="NAME", show_default=True, help="Of the simulated one.",
)  # fmt: skip
@click.option("--sim-model", type=click.Choice(sorted(MODELS)), metavar="NAME",
              default="llama-3.1-8b", show_default=True, help="Of the simulated one.",
)  # fmt: skip
@click.option("--model", metavar="NAME", help="Model to load, or to ask for.")
@click.option("--python", metavar="PATH", help="Interpreter of the engine's "
              "environment. [default: this one]")  # fmt: skip
@click.option("--compile", is_flag=True, help="transformers with torch.compile.")
@click.option("--eager", is_flag=True, help="vllm without CUDA graphs.")
@click.option("--dtype", default="auto", show_default=True, metavar="NAME",
              help="Of the weights.")  # fmt: skip
@click.option("--device", default="auto", show_default=True, metavar="NAME",
              help="Of transformers: cuda, cpu.")  # fmt: skip
@click.option("--tensor-parallel", type=click.IntRange(1, 64), default=1,
              show_default=True, metavar="N", help="GPUs of vllm.")  # fmt: skip
@click.option("--engine-args", default="{}", metavar="JSON", show_default=True,
              help="Further arguments of vllm.LLM.")  # fmt: skip
@click.option("--temperature", type=click.FloatRange(0, 10), default=0.0,
              show_default=True, metavar="X", help="0 is greedy.")  # fmt: skip
@click.option("--beam", type=click.IntRange(1, 64), default=1, show_default=True,
              metavar="N", help="Beams, in process.")  # fmt: skip
@click.option("--power", metavar="SOURCE[,SOURCE]", help="Sensors; the first counts. "
              "[default: nvml; of a simulated server its own]")  # fmt: skip
@click.option("--gpus", metavar="0,1", help="Used and metered. [default: all]")
@click.option("--folder", type=click.Path(path_type=Path, file_okay=False),
              help="Runs and logs are kept there. [default: runs/offline-<trace>]",
)  # fmt: skip
@result_options
def offline(
    trace: Path | None, input_len: int | None, output_len: int | None, edges: str,
    most_bins: int | None, batch_text: str, most: int, seconds: float, rounds: int,
    engine: str, url: str | None, backend: str, gpu: str, sim_model: str,
    model: str | None, power: str | None, gpus: str | None, folder: Path | None,
    form: str, out: Path | None, **more: Any,
) -> None:  # fmt: skip
    """Measure batches of one size and length: of each bin of TRACE, or of one length.

    The largest batch that fits is searched (doubling, then bisecting): that memory is
    out is an answer. An engine in process (vLLM's LLM class, transformers' generate)
    runs under the meter, a server gets each batch at once. With neither --url nor
    --engine the simulated stack is measured.
    """
    from loadgen.analysis.offline import OfflineReport
    from loadgen.report.offline import sheet
    from loadgen.report.sheet import to_csv

    shapes = _shapes(trace, input_len, output_len, edges, most_bins)
    sizes = _sizes(batch_text, most, seconds, rounds)
    stem = trace.name.split(".")[0] if trace else f"{input_len}-{output_len}"
    place = folder or Path("runs") / f"offline-{stem}-{engine}"
    context = click.get_current_context()
    given = [
        name for name in IN_PROCESS
        if context.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE
    ]  # fmt: skip
    if engine == "http":
        if given:
            option = given[0].replace("_", "-")
            raise UsageError(f"--{option} is for --engine vllm or transformers")
        found = _at_server(
            shapes, sizes, place, url, backend, model, power, gpus, gpu, sim_model,
            more["temperature"],
        )  # fmt: skip
        label, shown_power = "http", power or ("nvml" if url else "its own GPU")
    else:
        if url is not None:
            raise UsageError(f"--url is for --engine http, not for {engine}")
        if model is None:
            raise UsageError(f"--engine {engine} needs --model NAME, or its folder")
        found = _in_process(
            shapes, sizes, place, engine, model, power or "nvml", gpus, more
        )
        label = engine + "".join(f" + {o}" for o in ("compile", "eager") if more[o])
        shown_power = power or "nvml"
    report: OfflineReport = OfflineReport(
        engine=label,
        version=found.version,
        model=model or (None if url else f"simulated-{sim_model} on {gpu}"),
        device=found.device,
        power=shown_power,
        boundary=found.boundary,
        simulated=found.simulated,
        decoding=_decoding(more["temperature"], more["beam"]),
        rows=found.rows,
    )
    show_result(
        form, out, document=report, sheets=[sheet(report)],
        lines=lambda: to_csv(report.rows, engine=label, simulated=report.simulated),
    )  # fmt: skip
    if all(row.status == "failed" for row in report.rows):
        sys.exit(1)


def _decoding(temperature: float, beam: int) -> str:
    sampled = f"temperature {temperature:g}" if temperature else "greedy"
    return f"beam {beam}" if beam > 1 else sampled


def _shapes(
    trace: Path | None,
    input_len: int | None,
    output_len: int | None,
    edges: str,
    most_bins: int | None,
) -> list[Shape]:
    from loadgen.studies.offline import Shape

    if (input_len is None) != (output_len is None) or (trace is None) == (
        input_len is None
    ):
        raise UsageError("give a TRACE, or both --input-len N and --output-len N")
    if input_len is not None and output_len is not None:
        return [Shape(input_len, output_len)]
    assert trace is not None
    from loadgen.analysis.bins import bin_table, edges_of
    from loadgen.cli.bins import read_lengths

    lengths, _ = read_lengths(trace, None)
    table = bin_table(edges, edges_of(edges, lengths), lengths)
    bins = list(table.bins)
    if most_bins is not None:
        bins = sorted(bins, key=lambda one: -one.requests)[:most_bins]
    if not bins:
        raise UsageError(f"{trace}: no request is in a bin; see loadgen bins {trace}")
    found = [Shape(b.input_tokens, b.output_tokens, b.requests) for b in bins]
    return sorted(found, key=lambda one: (one.input_tokens, one.output_tokens))


def _sizes(text: str, most: int, seconds: float, rounds: int) -> Sizes:
    from loadgen.studies.offline import LARGEST, Sizes

    asked: list[int] = []
    words = [word.strip() for word in text.split(",")]
    for word in words:
        if word == LARGEST:
            continue
        if not word.isdecimal() or not 1 <= int(word) <= 100_000:
            raise UsageError(
                f"--batch {text}: {word!r} is neither a size from 1 nor {LARGEST}"
            )
        asked.append(int(word))
    return Sizes(
        asked=tuple(dict.fromkeys(asked)), with_largest=LARGEST in words, most=most,
        seconds=seconds, rounds=rounds,
    )  # fmt: skip


def _say(text: str) -> None:
    echo(text, err=True)


def _in_process(
    shapes: list[Shape],
    sizes: Sizes,
    place: Path,
    engine: str,
    model: str,
    power: str,
    gpus: str | None,
    more: dict[str, Any],
) -> Found:
    from loadgen.studies.offline import InProcess, measure_in_process

    try:
        engine_args = json.loads(more["engine_args"])
    except ValueError as error:
        raise UsageError(f"--engine-args: not JSON: {error}") from None
    if not isinstance(engine_args, dict):
        raise UsageError('--engine-args: expected an object, such as {"seed": 1}')
    if engine == "transformers" and more["eager"]:
        raise UsageError("--eager is for vllm; transformers is eager without --compile")
    if engine == "vllm" and more["compile"]:
        raise UsageError("--compile is for transformers; vllm compiles without --eager")
    asked = InProcess(
        engine=engine,
        model=model,
        python=more["python"] or sys.executable,
        compile=more["compile"],
        eager=more["eager"],
        dtype=more["dtype"],
        device=more["device"],
        tensor_parallel=more["tensor_parallel"],
        temperature=more["temperature"],
        beam=more["beam"],
        engine_args=engine_args,
        power=power,
        gpus=gpus,
    )
    return measure_in_process(shapes, sizes, asked, place, _say)


def _at_server(
    shapes: list[Shape],
    sizes: Sizes,
    place: Path,
    url: str | None,
    backend: str,
    model: str | None,
    power: str | None,
    gpus: str | None,
    gpu: str,
    sim_model: str,
    temperature: float,
) -> Found:
    from loadgen.studies.launch import open_study
    from loadgen.studies.offline import measure_server

    asked = {
        "url": url, "backend": backend, "model": model, "power": power, "gpus": gpus,
        "gpu": gpu, "sim_model": sim_model, "temperature": temperature,
    }  # fmt: skip
    with (
        open_study(place, "offline", asked, [], say=_say) as study,
        _server(url, gpu, sim_model, backend, place) as address,
    ):
        options = {"backend": backend, "model": model, "temperature": temperature}
        source = power or ("nvml" if url else f"dcgm={address}/dcgm/metrics")
        meter = [] if source == "none" else [f"--power={source}"]
        meter += [f"--gpus={gpus}"] if gpus and meter else []
        found = measure_server(shapes, sizes, address, options, meter, study, _say)
    return found


@contextmanager
def _server(
    url: str | None, gpu: str, sim_model: str, backend: str, place: Path
) -> Iterator[str]:
    """The server that was named, or a simulated one."""
    from loadgen.studies.presets import simulator_command
    from loadgen.studies.servers import Launch, running

    if url is not None:
        yield url.rstrip("/")
        return
    words = ["--gpu", gpu, "--model", sim_model, "--no-prefix-cache"]
    words += ["--dialect", "tgi" if backend == "tgi" else "vllm"]
    launch = Launch(
        "simulated", lambda port: simulator_command(words, port), {}, "/health", 30.0,
        None, place / "logs" / "simulated.log",
    )  # fmt: skip
    with running(launch, _say) as server:
        yield server.url
