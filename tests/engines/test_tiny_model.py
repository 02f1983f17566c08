"""The model of the tests is the same on every machine and speaks generated prompts."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from loadgen.plan.prompts import prompt_text

pytestmark = pytest.mark.vllm

COUNT = """
import json, sys
from transformers import AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
texts = json.loads(sys.stdin.read())
ids = [tokenizer(text)["input_ids"] for text in texts]
print(json.dumps([[len(i), tokenizer.decode(i)] for i in ids]))
"""


def test_a_generated_prompt_has_as_many_tokens_as_words(
    engines: Path, tiny_model: Path
) -> None:
    lengths = [1, 7, 100, 1500]
    prompts = [prompt_text(0, str(length), length) for length in lengths]
    texts = [*prompts, "Ünïcode,\n\tcode: f(x) -> {'😀': 0}"]
    done = subprocess.run(
        [engines / "python", "-c", COUNT, tiny_model],
        input=json.dumps(texts), text=True, capture_output=True, check=True,
    )  # fmt: skip
    counted = json.loads(done.stdout)
    assert [count for count, _ in counted[:-1]] == lengths
    assert [text for _, text in counted] == texts
