"""Bounded labels of a request: no client can make a new time series at will."""

from __future__ import annotations

from proxy.engines.dialect import RequestFacts
from proxy.meter import Labels
from proxy.relay.headers import Headers, value_of

KINDS = frozenset(
    ["conversation", "code", "reasoning", "summarization", "embedding", "other"]
)
MAX_MODELS = 32
MAX_MODEL_CHARACTERS = 100


class LabelReader:
    """Labels from headers and body; remembers the first models it saw."""

    def __init__(self, tenant_header: str | None, tenants: frozenset[str]) -> None:
        self._tenant_header = (tenant_header or "").lower().encode() or None
        self._tenants = tenants
        self._models: set[str] = set()

    def read(self, facts: RequestFacts, headers: Headers) -> Labels:
        """The labels of one request; unknown values become `other`."""
        kind = (value_of(headers, b"x-servewatt-kind") or b"").decode("latin-1")
        return Labels(
            model=self._model(facts.model),
            kind=kind if kind in KINDS else "other",
            tenant=self._tenant(headers),
        )

    def _model(self, model: str | None) -> str:
        if model is None:
            return "unknown"
        model = model[:MAX_MODEL_CHARACTERS]
        if model not in self._models:
            if len(self._models) >= MAX_MODELS:
                return "other"
            self._models.add(model)
        return model

    def _tenant(self, headers: Headers) -> str:
        if self._tenant_header is None:
            return "none"
        value = value_of(headers, self._tenant_header)
        if value is None:
            return "none"
        tenant = value.decode("latin-1")
        return tenant if tenant in self._tenants else "other"
