"""The engine that `gpu_validation` starts by itself, in its smallest size, on a CPU."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from loadgen.plan.prompts import prompt_text
from tests.support.paths import ROOT

pytestmark = pytest.mark.transformers

COUNT = """
import sys
from transformers import AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
text = tokenizer.apply_chat_template(
    [{"role": "user", "content": sys.argv[2]}], add_generation_prompt=True,
    tokenize=False,
)
print(len(tokenizer(sys.argv[2])["input_ids"]), len(tokenizer(text)["input_ids"]))
"""


def test_a_model_of_random_weights_counts_a_word_as_a_token(
    engines: Path, tmp_path: Path
) -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}

    def run(*command: str) -> str:
        done = subprocess.run(
            [engines / "python", *command], cwd=ROOT, env=environment, check=True,
            capture_output=True, text=True, timeout=300,
        )  # fmt: skip
        return done.stdout

    model = str(tmp_path / "tiny")
    said = run(
        "-m", "benchmarks.gpu_engine", model, "--shape", "tiny", "--device", "cpu"
    )
    assert json.loads(said)["parameters"] > 500_000
    prompt = prompt_text(7, "some-id", 120)
    assert run("-c", COUNT, model, prompt).split() == ["120", "122"]
