"""How commands ask the admin API of a running proxy: checked, and with its token."""

from __future__ import annotations

import ssl

import httpx

from proxy.security.secrets import read_admin_token

TIMEOUT_SECONDS = 5.0


def admin_call(token_file: str | None) -> httpx.Client:
    """A client that follows no redirect and no proxy of the environment.

    The token is of the file, else of the environment. An https URL is checked
    against the system's authorities, or `SSL_CERT_FILE`. Raises ConfigError.
    """
    token = read_admin_token(token_file)
    return httpx.Client(
        trust_env=False,
        timeout=TIMEOUT_SECONDS,
        verify=ssl.create_default_context(),
        headers={} if token is None else {"authorization": f"Bearer {token}"},
    )
