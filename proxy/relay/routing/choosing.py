"""Whether a request passes, with which body, and to which upstreams in which order.

A fleet of one takes all that passes, alive or not: only it can say what it serves.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from proxy.engines.wire import UNREADABLE
from proxy.relay.client.request import Request
from proxy.relay.config import RelayConfig
from proxy.relay.replies import Answer, Refusal
from proxy.relay.routing.routes import READABLE_BELOW, Admission, admit
from proxy.relay.routing.routing import Router, unavailable
from proxy.relay.upstream.upstream import Upstream
from proxy.wire.headers import value_of

MAX_SESSION_BYTES = 512


@dataclass(frozen=True, slots=True)
class Candidate:
    """An upstream that may take a request, and what it would be sent."""

    upstream: Upstream
    admission: Admission


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

    def choose(self, request: Request) -> list[Candidate] | Answer | Refusal:
        """Where a request may go, the first choice first; or what it is told."""
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
        metering = [name for name, a in passing.items() if a.facts is not None]
        upstreams: list[Upstream] | Answer | Refusal
        if metering:
            upstreams = self._order(request, passing[metering[0]], metering)
        else:
            upstreams = self._order_unmetered(request)
        if not isinstance(upstreams, list):
            return upstreams
        return [
            Candidate(upstream, passing[upstream.dialect.name])
            for upstream in upstreams
            if upstream.dialect.name in passing
        ]

    def _admit(self, dialect: str, request: Request) -> Admission | Refusal:
        return admit(
            self._dialects[dialect],
            request.method.decode("latin-1"),
            request.target.decode("latin-1"),
            request.body,
            asks_for_usage=self._config.asks_for_usage,
            allow_unknown=self._config.allow_unknown_routes,
        )

    def _order(
        self, request: Request, admission: Admission, metering: list[str]
    ) -> list[Upstream] | Refusal:
        assert admission.facts is not None
        among = [
            upstream
            for upstream in self._upstreams
            if upstream.dialect.name in metering
        ]
        session = self._session(request)
        return self._router.order(admission.facts.model, session, among)

    def _order_unmetered(self, request: Request) -> list[Upstream] | Answer | Refusal:
        """By the model it is about, where it names one; else the first that is up."""
        path = request.target.partition(b"?")[0].decode("latin-1")
        if request.method in (b"GET", b"HEAD"):
            if path == "/v1/models":
                return Answer(self._models())
            if path.startswith(READABLE_BELOW):
                return self._router.order(path.removeprefix(READABLE_BELOW), None)
        elif (model := _read(request.body).model) is not None:
            return self._router.order(model, None)
        return self._router.first()

    def _session(self, request: Request) -> bytes | None:
        """What ties requests together: a header, else OpenAI's own hint for it."""
        value = value_of(request.headers, self._session_header)
        if not value and b'"prompt_cache_key"' in request.body:
            value = (_read(request.body).prompt_cache_key or "").encode()
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
