"""TLS of the serving port, of the admin port, and towards upstreams.

Rule: TLS 1.2 or later, and whoever we call must prove who it is; there is no way to
switch that off.
"""

from __future__ import annotations

import logging
import ssl
from dataclasses import dataclass, field
from typing import Annotated

from proxy.errors import ConfigError
from proxy.process.options import Option

log = logging.getLogger("servewatt.proxy")


@dataclass(frozen=True, slots=True)
class UpstreamTls:
    """How upstreams prove who they are, and we to them: paths of PEM files."""

    upstream_ca: Annotated[
        str | None,
        Option(
            "Authorities that an https upstream is checked against.",
            "PATH",
            heading="Upstream",
            default_is="the system's",
        ),
    ] = None
    upstream_cert: Annotated[
        str | None,
        Option("Certificate to show to an upstream that asks for one.", "PATH"),
    ] = None
    upstream_key: Annotated[
        str | None, Option("Its key, where it is a file of its own.", "PATH")
    ] = None

    def __bool__(self) -> bool:
        return any((self.upstream_ca, self.upstream_cert, self.upstream_key))

    def context(self) -> ssl.SSLContext:
        """Checks chain, dates and name. Raises ConfigError for unusable files."""
        ca, cert, key = self.upstream_ca, self.upstream_cert, self.upstream_key
        context = trusting("--upstream-ca", ca)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_alpn_protocols(["http/1.1"])
        if cert is not None:
            _load(context, "--upstream-cert", cert, "--upstream-key", key)
        elif key is not None:
            raise ConfigError("--upstream-key is for --upstream-cert; give both")
        return context


@dataclass(frozen=True, slots=True)
class ServerTls:
    """How we prove who we are to clients: paths of PEM files."""

    tls_cert: Annotated[
        str | None,
        Option(
            "Certificate (and chain) to meet clients with; read again on SIGHUP.",
            "PATH",
            heading="Ports",
        ),
    ] = None
    tls_key: Annotated[str | None, Option("Its key, without a passphrase.", "PATH")] = (
        None
    )
    admin_tls: Annotated[bool, Option("The same certificate on the admin port.")] = (
        False
    )

    def identity(self) -> Identity | None:
        """Certificate and key, read; None where clients are met with plain HTTP.

        Raises ConfigError for one without the other and for unusable files.
        """
        if self.tls_cert is None and self.tls_key is None:
            if self.admin_tls:
                raise ConfigError("--admin-tls needs --tls-cert and --tls-key")
            return None
        if self.tls_cert is None or self.tls_key is None:
            raise ConfigError("--tls-cert and --tls-key belong together; give both")
        context = _server_context(self.tls_cert, self.tls_key)
        return Identity(self.tls_cert, self.tls_key, context)


@dataclass(frozen=True, slots=True)
class Identity:
    """Who we are to clients: certificate and key, read again when they change."""

    cert: str
    key: str
    context: ssl.SSLContext = field(repr=False, compare=False)

    def reload(self) -> str:
        """Use the files as they are now for new connections; else stay as we are.

        Says what became of it, and logs what is wrong with them.
        """
        try:
            _server_context(self.cert, self.key)  # unusable files break no live one
            _load(self.context, "--tls-cert", self.cert, "--tls-key", self.key)
        except ConfigError as error:
            log.error("%s; going on with the certificate in use", error)
            return "the certificate in use stays"
        return f"certificate read again from {self.cert}"


def distrust_of(error: ssl.SSLError) -> str:
    """Why TLS refused the other side, in one line."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted: {error.verify_message.rstrip('.')}"
    return f"no TLS with it: {(error.reason or str(error)).lower().replace('_', ' ')}"


def _server_context(cert: str, key: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    _load(context, "--tls-cert", cert, "--tls-key", key)
    return context


def trusting(option: str, ca: str | None) -> ssl.SSLContext:
    """Checks chain, dates and name by these authorities, None: the system's.

    Raises ConfigError for an unusable file, in the words of its option.
    """
    try:
        return ssl.create_default_context(cafile=ca)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"{option} {ca}: {_why(error)}") from None


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
