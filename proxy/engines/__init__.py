"""The wire dialects: `ENGINES` maps `--engine` names to them."""

from __future__ import annotations

from proxy.engines.dialect import Engine
from proxy.engines.openai import OPENAI, TRANSFORMERS, VLLM, OpenAIEngine
from proxy.engines.tgi import TgiEngine

ENGINES: dict[str, Engine] = {
    "vllm": OpenAIEngine(VLLM),
    "openai": OpenAIEngine(OPENAI),
    "transformers": OpenAIEngine(TRANSFORMERS),
    "tgi": TgiEngine(),
}
