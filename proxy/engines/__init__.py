"""The wire dialects: `DIALECTS` maps `--engine` names to them."""

from __future__ import annotations

from proxy.engines.apis import API_READERS, read_api_request
from proxy.engines.dialect import Dialect, ReplyReader
from proxy.engines.openai import OPENAI, TRANSFORMERS, VLLM, OpenAIDialect
from proxy.engines.tgi import TgiDialect
from proxy.wire.facts import RequestFacts

DIALECTS: dict[str, Dialect] = {
    "vllm": OpenAIDialect(VLLM),
    "openai": OpenAIDialect(OPENAI),
    "transformers": OpenAIDialect(TRANSFORMERS),
    "tgi": TgiDialect(),
}


def read_request(
    dialect: Dialect, method: str, path: str, body: bytes
) -> RequestFacts | None:
    """Facts of a metered request, on the engine's own routes or on a known API's."""
    facts = dialect.read_request(method, path, body)
    if facts is None and method == "POST":
        return read_api_request(path, body)
    return facts


def reader_of(dialect: Dialect, route: str) -> ReplyReader:
    """Who reads the replies of a route: its own API, else the engine's dialect."""
    return API_READERS.get(route, dialect)
