"""Which upstream takes a request, and which ones after it. Pure.

Rule: requests of one session go to one replica for as long as it lives (rendezvous
hashing: a replica that leaves moves only its own sessions, and they come back with
it); all others take turns, replica by replica. Nothing is remembered of a session.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Generic, Protocol, TypeVar

from proxy.relay.replies import Refusal

RETRY_SECONDS = 2
"""What clients are told to wait: two probes of an upstream that is down."""
MAX_MODELS = 1000
"""Models whose turns are remembered; engines with adapters may serve hundreds."""
SHOWN_MODELS = 20


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
        if model is None:  # nobody has told its models yet: anyone may try
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
        """For a request that is nobody's in particular: as they were configured."""
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
    """How much a session prefers a replica: the same in every process."""
    return hashlib.blake2b(session, digest_size=8, key=name.encode()[:64]).digest()
