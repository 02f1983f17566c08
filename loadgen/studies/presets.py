"""Servers that a study knows how to start, and what stands for each when simulated.

A preset is a command, the options that mean the same in every engine, and options of
`loadgen simulate`. What those assume is no measurement: how long a step of an engine
takes beside the board's work is only assumed, so that a study has differences to show.
"""

from __future__ import annotations

import json
import re
import shlex
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from loadgen.errors import UsageError
from loadgen.simulator.core.presets import GPUS, MODELS

if TYPE_CHECKING:
    from loadgen.studies.study_file import Server, Simulated

PLACEHOLDER = re.compile(r"\{(\w+)\}")
PLACEHOLDERS = ("port", "host", "model")
HOST = "127.0.0.1"
OPTIONS = (
    "dtype", "quantization", "tensor_parallel", "max_num_seqs",
    "max_num_batched_tokens", "max_model_len", "prefix_caching", "speculative",
)  # fmt: skip
"""What a server may be asked for by the same word, whichever it is."""

Words = Callable[[Any], list[str]]


@dataclass(frozen=True, slots=True)
class Preset:
    """One way to serve a model."""

    about: str
    command: tuple[str, ...]
    backend: str
    words: Mapping[str, Words]
    """The arguments of each of `OPTIONS` that it has."""
    simulated: Mapping[str, str | int | float] = field(default_factory=dict)
    """Options of `loadgen simulate`; assumed, except the dialect."""
    health: str = "/health"
    start_seconds: float = 900.0
    """A large model is read from a slow disk, and compiled."""

    def missing(self, server: Server) -> list[str]:
        """Options that a server is asked for and that this one has not."""
        asked = (one for one in OPTIONS if getattr(server, one) is not None)
        return [one for one in asked if one not in self.words]


def _option(name: str) -> Words:
    return lambda value: [name, str(value)]


def _speculative(value: Any) -> list[str]:
    asked = {"model": value.model, "method": value.method}
    config = {key: word for key, word in asked.items() if word is not None}
    config["num_speculative_tokens"] = value.tokens
    return ["--speculative-config", json.dumps(config)]


_VLLM: dict[str, Words] = {
    "dtype": _option("--dtype"),
    "quantization": _option("--quantization"),
    "tensor_parallel": _option("--tensor-parallel-size"),
    "max_num_seqs": _option("--max-num-seqs"),
    "max_num_batched_tokens": _option("--max-num-batched-tokens"),
    "max_model_len": _option("--max-model-len"),
    "prefix_caching": lambda on: [
        "--enable-prefix-caching" if on else "--no-enable-prefix-caching"
    ],
    "speculative": _speculative,
}
_TRANSFORMERS: dict[str, Words] = {
    "dtype": _option("--dtype"),
    "quantization": _option("--quantization"),
}
_TGI: dict[str, Words] = {
    "dtype": _option("--dtype"),
    "quantization": _option("--quantize"),
    "tensor_parallel": _option("--num-shard"),
    "max_num_seqs": _option("--max-batch-size"),
    "max_num_batched_tokens": _option("--max-batch-prefill-tokens"),
    "max_model_len": _option("--max-total-tokens"),
    "speculative": lambda value: ["--speculate", str(value.tokens)],
}
_SERVE_VLLM = ("vllm", "serve", "{model}", "--host", "{host}", "--port", "{port}")
_SERVE_TRANSFORMERS = (
    "transformers", "serve", "{model}", "--host", "{host}", "--port", "{port}",
)  # fmt: skip
_SERVE_TGI = (
    "text-generation-launcher", "--model-id", "{model}", "--hostname", "{host}",
    "--port", "{port}",
)  # fmt: skip

PRESETS: dict[str, Preset] = {
    "vllm": Preset(
        "vLLM as it is delivered: compiled, with CUDA graphs",
        _SERVE_VLLM, "vllm", _VLLM, {"dialect": "vllm"},
    ),
    "vllm-graphs": Preset(
        "the same, by the name that says what it is compared for",
        _SERVE_VLLM, "vllm", _VLLM, {"dialect": "vllm"},
    ),
    "vllm-eager": Preset(
        "vLLM without compilation and CUDA graphs",
        (*_SERVE_VLLM, "--enforce-eager"), "vllm", _VLLM,
        {"dialect": "vllm", "step-overhead": 0.006},
    ),
    "transformers": Preset(
        "transformers serve: generate() of each request by itself",
        _SERVE_TRANSFORMERS, "transformers", _TRANSFORMERS,
        {"dialect": "vllm", "step-overhead": 0.025, "max-num-seqs": 1},
    ),
    "transformers-compile": Preset(
        "the same with torch.compile",
        (*_SERVE_TRANSFORMERS, "--compile"), "transformers", _TRANSFORMERS,
        {"dialect": "vllm", "step-overhead": 0.008, "max-num-seqs": 1},
    ),
    "transformers-batching": Preset(
        "transformers serve with continuous batching",
        (*_SERVE_TRANSFORMERS, "--continuous-batching"), "transformers",
        _TRANSFORMERS,
        {"dialect": "vllm", "step-overhead": 0.015, "max-num-seqs": 64},
    ),
    "tgi": Preset(
        "Text Generation Inference",
        _SERVE_TGI, "tgi", _TGI, {"dialect": "tgi", "step-overhead": 0.0015},
    ),
}  # fmt: skip

_WEIGHT_BITS = {
    "fp8": 8, "int8": 8, "w8a8": 8, "w8a16": 8, "bnb-8bit": 8, "eetq": 8,
    "awq": 4, "gptq": 4, "awq_marlin": 4, "gptq_marlin": 4, "bnb-4bit": 4,
    "int4": 4, "w4a16": 4,
}  # fmt: skip
_SIMULATE = frozenset({
    "gpu", "model", "n-gpus", "max-num-seqs", "max-num-batched-tokens",
    "prefix-cache", "power-cap", "step-overhead", "weight-bits", "idle-gpus",
    "dialect", "seed",
})  # fmt: skip
"""Options of `loadgen simulate` that a study may set."""


def preset_defaults(server: Server) -> tuple[str, float]:
    """The path that tells of a server's health, and the longest wait for it."""
    preset = PRESETS[server.preset or "vllm"]
    return preset.health, preset.start_seconds


def server_command(server: Server, model: str | None, port: int) -> list[str]:
    """The words that start a server."""
    if server.preset is not None:
        preset = PRESETS[server.preset]
        words = list(preset.command)
        for option in OPTIONS:
            value = getattr(server, option)
            if value is not None:
                words += preset.words[option](value)
    else:
        words = split_command(server.command or [])
    words += server.arguments
    filled = {"port": str(port), "host": HOST, "model": model or ""}
    return [
        PLACEHOLDER.sub(lambda found: filled.get(found[1], found[0]), word)
        for word in words
    ]


def split_command(command: str | list[str]) -> list[str]:
    """The words of a command. Raises ValueError for quotes that do not close."""
    return shlex.split(command) if isinstance(command, str) else list(command)


def simulated_arguments(server: Server, simulated: Simulated) -> list[str]:
    """Options of `loadgen simulate` that stand for a server. Raises UsageError."""
    options: dict[str, Any] = {
        "gpu": simulated.gpu or "h100",
        "model": simulated.model or "llama-3.1-8b",
    }
    if server.preset is not None and server.preset in PRESETS:
        options |= PRESETS[server.preset].simulated
    elif server.backend == "tgi":
        options["dialect"] = "tgi"
    options |= {
        name: value
        for name, value in (
            ("n-gpus", server.tensor_parallel),
            ("max-num-seqs", server.max_num_seqs),
            ("max-num-batched-tokens", server.max_num_batched_tokens),
            ("prefix-cache", server.prefix_caching),
            ("weight-bits", _WEIGHT_BITS.get((server.quantization or "").lower())),
        )
        if value is not None
    }
    for key, value in server.simulate.items():
        name = key.replace("_", "-")
        if name not in _SIMULATE:
            raise UsageError(
                f"unknown option {key!r} of the simulator; known: "
                f"{', '.join(sorted(_SIMULATE))}"
            )
        options[name] = value
    for name, known in (("gpu", GPUS), ("model", MODELS)):
        if options[name] not in known:
            raise UsageError(
                f"unknown {name} {options[name]!r} of the simulator; known: "
                f"{', '.join(sorted(known))}"
            )
    words: list[str] = []
    for name, value in options.items():
        if isinstance(value, bool):
            words.append(f"--{name}" if value else f"--no-{name}")
        else:
            words += [f"--{name}", f"{value}"]
    return words


def simulator_command(words: list[str], port: int) -> list[str]:
    """The command line of a simulated server."""
    return [
        sys.executable, "-m", "loadgen", "simulate", "--listen", f"{HOST}:{port}",
        *words,
    ]  # fmt: skip


def not_simulated(server: Server) -> list[str]:
    """What of a server the simulator does not know: its row shows nothing of it."""
    known = (server.quantization or "").lower() in _WEIGHT_BITS
    found = {
        "speculative": server.speculative is not None,
        "dtype": server.dtype not in (None, "auto", "bfloat16", "float16", "half"),
        "quantization": server.quantization is not None and not known,
        "arguments": bool(server.arguments),
        "environment": bool(server.environment),
        "command": server.command is not None,
    }
    said = set(server.simulate)
    return [name for name, is_asked in found.items() if is_asked and not said]
