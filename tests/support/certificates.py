"""Certificates made when a test needs them, by the `openssl` command."""

from __future__ import annotations

import shutil
import ssl
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

KEY = "-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes"


@dataclass(frozen=True)
class Leaf:
    """A certificate and its key, as PEM files."""

    cert: Path
    key: Path

    def server_context(self, *, asks_for: Path | None = None) -> ssl.SSLContext:
        """As a server shows it; `asks_for` demands certificates of that authority."""
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(self.cert, self.key)
        if asks_for is not None:
            context.load_verify_locations(asks_for)
            context.verify_mode = ssl.CERT_REQUIRED
        return context


@dataclass(frozen=True)
class Authority:
    """One that signs; `cert` is what others trust."""

    cert: Path
    key: Path

    def leaf(self, name: str, alt: str = "IP:127.0.0.1", days: int = 2) -> Leaf:
        """A certificate of this authority; `days` below 0 is over already."""
        folder = self.cert.parent
        cert, key, request = (folder / f"{name}.{e}" for e in ("crt", "key", "csr"))
        extension = folder / f"{name}.ext"
        extension.write_text(f"subjectAltName={alt}\n")
        _openssl(f"req {KEY} -keyout {key} -out {request} -subj /CN={name}")
        _openssl(
            f"x509 -req -in {request} -CA {self.cert} -CAkey {self.key} "
            f"-CAcreateserial {_validity(days)} -extfile {extension} -out {cert}"
        )
        return Leaf(cert, key)


def authority(folder: Path, name: str = "authority") -> Authority:
    """A new one; the test skips where there is no `openssl`."""
    if shutil.which("openssl") is None:
        pytest.skip("needs the openssl command to make certificates")
    cert, key = folder / f"{name}.crt", folder / f"{name}.key"
    _openssl(
        f"req -x509 {KEY} -keyout {key} -out {cert} -days 2 -subj /CN={name} "
        "-addext basicConstraints=critical,CA:TRUE -addext keyUsage=keyCertSign"
    )
    return Authority(cert, key)


def _validity(days: int) -> str:
    """From now on; OpenSSL 3.4 takes no end before the start, and has other words."""
    if days < 0 and "-not_after" in _openssl("x509 -help"):
        return "-not_before 20200101000000Z -not_after 20200102000000Z"
    return f"-days {days}"


def _openssl(arguments: str) -> str:
    """What it said."""
    done = subprocess.run(
        ["openssl", *arguments.split()], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr
