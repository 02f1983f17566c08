"""The environment of the real engines, and the model they serve."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.engines.vllm_server import Metered, metered, running_vllm
from tests.support.paths import ROOT

HOW = "not there: export {variable}=$(.ci/{folder}), then pytest -m {mark}"
FOLDERS = {"vllm": "engines", "transformers": "engines", "clients": "clients"}
"""By mark: which of `.ci/` prints the folder that such a test needs."""


def pytest_runtest_setup(item: pytest.Item) -> None:
    for mark, folder in FOLDERS.items():
        variable = f"SERVEWATT_{folder.upper()}"
        if item.get_closest_marker(mark) and variable not in os.environ:
            pytest.skip(HOW.format(variable=variable, folder=folder, mark=mark))


@pytest.fixture(scope="session")
def engines() -> Path:
    """The `bin` folder of the environment that has the engines."""
    folder = Path(os.environ["SERVEWATT_ENGINES"]) / "bin"
    assert (folder / "vllm").exists(), f"no vLLM in {folder}; make it with .ci/engines"
    return folder


@pytest.fixture(scope="session")
def clients() -> Path:
    """The environment that has the published clients."""
    folder = Path(os.environ["SERVEWATT_CLIENTS"])
    assert (folder / "complete").exists(), f"half made: {folder}; use .ci/clients"
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


@pytest.fixture(scope="session")
def talkative(
    engines: Path, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Metered]:
    """A vLLM that tells what it can about each request, metered."""
    folder = tmp_path_factory.mktemp("talkative")
    flags = (
        "--enable-per-request-metrics",
        "--enable-prompt-tokens-details",
        "--enable-request-id-headers",
        # a request that names a tool gets its call
        *("--enable-auto-tool-choice", "--tool-call-parser", "hermes"),
    )
    with (
        running_vllm(engines, tiny_model, folder, *flags) as vllm,
        metered(vllm, folder) as served,
    ):
        yield served


@pytest.fixture(scope="session")
def terse(
    engines: Path, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Metered]:
    """A vLLM that tells nothing, runs two at once, and lets four wait; metered."""
    folder = tmp_path_factory.mktemp("terse")
    flags = (
        "--no-enable-prefix-caching",
        # the second limit counts those that run, too
        *("--max-num-seqs", "2", "--max-num-queued-reqs", "6"),
    )
    with (
        running_vllm(engines, tiny_model, folder, *flags) as vllm,
        metered(vllm, folder) as served,
    ):
        yield served
