"""An operator, an account and its users, as NATS' own `nsc` would make them.

Tokens are signed by the `nkeys` package; a server that is given the configuration lets
in whoever has a user's `.creds` file.
"""

from __future__ import annotations

import base64
import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

UNLIMITED = ("subs", "data", "payload", "imports", "exports", "conn", "leaf")
STORED = ("mem_storage", "disk_storage", "streams", "consumer")


class Identity:
    """A key pair, and the tokens that it signs."""

    def __init__(self, kind: str) -> None:
        """`kind` is `operator`, `account` or `user`."""
        nkeys = pytest.importorskip("nkeys", reason=".creds files need nkeys")
        prefix = getattr(nkeys, f"PREFIX_BYTE_{kind.upper()}")
        self.kind = kind
        self.seed: bytes = nkeys.encode_seed(os.urandom(32), prefix)
        self._pair = nkeys.from_seed(bytearray(self.seed))
        self.public: str = self._pair.public_key.decode()

    def signs(self, other: Identity, facts: dict[str, Any]) -> str:
        """A token in which this one says something of another."""
        claims = {
            "jti": other.public, "iat": int(time.time()), "iss": self.public,
            "name": other.kind, "sub": other.public,
            "nats": {"type": other.kind, "version": 2, **facts},
        }  # fmt: skip
        head = {"typ": "JWT", "alg": "ed25519-nkey"}
        signed = ".".join(
            _encoded(json.dumps(each).encode()) for each in (head, claims)
        )
        return f"{signed}.{_encoded(self._pair.sign(signed.encode()))}"


class Accounts:
    """The configuration of a server, and a `.creds` file for it."""

    def __init__(self, folder: Path) -> None:
        operator, system = Identity("operator"), Identity("account")
        self._account = Identity("account")
        limits = dict.fromkeys(UNLIMITED, -1) | {"wildcards": True}
        stored = dict.fromkeys(STORED, -1)
        ours = operator.signs(self._account, {"limits": limits | stored})
        theirs = operator.signs(system, {"limits": limits})  # it may store nothing
        self._folder = folder
        self.config = folder / "accounts.conf"
        self.config.write_text(
            f"operator: {operator.signs(operator, {})}\n"
            f"system_account: {system.public}\nresolver: MEMORY\n"
            f"resolver_preload: {{\n{self._account.public}: {ours}\n"
            f"{system.public}: {theirs}\n}}\n"
        )

    def creds(self, name: str, account: Identity | None = None) -> Path:
        """A user's file, signed by our account or by another."""
        user = Identity("user")
        limits = {"subs": -1, "data": -1, "payload": -1, "pub": {}, "sub": {}}
        token = (account or self._account).signs(user, limits)
        path = self._folder / name
        path.write_text(
            f"-----BEGIN NATS USER JWT-----\n{token}\n------END NATS USER JWT------\n\n"
            f"-----BEGIN USER NKEY SEED-----\n{user.seed.decode()}\n"
            "------END USER NKEY SEED------\n"
        )
        return path


def _encoded(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")
