"""Whether a request passes, with which body, and to which upstreams in which order.

Routes pass by an allowlist: engines have unguarded control routes. Requests of one
session go to one replica for as long as it lives (rendezvous hashing: a replica that
leaves moves only its own sessions, and they come back with it); all others take turns,
replica by replica. Nothing is remembered of a session. A fleet of one takes all that
passes, alive or not: only it can say what it serves. Pure.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import msgspec

from proxy.engines import read_request
from proxy.engines.dialect import Dialect
from proxy.engines.unstreamed import Streamed, as_stream
from proxy.engines.wire import UNREADABLE
from proxy.relay.client.request import ClientRequest
from proxy.relay.client.response import Answer, Refusal
from proxy.relay.config import RelayConfig
from proxy.relay.upstream.upstream import Upstream
from proxy.wire.facts import RequestFacts
from proxy.wire.headers import request_head, value_of
from proxy.wire.outline import Buffer, Edit, Outline, edited

MAX_SESSION_BYTES = 512
RETRY_SECONDS = 2
"""Value of `Retry-After`: two probes of an upstream that is down."""
MAX_MODELS = 1000
"""Models whose turns are remembered; engines with adapters may serve hundreds."""
SHOWN_MODELS = 20
READABLE = frozenset(
    [
        "/", "/health", "/ping", "/version", "/info", "/load", "/metrics",
        "/v1/models",
    ]
)  # fmt: skip
"""GET, HEAD and OPTIONS: pages on which engines describe themselves."""
CALLABLE = frozenset(
    [
        "/tokenize", "/detokenize", "/chat_tokenize", "/v1/messages/count_tokens",
        "/v1/responses/input_tokens", "/v1/chat/completions/render",
        "/v1/completions/render",
    ]
)  # fmt: skip
"""POST: work for the CPU, no joules of the GPU."""
READABLE_BELOW = "/v1/models/"
STREAMING_DIALECTS = frozenset(["vllm"])
STREAMED = frozenset(["chat", "completions"])
"""Whose whole replies may be made from streams, and on which routes."""
RESPONSES_BELOW = "/v1/responses/"
"""GET: a response made earlier."""


def passes_unmetered(method: str, path: str) -> bool:
    """Whether a request that is not metered may go to the engine all the same.

    Paths are compared as sent: an escaped spelling of a route is another route.
    """
    if method == "OPTIONS":
        return True  # a browser asking what it may do; no engine computes for it
    route = without_slash(path)
    if method in ("GET", "HEAD"):
        is_below = any(
            _is_below(one, path) for one in (READABLE_BELOW, RESPONSES_BELOW)
        )
        return route in READABLE or is_below
    return method == "POST" and route in CALLABLE


def may_be_work(method: str, path: str) -> bool:
    """Whether the engine's GPU may be busy with a request that is not metered."""
    is_page = method in ("GET", "HEAD", "OPTIONS")
    return not is_page and without_slash(path) not in CALLABLE


def without_slash(path: str) -> str:
    """The route that a trailing slash stands for: the engine says whether it is one."""
    return path[:-1] if path[-1:] == "/" and path != "/" else path


def _is_below(root: str, path: str) -> bool:
    """A path below a root that no server can take for a path outside."""
    name = path.removeprefix(root)
    steps = name.lower().replace("%2e", ".")
    steps = steps.replace("%2f", "/").replace("%5c", "/").replace("\\", "/")
    return name != path and not {".", ".."} & set(steps.split("/"))


@dataclass(frozen=True, slots=True)
class Admission:
    """A request that goes to the engine."""

    facts: RequestFacts | None
    """None: it is not metered."""
    body: Buffer
    """As sent, or asking for usage as well."""
    is_work: bool = False
    """It is not metered, and the engine may compute for it."""
    edits: tuple[Edit, ...] = ()
    """Changes to a large body, which is not written anew."""
    has_usage_added: bool = False
    """The usage event must be taken out again: the client did not ask for it."""
    streamed: Streamed | None = None
    """The same request as a stream, where a whole reply may be made from one."""

    def as_sent(self, body: Buffer) -> Admission:
        """The same with the client's own body, for an engine that refuses ours."""
        return Admission(self.facts, body) if self.has_usage_added else self


def admit(
    dialect: Dialect,
    method: str,
    target: str,
    body: bytes,
    *,
    asks_for_usage: bool,
    allow_unknown: bool,
    allowed: Collection[str] = (),
    streams_upstream: bool = False,
    large: tuple[Buffer, Outline] | None = None,
) -> Admission | Refusal:
    """Whether a request may pass, metered or not, and with which body.

    A path with a trailing slash passes as the route without it would, as it is.
    Of a `large` body its outline is read; `body` is the outline's text then.
    """
    path = target.partition("?")[0]
    route = without_slash(path)
    facts = read_request(dialect, method, route, body)
    sent = body if large is None else large[0]
    if facts is None:
        is_allowed = allow_unknown or path in allowed or route in allowed
        if is_allowed or passes_unmetered(method, path):
            return Admission(None, sent, is_work=may_be_work(method, path))
        message = f"{method[:20]} {path[:80]} is not a route of this proxy"
        return Refusal(404, "unknown_route", message)
    if streams_upstream and not facts.is_stream and large is None:
        may_stream = dialect.name in STREAMING_DIALECTS and facts.route in STREAMED
        streamed = as_stream(facts.route, body) if may_stream else None
        return Admission(facts, sent, streamed=streamed)
    if not facts.is_stream or facts.wants_usage or not asks_for_usage:
        return Admission(facts, sent)
    asking = dialect.with_usage(body)
    if asking is body or large is None:
        return Admission(facts, asking, has_usage_added=asking is not body)
    edits = large[1].edits_for(asking)
    if edits is None:
        return Admission(facts, sent)
    return Admission(facts, sent, edits=tuple(edits), has_usage_added=True)


class Replica(Protocol):
    """An upstream, as far as routing looks at it."""

    @property
    def name(self) -> str:
        """Distinct among the upstreams."""

    @property
    def models(self) -> tuple[str, ...] | None:
        """Those it serves; None while that is not known yet."""

    @property
    def is_up(self) -> bool:
        """False after it could not be reached, until it answers again."""

    @property
    def is_draining(self) -> bool:
        """It finishes what it has and gets nothing new."""


P = TypeVar("P", bound=Replica)


class Router(Generic[P]):
    """Puts upstreams in order for one request after another."""

    def __init__(self, replicas: Sequence[P], default_model: str | None = None) -> None:
        self._replicas = tuple(replicas)
        self._default_model = default_model
        self._turns: dict[str, int] = {}

    def order(
        self,
        model: str | None,
        session: bytes | None,
        among: Sequence[P] | None = None,
    ) -> list[P] | Refusal:
        """Those that may take a request, the first choice first; never empty.

        A request that names no model is for the default one. `among` are the
        upstreams that know the request's route, None for all of them.
        """
        replicas = self._replicas if among is None else among
        if model is None:
            model = self._default(replicas)
        if model is None:  # no upstream has listed its models yet: any may try
            serving = list(replicas)
        else:
            serving = [
                p for p in replicas if p.models is not None and model in p.models
            ]
        if not serving:
            return self._unknown(model, replicas)
        ready = [
            replica for replica in serving if replica.is_up and not replica.is_draining
        ]
        if not ready:
            return unavailable(serving, model)
        if session is not None:
            return sorted(ready, key=lambda p: weight(session, p.name), reverse=True)
        turn = self._turn(model or "") % len(ready)
        return ready[turn:] + ready[:turn]

    def first(self) -> list[P] | Refusal:
        """For a request that names no model: in the order of the configuration."""
        ready = [p for p in self._replicas if p.is_up and not p.is_draining]
        return ready or unavailable(self._replicas, None)

    def _turn(self, model: str) -> int:
        turn = self._turns.pop(model, 0)
        if len(self._turns) >= MAX_MODELS:
            del self._turns[next(iter(self._turns))]
        self._turns[model] = turn + 1
        return turn

    def _default(self, replicas: Sequence[P]) -> str | None:
        """As configured, else the first model of the first upstream that has one."""
        if self._default_model is not None:
            return self._default_model
        return next((p.models[0] for p in replicas if p.models), None)

    def _unknown(self, model: str | None, replicas: Sequence[P]) -> Refusal:
        silent = [replica.name for replica in replicas if replica.models is None]
        if silent:
            return Refusal(
                503,
                "models_unknown",
                f"the models of {', '.join(silent)} are not known yet",
                retry_after_seconds=RETRY_SECONDS,
            )
        known = sorted({name for replica in replicas for name in replica.models or ()})
        shown = ", ".join(known[:SHOWN_MODELS])
        more = "" if len(known) <= SHOWN_MODELS else ", ... (see /v1/models)"
        return Refusal(
            404,
            "model_not_found",
            f"model {(model or '')[:100]!r} is not served here; known: {shown}{more}",
        )


def unavailable(replicas: Sequence[Replica], model: str | None) -> Refusal:
    """The refusal while all that could take a request are down or draining."""
    why = ", ".join(
        f"{replica.name} is {'draining' if replica.is_draining else 'down'}"
        for replica in replicas
    )
    whose = "" if model is None else f" for model {model[:100]!r}"
    return Refusal(
        503,
        "upstream_unavailable",
        f"no upstream{whose} takes requests now: {why}",
        retry_after_seconds=RETRY_SECONDS,
    )


def weight(session: bytes, name: str) -> bytes:
    """Preference of a session for a replica: the same in every process."""
    return hashlib.blake2b(session, digest_size=8, key=name.encode()[:64]).digest()


@dataclass(frozen=True, slots=True)
class Candidate:
    """An upstream that may take a request, and what it would be sent."""

    upstream: Upstream
    admission: Admission

    def as_stream(self, streamed: Streamed) -> Candidate:
        """The same upstream, asked for a stream in the place of a whole reply."""
        facts = self.admission.facts
        if facts is not None:
            facts = msgspec.structs.replace(
                facts, is_stream=True, wants_usage=True, has_running_usage=True
            )
        return Candidate(self.upstream, Admission(facts, streamed.body))

    def without_usage(self, request: ClientRequest) -> Candidate:
        """The same upstream, sent the request as the client wrote it."""
        return Candidate(self.upstream, self.admission.as_sent(request.body))

    def bytes_for(self, request: ClientRequest) -> tuple[Buffer | memoryview, ...]:
        """The request as it goes to that upstream, in pieces where it is large."""
        address, body = self.upstream.address, self.admission.body
        pieces = edited(body, self.admission.edits)
        head = request_head(
            request.method,
            address.prefix + request.target,
            request.headers,
            authority=address.authority,
            request_id=request.request_id,
            body_size=sum(map(len, pieces)),
            is_metered=self.admission.facts is not None,
        )
        if request.is_large:
            return (head, *pieces)
        return (head + body,)


class _Body(msgspec.Struct):
    model: str | None = None
    prompt_cache_key: str | None = None


_decode = msgspec.json.Decoder(_Body).decode


class Chooser:
    """Admits and routes the requests of one relay."""

    def __init__(self, config: RelayConfig, upstreams: Sequence[Upstream]) -> None:
        self._config = config
        self._upstreams = tuple(upstreams)
        self._router = Router(self._upstreams, config.default_model)
        self._session_header = config.session_header.lower().encode()
        self._dialects = {
            upstream.dialect.name: upstream.dialect for upstream in upstreams
        }

    def choose(self, request: ClientRequest) -> list[Candidate] | Answer | Refusal:
        """Where a request may go, the first choice first; or the relay's own answer."""
        admitted = {name: self._admit(name, request) for name in self._dialects}
        if len(self._upstreams) == 1:
            (upstream,) = self._upstreams
            (only,) = admitted.values()
            if isinstance(only, Refusal):
                return only
            return (
                unavailable((upstream,), None)
                if upstream.is_draining
                else [Candidate(upstream, only)]
            )
        passing = {n: a for n, a in admitted.items() if isinstance(a, Admission)}
        if not passing:
            return next(a for a in admitted.values() if isinstance(a, Refusal))
        metered = {n: a.facts for n, a in passing.items() if a.facts is not None}
        upstreams: list[Upstream] | Answer | Refusal
        if metered:
            (facts, *_) = metered.values()
            among = [u for u in self._upstreams if u.dialect.name in metered]
            upstreams = self._router.order(facts.model, self._session(request), among)
        else:
            upstreams = self._order_unmetered(request)
        if not isinstance(upstreams, list):
            return upstreams
        return [
            Candidate(upstream, passing[upstream.dialect.name])
            for upstream in upstreams
            if upstream.dialect.name in passing
        ]

    def _admit(self, dialect: str, request: ClientRequest) -> Admission | Refusal:
        return admit(
            self._dialects[dialect],
            request.method.decode("latin-1"),
            request.target.decode("latin-1"),
            request.readable_body,
            asks_for_usage=self._config.usage_event != "keep",
            allow_unknown=self._config.allow_unknown_routes,
            allowed=self._config.allow_route,
            streams_upstream=self._config.stream_upstream,
            large=None if request.outline is None else (request.body, request.outline),
        )

    def _order_unmetered(
        self, request: ClientRequest
    ) -> list[Upstream] | Answer | Refusal:
        """By the model it is about, where it names one; else the first that is up."""
        path = request.target.partition(b"?")[0].decode("latin-1")
        if request.method in (b"GET", b"HEAD"):
            if path == "/v1/models":
                return Answer(self._models())
            if path.startswith(READABLE_BELOW):
                return self._router.order(path.removeprefix(READABLE_BELOW), None)
        elif (model := _read(request.readable_body).model) is not None:
            return self._router.order(model, None)
        return self._router.first()

    def _session(self, request: ClientRequest) -> bytes | None:
        """Key that ties requests together: a header, else OpenAI's own hint for it."""
        value = value_of(request.headers, self._session_header)
        if not value and b'"prompt_cache_key"' in request.readable_body:
            value = (_read(request.readable_body).prompt_cache_key or "").encode()
        return value[:MAX_SESSION_BYTES] if value else None

    def _models(self) -> bytes:
        """Every model that may be asked for now, as OpenAI's list, each once."""
        cards: dict[str, object] = {}
        for upstream in self._upstreams:
            if upstream.is_up and not upstream.is_draining:
                for model in upstream.models or ():
                    cards.setdefault(
                        model, upstream.cards.get(model) or _card(model, upstream)
                    )
        return msgspec.json.encode({"object": "list", "data": list(cards.values())})


def _card(model: str, upstream: Upstream) -> dict[str, object]:
    return {"id": model, "object": "model", "created": 0, "owned_by": upstream.name}


def _read(body: bytes) -> _Body:
    try:
        return _decode(body)
    except UNREADABLE:
        return _Body()
