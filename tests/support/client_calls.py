"""Published clients as `docs/clients.md` points them at the proxy, and calls of each.

    python -m tests.support.client_calls MODEL KIND=URL,URL...

makes each call that a kind of engine answers at each of its addresses, one after the
other, and prints a line of JSON for each: what the client said, by address. It runs in
the clients' own environment (`.ci/clients`), so it imports nothing beside the standard
library before a call needs it.
"""

from __future__ import annotations

import ast
import importlib
import json
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any

from tests.support.paths import ROOT

PAGE = ROOT / "docs/clients.md"
ON_THE_PAGE = "http://127.0.0.1:8080"
QUIET = {
    # they would ask hosts elsewhere for prices, traces and counts
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "LANGSMITH_TRACING": "false",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
}
_ROW = re.compile(r"^\| [^|]+ \| `([\w.]+\(.*\))` \|$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Line:
    """One line of the page: a callable, and what it is given there."""

    text: str
    name: str
    """Dotted, with its module."""
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def at(self, url: str, model: str) -> Callable[..., Any]:
        """The line with this address and model; more arguments may be added."""

        def placed(value: Any) -> Any:
            if not isinstance(value, str):
                return value
            return value.replace(ON_THE_PAGE, url).replace("MODEL", model)

        module, _, name = self.name.rpartition(".")
        found = getattr(importlib.import_module(module), name)
        args = [placed(value) for value in self.args]
        kwargs = {key: placed(value) for key, value in self.kwargs.items()}
        return lambda **more: found(*args, **kwargs | more)


def lines_of(page: str) -> dict[str, Line]:
    """The lines of a page's tables by their text up to the first argument's name."""
    lines = [read_line(text) for text in _ROW.findall(page)]
    return {key_of(line): line for line in lines}


def read_line(text: str) -> Line:
    """A call with literal arguments; `**request` stands for what a caller adds."""
    call = ast.parse(text, mode="eval").body
    assert isinstance(call, ast.Call), text
    named = {word.arg: word.value for word in call.keywords if word.arg is not None}
    return Line(
        text,
        ast.unparse(call.func),
        tuple(ast.literal_eval(value) for value in call.args),
        {name: ast.literal_eval(value) for name, value in named.items()},
    )


def key_of(line: Line) -> str:
    """The callable; one that stands there twice is told apart by its first argument."""
    return f"{line.name}()" if line.args else line.name


@dataclass(frozen=True, slots=True)
class Heard:
    """What a client told of one call; None where it tells nothing."""

    text: str
    prompt_tokens: int | None = None
    output_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class Call:
    """A way to use a client."""

    line: str
    """Key of the page's line."""
    route: str
    """As the record has it."""
    ask: Callable[..., Heard]
    """Gets the line, placed, the model, and how many tokens to ask for."""
    engine: str = "generate"
    """Which kind of engine has that route: generate, embed or tgi."""


MESSAGES: Any = [{"role": "user", "content": "where is it warm today?"}]
PROMPT = "where is it warm today?"
PROMPTS = ["where is it warm today?", "and where is it cold?"]
WITH_USAGE: Any = {"stream_options": {"include_usage": True}}


def of_usage(text: str, usage: Any) -> Heard:
    """Usage in either spelling, as an object or a dict, or none."""
    if usage is None:
        return Heard(text)
    got = usage.get if isinstance(usage, dict) else lambda key: getattr(usage, key, 0)
    prompt = got("prompt_tokens") or got("input_tokens")
    return Heard(text, prompt, got("completion_tokens") or got("output_tokens") or 0)


# --- openai ----------------------------------------------------------------------


def openai_chat(make: Any, model: str, tokens: int) -> Heard:
    reply = make().chat.completions.create(
        model=model, messages=MESSAGES, max_tokens=tokens, temperature=0
    )
    return of_usage(reply.choices[0].message.content, reply.usage)


def openai_chat_stream(make: Any, model: str, tokens: int, **more: Any) -> Heard:
    events = make().chat.completions.create(
        model=model, messages=MESSAGES, max_tokens=tokens, temperature=0, stream=True,
        **more,
    )  # fmt: skip
    return openai_events(events, lambda choice: choice.delta.content)


def openai_events(events: Iterable[Any], content: Callable[[Any], str]) -> Heard:
    text, usage = "", None
    for event in events:
        text += "".join(content(choice) or "" for choice in event.choices)
        usage = getattr(event, "usage", None) or usage
    return of_usage(text, usage)


def openai_completion(make: Any, model: str, tokens: int) -> Heard:
    reply = make().completions.create(
        model=model, prompt=PROMPT, max_tokens=tokens, temperature=0
    )
    return of_usage(reply.choices[0].text, reply.usage)


def openai_completion_stream(make: Any, model: str, tokens: int) -> Heard:
    events = make().completions.create(
        model=model, prompt=PROMPTS, max_tokens=tokens, temperature=0, stream=True,
        **WITH_USAGE,
    )  # fmt: skip
    texts = ["", ""]
    usage = None
    for event in events:
        for choice in event.choices:
            texts[choice.index] += choice.text
        usage = event.usage or usage
    return of_usage("|".join(texts), usage)


def openai_response(make: Any, model: str, tokens: int) -> Heard:
    reply = make().responses.create(
        model=model, input=PROMPT, max_output_tokens=tokens, temperature=0
    )
    return of_usage(reply.output_text, reply.usage)


def openai_response_stream(make: Any, model: str, tokens: int) -> Heard:
    text, usage = "", None
    for event in make().responses.create(
        model=model, input=PROMPT, max_output_tokens=tokens, temperature=0, stream=True
    ):
        text += event.delta if event.type == "response.output_text.delta" else ""
        usage = getattr(getattr(event, "response", None), "usage", None) or usage
    return of_usage(text, usage)


def openai_embed(make: Any, model: str, tokens: int) -> Heard:
    reply = make().embeddings.create(model=model, input=PROMPTS)
    return of_usage(shape_of([one.embedding for one in reply.data]), reply.usage)


def shape_of(vectors: Any) -> str:
    """How many vectors of how many numbers, and how they begin."""
    return f"{len(vectors)} x {len(vectors[0])}: {vectors[0][0]:.3f}"


# --- anthropic -------------------------------------------------------------------

COLD: Any = {"extra_body": {"temperature": 0}}
"""Its newer releases know no temperature; vLLM does."""


def anthropic_message(make: Any, model: str, tokens: int) -> Heard:
    reply = make().messages.create(
        model=model, messages=MESSAGES, max_tokens=tokens, **COLD
    )
    return of_usage(reply.content[0].text, reply.usage)


def anthropic_stream(make: Any, model: str, tokens: int) -> Heard:
    with make().messages.stream(
        model=model, messages=MESSAGES, max_tokens=tokens, **COLD
    ) as stream:
        text = "".join(stream.text_stream)
        return of_usage(text, stream.get_final_message().usage)


# --- langchain -------------------------------------------------------------------


def langchain(make: Any, model: str, tokens: int, **more: Any) -> Heard:
    reply = make(temperature=0, max_tokens=tokens, **more).invoke(PROMPT)
    return of_usage(reply.text, reply.usage_metadata)


def langchain_stream(make: Any, model: str, tokens: int, **more: Any) -> Heard:
    chat = make(temperature=0, max_tokens=tokens, **more)
    chunks = list(chat.stream(PROMPT))
    whole = chunks[0]
    for chunk in chunks[1:]:
        whole += chunk
    return of_usage(whole.text, whole.usage_metadata)


def langchain_completion(make: Any, model: str, tokens: int) -> Heard:
    result = make(temperature=0, max_tokens=tokens).generate([PROMPT])
    return of_usage(result.generations[0][0].text, result.llm_output["token_usage"])


def langchain_completion_stream(make: Any, model: str, tokens: int) -> Heard:
    return Heard("".join(make(temperature=0, max_tokens=tokens).stream(PROMPT)))


def langchain_embed(make: Any, model: str, tokens: int) -> Heard:
    return Heard(shape_of(make().embed_documents(PROMPTS)))


# --- llama-index -----------------------------------------------------------------


def llama_index_chat(make: Any, model: str, tokens: int) -> Heard:
    types = importlib.import_module("llama_index.core.llms")
    llm = make(is_chat_model=True, temperature=0, max_tokens=tokens)
    reply = llm.chat([types.ChatMessage(role="user", content=PROMPT)])
    return of_usage(reply.message.content, reply.raw.usage)


def llama_index_chat_stream(make: Any, model: str, tokens: int) -> Heard:
    types = importlib.import_module("llama_index.core.llms")
    llm = make(is_chat_model=True, temperature=0, max_tokens=tokens)
    *_, last = llm.stream_chat([types.ChatMessage(role="user", content=PROMPT)])
    return of_usage(last.message.content, last.raw.usage)


def llama_index_completion(make: Any, model: str, tokens: int) -> Heard:
    reply = make(is_chat_model=False, temperature=0, max_tokens=tokens).complete(PROMPT)
    return of_usage(reply.text, reply.raw.usage)


def llama_index_completion_stream(make: Any, model: str, tokens: int) -> Heard:
    llm = make(is_chat_model=False, temperature=0, max_tokens=tokens)
    *_, last = llm.stream_complete(PROMPT)
    return of_usage(last.text, last.raw.usage)


def llama_index_embed(make: Any, model: str, tokens: int) -> Heard:
    return Heard(shape_of(make().get_text_embedding_batch(PROMPTS)))


# --- litellm ---------------------------------------------------------------------


def litellm_chat(make: Any, model: str, tokens: int) -> Heard:
    reply = make(messages=MESSAGES, max_tokens=tokens, temperature=0)
    return of_usage(reply.choices[0].message.content, reply.usage)


def litellm_chat_stream(make: Any, model: str, tokens: int, **more: Any) -> Heard:
    events = make(
        messages=MESSAGES, max_tokens=tokens, temperature=0, stream=True, **more
    )
    return openai_events(events, lambda choice: choice.delta.content)


def litellm_embed(make: Any, model: str, tokens: int) -> Heard:
    reply = make(input=PROMPTS)
    return of_usage(shape_of([one["embedding"] for one in reply.data]), reply.usage)


# --- huggingface_hub and text-generation ------------------------------------------


def hub_chat(make: Any, model: str, tokens: int) -> Heard:
    reply = make().chat_completion(
        MESSAGES, model=model, max_tokens=tokens, temperature=0
    )
    return of_usage(reply.choices[0].message.content, reply.usage)


def hub_chat_stream(make: Any, model: str, tokens: int, **more: Any) -> Heard:
    client = make()  # it ends its streams when nobody holds it
    events = client.chat_completion(
        MESSAGES, model=model, max_tokens=tokens, temperature=0, stream=True, **more
    )
    return openai_events(events, lambda choice: choice.delta.content)


def hub_generate(make: Any, model: str, tokens: int, **more: Any) -> Heard:
    more |= {"return_full_text": False}  # TGI's own route repeats the prompt else
    reply = make().text_generation(PROMPT, max_new_tokens=tokens, **more)
    if not more.get("details"):
        return Heard(reply)
    return of_details(reply.generated_text, reply.details)


def of_details(text: str, details: Any) -> Heard:
    prompt = getattr(details, "input_length", None)
    return Heard(text, prompt, details.generated_tokens)


def hub_generate_stream(make: Any, model: str, tokens: int, **more: Any) -> Heard:
    text, details = "", None
    client = make()
    for event in client.text_generation(
        PROMPT, max_new_tokens=tokens, stream=True, **more
    ):
        text += event.token.text if more else event
        details = getattr(event, "details", None) or details
    return Heard(text) if details is None else of_details(text, details)


def tgi_generate(make: Any, model: str, tokens: int) -> Heard:
    reply = make().generate(PROMPT, max_new_tokens=tokens)
    return of_details(reply.generated_text, reply.details)


def tgi_stream(make: Any, model: str, tokens: int) -> Heard:
    events = list(make().generate_stream(PROMPT, max_new_tokens=tokens))
    text = "".join(event.token.text for event in events)
    return of_details(text, events[-1].details)


def with_more(ask: Callable[..., Heard], **more: Any) -> Callable[..., Heard]:
    return lambda make, model, tokens: ask(make, model, tokens, **more)


CHAT_LINE = "langchain_openai.ChatOpenAI"
LLAMA_LINE = "llama_index.llms.openai_like.OpenAILike"
HUB_LINE = "huggingface_hub.InferenceClient"
CALLS: dict[str, Call] = {
    "openai-chat": Call("openai.OpenAI", "chat", openai_chat),
    "openai-chat-stream": Call("openai.OpenAI", "chat", openai_chat_stream),
    "openai-chat-stream-usage": Call(
        "openai.OpenAI", "chat", with_more(openai_chat_stream, **WITH_USAGE)
    ),
    "openai-completion": Call("openai.OpenAI", "completions", openai_completion),
    "openai-completion-stream": Call(
        "openai.OpenAI", "completions", openai_completion_stream
    ),
    "openai-response": Call("openai.OpenAI", "responses", openai_response),
    "openai-response-stream": Call(
        "openai.OpenAI", "responses", openai_response_stream
    ),
    "openai-embed": Call("openai.OpenAI", "embeddings", openai_embed, "embed"),
    "anthropic-message": Call("anthropic.Anthropic", "messages", anthropic_message),
    "anthropic-stream": Call("anthropic.Anthropic", "messages", anthropic_stream),
    "langchain-chat": Call(CHAT_LINE, "chat", langchain),
    "langchain-chat-stream": Call(CHAT_LINE, "chat", langchain_stream),
    "langchain-response": Call(
        CHAT_LINE, "responses", with_more(langchain, use_responses_api=True)
    ),
    "langchain-response-stream": Call(
        CHAT_LINE, "responses", with_more(langchain_stream, use_responses_api=True)
    ),
    "langchain-completion": Call(
        "langchain_openai.OpenAI", "completions", langchain_completion
    ),
    "langchain-completion-stream": Call(
        "langchain_openai.OpenAI", "completions", langchain_completion_stream
    ),
    "langchain-embed": Call(
        "langchain_openai.OpenAIEmbeddings", "embeddings", langchain_embed, "embed"
    ),
    "langchain-message": Call(
        "langchain_anthropic.ChatAnthropic", "messages", langchain
    ),
    "langchain-message-stream": Call(
        "langchain_anthropic.ChatAnthropic", "messages", langchain_stream
    ),
    "llama-index-chat": Call(LLAMA_LINE, "chat", llama_index_chat),
    "llama-index-chat-stream": Call(LLAMA_LINE, "chat", llama_index_chat_stream),
    "llama-index-completion": Call(LLAMA_LINE, "completions", llama_index_completion),
    "llama-index-completion-stream": Call(
        LLAMA_LINE, "completions", llama_index_completion_stream
    ),
    "llama-index-embed": Call(
        "llama_index.embeddings.openai_like.OpenAILikeEmbedding", "embeddings",
        llama_index_embed, "embed",
    ),
    "litellm-chat": Call("litellm.completion", "chat", litellm_chat),
    "litellm-chat-stream": Call("litellm.completion", "chat", litellm_chat_stream),
    "litellm-chat-stream-usage": Call(
        "litellm.completion", "chat", with_more(litellm_chat_stream, **WITH_USAGE)
    ),
    "litellm-embed": Call("litellm.embedding", "embeddings", litellm_embed, "embed"),
    "hub-chat": Call(HUB_LINE, "chat", hub_chat),
    "hub-chat-stream": Call(HUB_LINE, "chat", hub_chat_stream),
    "hub-chat-stream-usage": Call(
        HUB_LINE, "chat", with_more(hub_chat_stream, **WITH_USAGE)
    ),
    "hub-tgi-chat": Call(HUB_LINE, "chat", hub_chat, "tgi"),
    "hub-tgi-chat-stream": Call(HUB_LINE, "chat", hub_chat_stream, "tgi"),
    "hub-generate": Call(f"{HUB_LINE}()", "generate", hub_generate, "tgi"),
    "hub-generate-details": Call(
        f"{HUB_LINE}()", "generate", with_more(hub_generate, details=True), "tgi"
    ),
    "hub-generate-stream": Call(
        f"{HUB_LINE}()", "generate", hub_generate_stream, "tgi"
    ),
    "hub-generate-stream-details": Call(
        f"{HUB_LINE}()", "generate", with_more(hub_generate_stream, details=True), "tgi"
    ),
    "text-generation": Call(
        "text_generation.Client()", "generate", tgi_generate, "tgi"
    ),
    "text-generation-stream": Call(
        "text_generation.Client()", "generate", tgi_stream, "tgi"
    ),
}  # fmt: skip


def tokens_of(name: str) -> int:
    """How many tokens a call asks for: no two ask for the same number."""
    return 5 + list(CALLS).index(name)


def heard_by(name: str, url: str, model: str) -> Heard:
    """One call, through the line of the page."""
    call = CALLS[name]
    line = lines_of(PAGE.read_text())[call.line]
    return call.ask(line.at(url, model), model, tokens_of(name))


def calls_of(kind: str) -> list[str]:
    """The names of the calls that this kind of engine answers, in their order."""
    return [name for name, call in CALLS.items() if call.engine == kind]


def main(model: str, *engines: str) -> None:
    """A call that fails tells its traceback, and the next one is made."""
    os.environ.update(QUIET)
    for kind, _, urls in (engine.partition("=") for engine in engines):
        for name in calls_of(kind):
            heard = [heard_or_failed(name, url, model) for url in urls.split(",")]
            print(json.dumps({"call": name, "heard": heard}), flush=True)


def heard_or_failed(name: str, url: str, model: str) -> dict[str, Any]:
    """What the client said, or its traceback as `failure`."""
    try:
        return asdict(heard_by(name, url, model))
    except Exception:
        return {"failure": traceback.format_exc()}


if __name__ == "__main__":
    main(*sys.argv[1:])
