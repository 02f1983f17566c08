"""One engine in its own process: batches of one length are asked for and run.

Started by the interpreter of the engine's environment, which need not have this
project: this file imports nothing of it. A line of JSON on standard input is a batch,
one on standard output its answer; all that the engine prints goes to standard error.
The times of each batch are written to a file as `metering-proxy meter --phases` reads
it. That memory is not enough is an answer, not a failure.
"""

from __future__ import annotations

import gc
import json
import os
import random
import sys
import time
from typing import Any

OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "cannot allocate memory",
                 "not enough memory", "no available memory")  # fmt: skip


class TooLong(Exception):
    """No batch of this length can run, however small."""


class Transformers:
    """Plain `generate`: the baseline without an engine, as it is or compiled."""

    def __init__(self, asked: dict[str, Any]) -> None:
        import torch
        import transformers

        self.version = f"transformers {transformers.__version__}"
        self._torch = torch
        device = asked["device"]
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        self.device = device
        dtype = asked["dtype"]
        kind = "auto" if dtype == "auto" else getattr(torch, dtype)
        model = transformers.AutoModelForCausalLM.from_pretrained(
            asked["model"], dtype=kind
        )
        self._model = model.to(device).eval()
        if asked["compile"]:
            self._model.generation_config.cache_implementation = "static"
            mode = "reduce-overhead" if device.startswith("cuda") else "default"
            self._model.forward = torch.compile(self._model.forward, mode=mode)
        config = self._model.config
        self._vocabulary = int(config.vocab_size)
        self._longest = int(getattr(config, "max_position_embeddings", 1 << 30))
        self._decoding: dict[str, Any] = {"num_beams": asked["beam"]}
        if asked["temperature"] > 0:
            self._decoding |= {"do_sample": True, "temperature": asked["temperature"]}
        else:
            self._decoding["do_sample"] = False

    def run(self, given: int, produced: int, batch: int, rng: random.Random) -> int:
        """Generate one batch; the output tokens of it."""
        if given + produced > self._longest:
            raise TooLong(f"longer than the model's context of {self._longest} tokens")
        torch = self._torch
        generator = torch.Generator().manual_seed(rng.randrange(1 << 30))
        tokens = torch.randint(
            min(1000, self._vocabulary // 2), self._vocabulary, (batch, given),
            generator=generator,
        ).to(self.device)  # fmt: skip
        with torch.inference_mode():
            found = self._model.generate(
                input_ids=tokens,
                attention_mask=torch.ones_like(tokens),
                min_new_tokens=produced,
                max_new_tokens=produced,
                pad_token_id=0,
                **self._decoding,
            )
        if self.device.startswith("cuda"):
            torch.cuda.synchronize()
        return int(found.shape[0]) * (int(found.shape[1]) - given)

    def free(self) -> None:
        """After a batch that did not fit."""
        gc.collect()
        if self.device.startswith("cuda"):
            self._torch.cuda.empty_cache()

    def refusal(self, given: int, produced: int, batch: int) -> str | None:
        """Nothing is known before it is tried."""
        return None


class Vllm:
    """vLLM's `LLM`: offline batches without a server."""

    def __init__(self, asked: dict[str, Any]) -> None:
        import vllm

        self.version = f"vllm {vllm.__version__}"
        options: dict[str, Any] = {
            "model": asked["model"],
            "dtype": asked["dtype"],
            "enforce_eager": asked["eager"],
            "tensor_parallel_size": asked["tensor_parallel"],
            "max_num_seqs": asked["most"],
            "enable_prefix_caching": False,  # prompts are random: it would only cost
            "disable_log_stats": True,
        }
        self._llm = vllm.LLM(**(options | asked["engine_args"]))
        self._vllm = vllm
        self.device = "cpu" if vllm.platforms.current_platform.is_cpu() else "cuda"
        engine = self._llm.llm_engine
        self._vocabulary = int(self._llm.get_tokenizer().vocab_size)
        self._longest = int(engine.model_config.max_model_len)
        cache = engine.vllm_config.cache_config
        self._blocks = getattr(cache, "num_gpu_blocks", None)
        self._block_tokens = int(cache.block_size or 16)
        self._most = int((options | asked["engine_args"])["max_num_seqs"])
        self._beam = asked["beam"]
        self._temperature = asked["temperature"]

    def refusal(self, given: int, produced: int, batch: int) -> str | None:
        """Why so many at once would have to wait for each other."""
        if given + produced > self._longest:
            raise TooLong(f"longer than the model's context of {self._longest} tokens")
        width = batch * self._beam
        if width > self._most:
            return f"the engine runs at most {self._most} sequences at once"
        each = -(-(given + produced) // self._block_tokens)
        if self._blocks is not None and each * width > self._blocks:
            tokens = self._blocks * self._block_tokens
            return (
                f"the KV cache holds {tokens:,} tokens: {self._blocks // each} of these"
            )
        return None

    def run(self, given: int, produced: int, batch: int, rng: random.Random) -> int:
        """Generate one batch; the output tokens of it."""
        low = min(1000, self._vocabulary // 2)
        prompts = [
            {"prompt_token_ids": [rng.randrange(low, self._vocabulary)
                                  for _ in range(given)]}
            for _ in range(batch)
        ]  # fmt: skip
        if self._beam > 1:
            beams = self._vllm.sampling_params.BeamSearchParams(
                beam_width=self._beam, max_tokens=produced, ignore_eos=True
            )
            self._llm.beam_search(prompts, beams)
            return batch * produced
        params = self._vllm.SamplingParams(
            max_tokens=produced, min_tokens=produced, ignore_eos=True,
            temperature=self._temperature, detokenize=False,
        )  # fmt: skip
        found = self._llm.generate(prompts, params, use_tqdm=False)
        return sum(len(output.token_ids) for one in found for output in one.outputs)

    def free(self) -> None:
        """The engine keeps its cache as it is."""
        gc.collect()


ENGINES = {"transformers": Transformers, "vllm": Vllm}


def main() -> None:
    """Load, say so, then answer batch by batch until standard input ends."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    asked = json.loads(sys.stdin.readline())
    try:
        engine: Any = ENGINES[asked["engine"]](asked)
    except ImportError as error:
        answer(answers, ready=False, reason=f"{error} (in {sys.executable})")
        return
    except Exception as error:  # an engine may fail to load for any reason
        answer(answers, ready=False, reason=first_line(error))
        return
    answer(answers, ready=True, version=engine.version, device=engine.device)
    for line in sys.stdin:
        batch = json.loads(line)
        try:
            refused = engine.refusal(batch["input"], batch["output"], batch["batch"])
            if refused is not None:
                answer(answers, fits=False, reason=refused)
                continue
            answer(answers, **run(engine, batch, asked["phases"]))
        except TooLong as error:
            answer(answers, fits=False, reason=str(error), final=True)
        except Exception as error:  # torch and engines have no one class for it
            engine.free()
            if not is_out_of_memory(error):
                answer(answers, fits=None, reason=first_line(error))
            else:
                answer(
                    answers, fits=False, reason=f"out of memory: {first_line(error)}"
                )


def run(engine: Any, batch: dict[str, Any], phases: str) -> dict[str, Any]:
    """Batches of one size for so long; the first one is not measured."""
    rng = random.Random(batch["seed"])
    size = batch["input"], batch["output"], batch["batch"]
    engine.run(*size, rng)  # compiled, and its memory taken, before it is measured
    if not batch["seconds"]:
        return {"fits": True}
    begin = time.monotonic()
    batches = tokens = 0
    while batches < batch["rounds"] or time.monotonic() - begin < batch["seconds"]:
        tokens += engine.run(*size, rng)
        batches += 1
    end = time.monotonic()
    phase = {"name": batch["name"], "begin_seconds": begin, "end_seconds": end}
    with open(phases, "a") as file:
        file.write(json.dumps(phase) + "\n")
    return {
        "fits": True, "batches": batches, "output_tokens": tokens,
        "seconds": end - begin,
    }  # fmt: skip


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an engine's exception, of whatever class, is about memory."""
    text = f"{type(error).__name__} {error}".lower()
    is_named = "outofmemory" in text or isinstance(error, MemoryError)
    return is_named or any(words in text for words in OUT_OF_MEMORY)


def first_line(error: BaseException) -> str:
    """A one-line text of an exception."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:300] if lines else 'no reason given'}"


def answer(answers: Any, **found: Any) -> None:
    """One line of JSON."""
    print(json.dumps(found), file=answers, flush=True)


if __name__ == "__main__":
    main()
