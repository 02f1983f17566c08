"""Requests as each kind of server takes them: path, headers, JSON body.

Pure: `BACKENDS` maps `--backend` names to how their bodies are built. All ask
for a stream and for the engine's own token counts; vLLM and `transformers serve`
can be made to generate an exact number of tokens.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import quote, urlsplit

import msgspec

from loadgen import __version__
from loadgen.errors import UsageError
from loadgen.traces.readers.line import text_of
from proxy.wire.redaction import is_secret, without_secrets

Body = dict[str, Any]
Messages = list[dict[str, Any]]

_encode_json = msgspec.json.Encoder().encode
_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_NOT_IN_VALUES = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]|[^\x00-\xff]")
_VISIBLE_ASCII = "".join(chr(c) for c in range(0x21, 0x7F) if chr(c) != "%")
_OURS = ("host", "content-length", "transfer-encoding", "connection")


@dataclass(frozen=True, slots=True)
class RequestOptions:
    """Options of every request of a run, beside those of its turn."""

    output_tokens: int | None = None
    """Overrides the plan's output lengths; None keeps them."""
    ignore_eos: bool | None = None
    """Force the length; None: where the backend can and a length is known."""
    temperature: float | None = None
    top_p: float | None = None
    n: int = 1
    extra_body: Mapping[str, Any] = field(default_factory=dict)
    """Merged into the body last; a nested object is merged one level deep."""
    hash_block_size: int | None = None
    """Tokens per prefix block of the plan, for prompts made from `hash_ids`."""


@dataclass(frozen=True, slots=True)
class Target:
    """The server under load. The key and the headers never show in a repr."""

    url: str
    """Scheme, host, port and an optional base path; a trailing /v1 is fine."""
    backend: str
    model: str | None = None
    endpoint: str | None = None
    """Path instead of the backend's own."""
    api_key: str | None = field(default=None, repr=False)
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UsageError(
                f"--url is {self.url!r}, expected http://HOST:PORT or https://HOST"
            )
        try:
            _ = parts.port
        except ValueError:
            raise UsageError(f"--url is {self.url!r}, its port is no port") from None
        if parts.username or parts.password:
            raise UsageError(
                "--url carries a user or a password; send them with --header instead"
            )
        if self.backend not in BACKENDS:
            known = ", ".join(sorted(BACKENDS))
            raise UsageError(f"unknown backend {self.backend!r}; known: {known}")
        for name, value in self.headers.items():
            _check_header(name, value)
        if self.api_key is not None:
            _check_header("authorization", self.api_key)

    @property
    def base_path(self) -> str:
        """The path of the URL itself, without a slash at the end."""
        return urlsplit(self.url).path.rstrip("/")

    @property
    def path(self) -> str:
        """Where requests are posted, base path included."""
        base = self.base_path
        path = self.endpoint or BACKENDS[self.backend].path
        if not path.startswith("/"):
            path = f"/{path}"
        if base.endswith("/v1") and path.startswith("/v1/"):
            base = base.removesuffix("/v1")
        return base + path

    @property
    def secrets(self) -> tuple[str, ...]:
        """Texts that must not appear in anything recorded."""
        hidden = [
            value.split()[-1]
            for name, value in self.headers.items()
            if _is_secret(name, value)
        ]
        if self.api_key:
            hidden.append(self.api_key)
        return tuple(hidden)

    def redact(self, text: str) -> str:
        """`text` without the secrets: servers like to echo a refused key."""
        return without_secrets(text, self.secrets)


def _is_secret(name: str, value: str) -> bool:
    """Whether a --header is one: by its name, else by its length, whatever its name."""
    least = 1 if is_secret(name) else 6
    return len(value.strip()) >= least


@dataclass(frozen=True, slots=True)
class Backend:
    """One kind of server."""

    path: str
    write_body: Callable[[Messages, int | None, Target, RequestOptions], Body]
    can_force_length: bool = False
    lists_its_model: bool = True
    """`/v1/models` names what is served."""
    honours_copies: bool = True
    """`n` makes more outputs; else it is ignored."""


def write_request(
    target: Target,
    options: RequestOptions,
    messages: Messages,
    *,
    request_id: str,
    kind: str,
    output_tokens: int | None,
    session_id: str | None = None,
) -> bytes:
    """The bytes of one request, head and body, ready for the socket.

    `messages` is the whole chat as role and content; servers that take one
    text get the contents joined. `output_tokens` is the length asked for, or
    None to let the model end by itself. `session_id` keeps the turns of a
    conversation on one of several replicas.
    """
    backend = BACKENDS[target.backend]
    if options.output_tokens is not None:
        output_tokens = options.output_tokens
    body = backend.write_body(messages, output_tokens, target, options)
    for key, value in options.extra_body.items():
        if isinstance(value, Mapping) and isinstance(body.get(key), dict):
            body[key] = {**body[key], **value}
        else:
            body[key] = value
    content = _encode_json(body)
    head = {
        "x-request-id": _visible(request_id),
        "x-servewatt-kind": kind,
        **({} if session_id is None else {"x-session-id": _visible(session_id)}),
        "accept": "text/event-stream",
        "content-type": "application/json",
    }
    return _write_head("POST", target, target.path, head, len(content)) + content


def write_get(target: Target, path: str) -> bytes:
    """A GET of `path` below the target's base, with the same credentials."""
    path = target.base_path.removesuffix("/v1") + path
    return _write_head("GET", target, path, {"accept": "application/json"}, None)


def _visible(text: str) -> str:
    """A text as a header may carry it."""
    return quote(text, safe=_VISIBLE_ASCII)


def _write_head(
    method: str, target: Target, path: str, own: dict[str, str], length: int | None
) -> bytes:
    # `identity`: a compressed stream would be held back to fill blocks, and
    # its arrival times would be the compressor's.
    fields = {
        "host": urlsplit(target.url).netloc,
        "user-agent": f"servewatt/{__version__}",
        "accept-encoding": "identity",
        **own,
    }
    if target.api_key:
        fields["authorization"] = f"Bearer {target.api_key}"
    fields.update({name.lower(): value for name, value in target.headers.items()})
    if length is not None:
        fields["content-length"] = str(length)
    lines = [f"{method} {path} HTTP/1.1"]
    lines += [f"{name}: {value}" for name, value in fields.items()]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


def _check_header(name: str, value: str) -> None:
    if not _HEADER_NAME.fullmatch(name):
        raise UsageError(f"header name {name!r} has a character no header may have")
    if name.lower() in _OURS:
        raise UsageError(f"header {name!r} is set by the client itself, leave it out")
    if _NOT_IN_VALUES.search(value):
        raise UsageError(f"the value of header {name!r} has a forbidden character")


def _openai_body(
    messages: Messages,
    output_tokens: int | None,
    target: Target,
    options: RequestOptions,
) -> Body:
    body: Body = {"model": target.model} if target.model else {}
    if target.path.endswith("/chat/completions"):
        body["messages"] = messages
    else:
        body["prompt"] = joined(messages)
    body["stream"] = True
    if output_tokens is not None:
        body["max_tokens"] = output_tokens
    if options.temperature is not None:
        body["temperature"] = options.temperature
    if options.top_p is not None:
        body["top_p"] = options.top_p
    if options.n != 1:
        body["n"] = options.n
    return body


def _openai_usage_body(
    messages: Messages,
    output_tokens: int | None,
    target: Target,
    options: RequestOptions,
) -> Body:
    body = _openai_body(messages, output_tokens, target, options)
    return body | {"stream_options": {"include_usage": True}}


def _vllm_body(
    messages: Messages,
    output_tokens: int | None,
    target: Target,
    options: RequestOptions,
) -> Body:
    body = _openai_body(messages, output_tokens, target, options)
    # Running usage makes the count of every read exact: events are not tokens.
    body["stream_options"] = {"include_usage": True, "continuous_usage_stats": True}
    if output_tokens is not None and options.ignore_eos is not False:
        body |= {"ignore_eos": True, "min_tokens": output_tokens}
    elif options.ignore_eos:
        body["ignore_eos"] = True
    return body


def _transformers_body(
    messages: Messages,
    output_tokens: int | None,
    target: Target,
    options: RequestOptions,
) -> Body:
    """Unknown fields such as `ignore_eos` are refused, and usage is always sent.

    An end token that no model has is what `ignore_eos` would be. It is part of a
    whole generation config, in which sampling must be said too.
    """
    body = _openai_body(messages, output_tokens, target, options)
    if options.ignore_eos is False or (
        output_tokens is None and not options.ignore_eos
    ):
        return body
    config: Body = {"eos_token_id": -1}
    if options.temperature is not None:
        config["do_sample"] = options.temperature > 0
    return body | {"generation_config": _encode_json(config).decode()}


def _tgi_body(
    messages: Messages,
    output_tokens: int | None,
    target: Target,
    options: RequestOptions,
) -> Body:
    if options.top_p is not None and options.top_p >= 1:
        options = replace(options, top_p=None)  # TGI refuses 1: no cut
    if target.path.endswith(("/chat/completions", "/completions")):
        return _openai_usage_body(messages, output_tokens, target, options)
    parameters: Body = {"details": True}  # without it TGI counts nothing for us
    if output_tokens is not None:
        parameters["max_new_tokens"] = output_tokens
    if options.temperature:  # TGI refuses 0; leaving it out is its greedy decoding
        parameters |= {"temperature": options.temperature, "do_sample": True}
    if options.top_p is not None:
        parameters["top_p"] = options.top_p
    return {"inputs": joined(messages), "parameters": parameters}


def joined(messages: Messages) -> str:
    """A chat as one text, for servers that take no messages; parts without text go."""
    return "\n\n".join(text_of(message.get("content")) for message in messages)


BACKENDS: dict[str, Backend] = {
    "vllm": Backend("/v1/chat/completions", _vllm_body, can_force_length=True),
    "openai": Backend("/v1/chat/completions", _openai_usage_body),
    # Its /v1/models lists what the cache of the hub has, loaded or not.
    "transformers": Backend(
        "/v1/chat/completions",
        _transformers_body,
        can_force_length=True,
        lists_its_model=False,
        honours_copies=False,
    ),
    "tgi": Backend("/generate_stream", _tgi_body, honours_copies=False),
}
