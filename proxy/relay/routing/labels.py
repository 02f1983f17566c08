"""Bounded labels of a request: no client can make a new time series at will.

A model has its own label if the engine lists it, or once a request for it succeeded;
any other is `other`. The record keeps the name that was asked for.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Collection

import msgspec

from proxy.errors import ConfigError
from proxy.wire.facts import KINDS, Labels, RequestFacts
from proxy.wire.headers import Headers, value_of
from proxy.wire.redaction import is_secret

MAX_LEARNED_MODELS = 16
"""Models that the engine does not list and that were asked for with success: an
engine may answer to any name."""
MAX_MODEL_CHARACTERS = 100
MAX_STORED_CHARACTERS = 256
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
        self._learned: set[str] = set()
        self._hashes = FirstFew(MAX_HASHED_TENANTS)

    def use_hash_key(self, tenant_hash_key: str) -> None:
        """Hash tenants under this secret from now on; another one makes other hashes,
        and room for their labels."""
        key = tenant_hash_key.encode()
        if key != self._hash_key:
            self._hash_key, self._hashes = key, FirstFew(MAX_HASHED_TENANTS)

    def read(
        self, facts: RequestFacts, headers: Headers, listed: Collection[str] = ()
    ) -> Labels:
        """The labels of one request; unknown values become `other`.

        `listed` are the models that its engine says it serves.
        """
        kind = (value_of(headers, b"x-servewatt-kind") or b"").decode("latin-1")
        tenant, stored_tenant = self._tenant(headers)
        model = facts.model
        is_known = model is None or model in listed or model in self._learned
        return Labels(
            model=_label_of(model) if is_known else "other",
            kind=kind if kind in KINDS else "other",
            tenant=tenant,
            stored_tenant=stored_tenant,
            stored_model=None if model is None else model[:MAX_STORED_CHARACTERS],
            is_provisional=not is_known,
        )

    def settled(self, labels: Labels, model: str | None, is_ok: bool) -> Labels:
        """The final labels of a request whose labels were provisional."""
        has_room = len(self._learned) < MAX_LEARNED_MODELS
        if model is not None and is_ok and has_room:
            self._learned.add(model)
        name = _label_of(model) if model in self._learned else "other"
        return msgspec.structs.replace(labels, model=name, is_provisional=False)

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


def _label_of(model: str | None) -> str:
    return "unknown" if model is None else model[:MAX_MODEL_CHARACTERS]


def hashed_tenant(key: bytes, value: bytes) -> str:
    """The start of HMAC-SHA256; without the key nobody can try values against it."""
    return hmac.new(key, value.strip(), hashlib.sha256).hexdigest()[:HASH_CHARACTERS]
