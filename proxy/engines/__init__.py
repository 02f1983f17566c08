"""The wire dialects: `DIALECTS` maps `--engine` names to them."""

from __future__ import annotations

from proxy.engines.dialect import Dialect
from proxy.engines.openai import OPENAI, TRANSFORMERS, VLLM, OpenAIDialect
from proxy.engines.tgi import TgiDialect

DIALECTS: dict[str, Dialect] = {
    "vllm": OpenAIDialect(VLLM),
    "openai": OpenAIDialect(OPENAI),
    "transformers": OpenAIDialect(TRANSFORMERS),
    "tgi": TgiDialect(),
}
