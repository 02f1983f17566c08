"""A model of random weights in a usual shape, to serve without downloading anything.

    python -m benchmarks.gpu_engine FOLDER [--shape 8b] [--device cuda:0]

Run by the Python that has PyTorch and transformers. Weights are drawn in bfloat16 on
the device and saved as a checkpoint, which any engine can serve; energy and time of a
step depend on shapes and lengths, hardly on what the weights say. The tokenizer knows
the words of `loadgen.plan.prompts`, one token each, so a generated prompt of N words
is N tokens, and every other id of the vocabulary is a made-up word.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loadgen.plan.prompts import WORDS

SPECIAL = ("<pad>", "<bos>", "<eos>", "<unk>", "<turn>")
TEMPLATE = (
    "{% for message in messages %}<turn> {{ message['content'] }} {% endfor %}"
    "{% if add_generation_prompt %}<turn>{% endif %}"
)
MAX_TOKENS = 32_768


@dataclass(frozen=True)
class Shape:
    """The sizes of a Llama."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    vocabulary: int


SHAPES = {
    "8b": Shape(4096, 14336, 32, 32, 8, 128_256),
    "3b": Shape(3072, 8192, 28, 24, 8, 128_256),
    "tiny": Shape(64, 256, 2, 2, 2, 4096),
}
"""The published sizes of Llama 3.1 8B and 3.2 3B; `tiny` is for a CPU."""


def make_tokenizer(vocabulary: int) -> Any:
    """One word, one token; words that no prompt has fill the vocabulary."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    known = list(dict.fromkeys([*SPECIAL, *WORDS]))
    known += [f"word{number}" for number in range(vocabulary - len(known))]
    ids = {word: number for number, word in enumerate(known)}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<bos>",
        eos_token="<eos>", unk_token="<unk>", additional_special_tokens=["<turn>"],
        model_max_length=MAX_TOKENS, clean_up_tokenization_spaces=False,
    )  # fmt: skip
    made.chat_template = TEMPLATE
    return made


def make_model(shape: Shape, device: str, tokenizer: Any) -> Any:
    """Seeded weights in bfloat16, drawn where they are."""
    import torch
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

    ids = {
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    config = LlamaConfig(
        hidden_size=shape.hidden, intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers, num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads, vocab_size=shape.vocabulary,
        max_position_embeddings=MAX_TOKENS, tie_word_embeddings=False, **ids,
    )  # fmt: skip
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    with torch.device(device):
        model = LlamaForCausalLM(config)
    model.generation_config = GenerationConfig(**ids)
    return model


def main() -> None:
    """One line of JSON: how large it is and how long it took."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--shape", choices=SHAPES, default="8b")
    parser.add_argument("--device", default="cuda:0")
    options = parser.parse_args()
    begin, shape = time.monotonic(), SHAPES[options.shape]
    tokenizer = make_tokenizer(shape.vocabulary)
    model = make_model(shape, options.device, tokenizer)
    tokenizer.save_pretrained(options.folder)
    model.save_pretrained(options.folder)
    count = sum(each.numel() for each in model.parameters())
    print(json.dumps({"parameters": count, "seconds": time.monotonic() - begin}))


if __name__ == "__main__":
    main()
