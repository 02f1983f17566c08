"""How a proxy's admin API is asked: directly, checked, and with its token."""

from __future__ import annotations

import ssl

import httpx


def admin_client(url: str, timeout_seconds: float, token: str | None) -> httpx.Client:
    """A client that follows no redirect and no proxy of the environment.

    An https URL is checked against the system's authorities, or `SSL_CERT_FILE`.
    """
    is_tls = url.startswith("https:")
    return httpx.Client(
        trust_env=False,
        timeout=timeout_seconds,
        verify=ssl.create_default_context() if is_tls else True,
        headers={} if token is None else {"authorization": f"Bearer {token}"},
    )
