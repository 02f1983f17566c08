"""A Llama of a million random weights with its tokenizer, made offline in seconds.

    python tests/engines/tiny_model.py FOLDER

run by the Python of the engines' environment (`.ci/engines`) with the repository in
PYTHONPATH. It says nothing sensible, but an engine serves it as it would serve a real
one. The tokenizer is trained on the words of `loadgen.plan.prompts` and the licence's
text, both part of the repository, so it is the same on every machine: a generated
prompt of N words is N tokens. Two runs make the same files.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from loadgen.plan.prompts import WORDS
from tests.support.paths import ROOT

LICENCE = ROOT / "LICENSE"
VOCABULARY_SIZE = 4096
MAX_TOKENS = 65_536
HIDDEN_SIZE = 64
HEADS = 2
PAD, BEGIN, END, TURN_END = "<|pad|>", "<|begin|>", "<|end|>", "<|turn_end|>"
ROLES = ("<|system|>", "<|user|>", "<|assistant|>", "<|tool|>")
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "<|{{ message['role'] }}|>{{ message['content'] }}<|turn_end|>"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def training_text() -> Iterator[str]:
    """Every word often, alone and after a space, then running text."""
    for word in WORDS:
        yield from [word, f" {word}"] * 50
    yield LICENCE.read_text("utf-8")


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE: any text goes in, and comes out again unchanged."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE,
        special_tokens=[PAD, BEGIN, END, TURN_END, *ROLES],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(training_text(), trainer)
    made = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        bos_token=BEGIN,
        eos_token=END,
        additional_special_tokens=[TURN_END, *ROLES],
        model_max_length=MAX_TOKENS,
        clean_up_tokenization_spaces=False,
    )
    made.chat_template = CHAT_TEMPLATE
    return made


def make_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """Two layers of seeded random weights, bfloat16."""
    tokens = {
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY_SIZE,
            hidden_size=HIDDEN_SIZE,
            intermediate_size=4 * HIDDEN_SIZE,
            num_hidden_layers=2,
            num_attention_heads=HEADS,
            num_key_value_heads=HEADS,
            head_dim=HIDDEN_SIZE // HEADS,
            max_position_embeddings=MAX_TOKENS,
            tie_word_embeddings=False,
            **tokens,
        )
    ).to(torch.bfloat16)
    model.generation_config = GenerationConfig(**tokens)
    return model


def main(folder: str) -> None:
    """The folder is made if it is not there."""
    tokenizer = make_tokenizer()
    tokenizer.save_pretrained(folder)
    make_model(tokenizer).save_pretrained(folder)


if __name__ == "__main__":
    main(*sys.argv[1:])
