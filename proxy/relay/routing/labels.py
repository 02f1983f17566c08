"""Bounded labels of a request: no client can make a new time series at will."""

from __future__ import annotations

import hashlib
import hmac

from proxy.errors import ConfigError
from proxy.wire.facts import KINDS, Labels, RequestFacts
from proxy.wire.headers import Headers, value_of
from proxy.wire.redaction import is_secret

MAX_MODELS = 32
MAX_MODEL_CHARACTERS = 100
MAX_HASHED_TENANTS = 50
"""Limit of tenants known by their hash only; the ledger keeps 200 classes in all."""
HASH_CHARACTERS = 16
"""64 bits: among a million tenants two share one in one case of 40 million."""


def check_tenant_header(header: str | None, hash_key: str | None) -> None:
    """Raises ConfigError where a secret would become a label."""
    if hash_key is not None and header is None:
        raise ConfigError(
            "--tenant-hash-key-file hashes what --tenant-header names; give both"
        )
    if header is not None and is_secret(header) and hash_key is None:
        raise ConfigError(
            f"--tenant-header {header} is a secret of the client: add "
            "--tenant-hash-key-file PATH to show a keyed hash of it, or name a header "
            "that is none"
        )


class FirstFew:
    """Lets the first values through and calls every later one `other`."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._known: set[str] = set()

    def bounded(self, value: str) -> str:
        """The value, if it is among the first."""
        if value not in self._known:
            if len(self._known) >= self._limit:
                return "other"
            self._known.add(value)
        return value


class LabelReader:
    """Labels from headers and body; remembers the first models and tenants it saw."""

    def __init__(
        self,
        tenant_header: str | None,
        tenants: frozenset[str],
        tenant_hash_key: str | None = None,
    ) -> None:
        self._tenant_header = (tenant_header or "").lower().encode() or None
        self._tenants = tenants
        self._hash_key = None if tenant_hash_key is None else tenant_hash_key.encode()
        self._models = FirstFew(MAX_MODELS)
        self._hashes = FirstFew(MAX_HASHED_TENANTS)

    def read(self, facts: RequestFacts, headers: Headers) -> Labels:
        """The labels of one request; unknown values become `other`."""
        kind = (value_of(headers, b"x-servewatt-kind") or b"").decode("latin-1")
        tenant, stored_tenant = self._tenant(headers)
        return Labels(
            model=self._model(facts.model),
            kind=kind if kind in KINDS else "other",
            tenant=tenant,
            stored_tenant=stored_tenant,
        )

    def _model(self, model: str | None) -> str:
        if model is None:
            return "unknown"
        return self._models.bounded(model[:MAX_MODEL_CHARACTERS])

    def _tenant(self, headers: Headers) -> tuple[str, str | None]:
        """The label, and the record's own name where that is another."""
        if self._tenant_header is None:
            return "none", None
        value = value_of(headers, self._tenant_header)
        if value is None:
            return "none", None
        tenant = value.decode("latin-1")
        if tenant in self._tenants:
            return tenant, None
        if self._hash_key is None:
            return "other", None
        hashed = hashed_tenant(self._hash_key, value)
        return self._hashes.bounded(hashed), hashed


def hashed_tenant(key: bytes, value: bytes) -> str:
    """The start of HMAC-SHA256; without the key nobody can try values against it."""
    return hmac.new(key, value.strip(), hashlib.sha256).hexdigest()[:HASH_CHARACTERS]
