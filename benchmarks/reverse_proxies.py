"""nginx and HAProxy in front of an engine, set up not to hold back what is streamed.

Each runs in one process on one core, as the relay does, with and without TLS towards
clients. Debian: `apt install nginx-light haproxy`.
"""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Certificate:
    """PEM files of a certificate for 127.0.0.1 and its key, and of both in one."""

    cert: Path
    key: Path
    both: Path


def certificate(folder: Path) -> Certificate:
    """One signed by itself, of the kind that costs servers least (P-256)."""
    made = Certificate(folder / "cert.pem", folder / "key.pem", folder / "both.pem")
    command = (
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes "
        f"-keyout {made.key} -out {made.cert} -days 2 -subj /CN=127.0.0.1 "
        "-addext subjectAltName=IP:127.0.0.1"
    )
    subprocess.run(command.split(), check=True, capture_output=True)
    made.both.write_text(made.cert.read_text() + made.key.read_text())
    return made


NGINX_CONFIG = """
daemon off; worker_processes 1; pid {folder}/pid; error_log stderr error;
events {{ worker_connections 4096; }}
http {{
  access_log off;
  client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
  upstream engine {{ server 127.0.0.1:{upstream}; keepalive 512; }}
  server {{
    listen 127.0.0.1:{port} backlog=4096 {tls};
    location / {{
      proxy_pass http://engine; proxy_http_version 1.1;
      proxy_set_header Connection ""; proxy_buffering off; proxy_read_timeout 1h;
    }}
  }}
}}
"""

HAPROXY_CONFIG = """
global
  nbthread 1
  maxconn 4096
defaults
  mode http
  option http-no-delay
  timeout connect 5s
  timeout client 1h
  timeout server 1h
frontend clients
  bind 127.0.0.1:{port} backlog 4096 {tls}
  default_backend engine
backend engine
  http-reuse always
  server engine 127.0.0.1:{upstream}
"""


@contextlib.contextmanager
def nginx(upstream: int, tls: Certificate | None = None) -> Iterator[tuple[int, int]]:
    """nginx with `proxy_buffering off`: its worker's pid and its port."""
    port = _free_port()
    with tempfile.TemporaryDirectory() as folder:
        listen = ""
        if tls:
            listen = f"ssl; ssl_certificate {tls.cert}; ssl_certificate_key {tls.key}"
        config = NGINX_CONFIG.format(
            folder=folder, upstream=upstream, port=port, tls=listen
        )
        path = Path(folder, "nginx.conf")
        path.write_text(config)
        with _running(["nginx", "-p", folder, "-c", str(path)], port) as process:
            yield _until(lambda: _child_of(process.pid)), port


@contextlib.contextmanager
def haproxy(upstream: int, tls: Certificate | None = None) -> Iterator[tuple[int, int]]:
    """HAProxy with `http-no-delay`: its pid and its port."""
    port = _free_port()
    with tempfile.TemporaryDirectory() as folder:
        listen = f"ssl crt {tls.both}" if tls else ""
        config = HAPROXY_CONFIG.format(upstream=upstream, port=port, tls=listen)
        path = Path(folder, "haproxy.cfg")
        path.write_text(config)
        with _running([_haproxy(), "-q", "-db", "-f", str(path)], port) as process:
            yield process.pid, port


def _haproxy() -> str:
    """Debian keeps it out of the path of ordinary users."""
    return shutil.which("haproxy") or "/usr/sbin/haproxy"


INSTALLED: dict[str, Callable[..., contextlib.AbstractContextManager[tuple[int, int]]]]
INSTALLED = {
    name: start
    for name, start in (("nginx", nginx), ("haproxy", haproxy))
    if shutil.which(name) or Path("/usr/sbin", name).exists()
}
"""What can be started here, by name."""


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


@contextlib.contextmanager
def _running(command: list[str], port: int) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(command)
    try:
        _until(lambda: _answers(port))
        yield process
    finally:
        process.terminate()
        process.wait()


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _child_of(pid: int) -> int:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return int(children[0]) if children else 0


def _until(ready: Callable[[], T]) -> T:
    for _ in range(500):
        if found := ready():
            return found
        time.sleep(0.01)
    raise SystemExit("a reverse proxy did not start")
