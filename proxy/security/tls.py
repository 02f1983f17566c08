"""TLS of the serving port, of the admin port, and towards upstreams.

Rule: TLS 1.2 or later, and whoever we call must prove who it is; there is no way to
switch that off.
"""

from __future__ import annotations

import logging
import ssl
from dataclasses import dataclass, field

from proxy.errors import ConfigError

log = logging.getLogger("servewatt.proxy")


@dataclass(frozen=True, slots=True)
class UpstreamTls:
    """How upstreams prove who they are, and we to them; all are paths of PEM files."""

    ca: str | None = None
    """Authorities to trust, in place of the system's."""
    cert: str | None = None
    """Of ours, where the upstream asks for one."""
    key: str | None = None

    def __bool__(self) -> bool:
        return any((self.ca, self.cert, self.key))

    def context(self) -> ssl.SSLContext:
        """Checks chain, dates and name. Raises ConfigError for unusable files."""
        try:
            context = ssl.create_default_context(cafile=self.ca)
        except (OSError, ssl.SSLError) as error:
            raise ConfigError(f"--upstream-ca {self.ca}: {_why(error)}") from None
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_alpn_protocols(["http/1.1"])
        if self.cert is not None:
            _load(context, "--upstream-cert", self.cert, "--upstream-key", self.key)
        elif self.key is not None:
            raise ConfigError("--upstream-key is for --upstream-cert; give both")
        return context


@dataclass(frozen=True, slots=True)
class Identity:
    """Who we are to clients: certificate and key, read again when they change."""

    cert: str
    key: str
    context: ssl.SSLContext = field(repr=False, compare=False)

    def reload(self) -> None:
        """Use the files as they are now for new connections; else stay as we are."""
        try:
            _server_context(self.cert, self.key)  # unusable files break no live one
            _load(self.context, "--tls-cert", self.cert, "--tls-key", self.key)
        except ConfigError as error:
            log.error("%s; going on with the certificate in use", error)
        else:
            log.info("certificate read again from %s", self.cert)


def identity_of(cert: str | None, key: str | None) -> Identity | None:
    """What `--tls-cert` and `--tls-key` say; None where neither does.

    Raises ConfigError for one without the other and for unusable files.
    """
    if cert is None and key is None:
        return None
    if cert is None or key is None:
        raise ConfigError("--tls-cert and --tls-key belong together; give both")
    return Identity(cert, key, _server_context(cert, key))


def distrust_of(error: ssl.SSLError) -> str:
    """What TLS objected to, in one line."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted: {error.verify_message.rstrip('.')}"
    return f"no TLS with it: {(error.reason or str(error)).lower().replace('_', ' ')}"


def _server_context(cert: str, key: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    _load(context, "--tls-cert", cert, "--tls-key", key)
    return context


def _load(
    context: ssl.SSLContext,
    cert_option: str,
    cert: str,
    key_option: str,
    key: str | None,
) -> None:
    where = f"{cert_option} {cert}" + (f", {key_option} {key}" if key else "")

    def refuse() -> str:  # else OpenSSL asks the terminal
        raise ConfigError(f"{where}: the key has a passphrase; give one without")

    try:
        context.load_cert_chain(cert, key, password=refuse)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"{where}: {_why(error)}") from None


def _why(error: OSError) -> str:
    reason = getattr(error, "reason", None) or error.strerror or str(error)
    return str(reason).lower().replace("_", " ")
