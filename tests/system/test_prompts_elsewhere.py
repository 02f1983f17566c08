"""Prompts are the same text in every process."""

from __future__ import annotations

import os
import subprocess
import sys

from loadgen.plan.prompts import prompt_text


def test_the_text_does_not_depend_on_the_hash_seed_of_the_process() -> None:
    program = (
        "from loadgen.plan.prompts import prompt_text; print(prompt_text(3, 'a', 9))"
    )
    texts = {
        subprocess.run(
            [sys.executable, "-c", program],
            env=os.environ | {"PYTHONHASHSEED": seed},
            capture_output=True,
            check=True,
            text=True,
        ).stdout
        for seed in ("0", "1")
    }
    assert texts == {prompt_text(3, "a", 9) + "\n"}
