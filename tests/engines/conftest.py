"""The environment of the real engines, and the model they serve."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HOW = "no real engine: export SERVEWATT_ENGINES=$(.ci/engines), then pytest -m {mark}"


def pytest_runtest_setup(item: pytest.Item) -> None:
    for mark in ("vllm", "transformers"):
        if item.get_closest_marker(mark) and "SERVEWATT_ENGINES" not in os.environ:
            pytest.skip(HOW.format(mark=mark))


@pytest.fixture(scope="session")
def engines() -> Path:
    """The `bin` folder of the environment that has the engines."""
    folder = Path(os.environ["SERVEWATT_ENGINES"]) / "bin"
    assert (folder / "vllm").exists(), f"no vLLM in {folder}; make it with .ci/engines"
    return folder


@pytest.fixture(scope="session")
def tiny_model(engines: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a model with its tokenizer, as Hugging Face lays it out."""
    folder = tmp_path_factory.mktemp("model") / "tiny"
    subprocess.run(
        [engines / "python", ROOT / "tests/engines/tiny_model.py", folder],
        env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, check=True,
    )  # fmt: skip
    return folder
