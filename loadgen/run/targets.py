"""`--metrics-targets`: a run's port in a file of targets, while the port is open.

The file has the form of Prometheus' `file_sd_configs`. Without it a target that is
there during runs alone looks down in between.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

import msgspec

from loadgen.errors import UsageError
from proxy.process.files import os_reason, readable_name, whole_file

SUFFIXES = (".json", ".yml", ".yaml")
"""Other files are not read by Prometheus; JSON is YAML too."""
ANYWHERE = ("0.0.0.0", "::")


def check_targets(path: Path | None, port: str | None) -> None:
    """Raises UsageError for a file that Prometheus would not read, or no port."""
    if path is None:
        return
    name = readable_name(str(path))
    if port is None:
        raise UsageError(
            f"--metrics-targets {name} names a port, and there is none; "
            "give --metrics-port too"
        )
    if path.suffix not in SUFFIXES:
        raise UsageError(
            f"--metrics-targets {name}: Prometheus reads files that end with "
            f"{', '.join(SUFFIXES)}; name one of them"
        )
    if not path.parent.is_dir():
        raise UsageError(
            f"--metrics-targets {name}: there is no folder "
            f"{readable_name(str(path.parent))}; make it first"
        )


@contextmanager
def listed(path: Path | None, url: str | None) -> Iterator[None]:
    """Keep the metrics at `url` in the file at `path` while the block runs.

    One listening on every address is named by this machine's name. Raises UsageError
    where the file cannot be written.
    """
    if path is None or url is None:
        yield
        return
    at = urlsplit(url)
    host = socket.gethostname() if at.hostname in ANYWHERE else at.hostname
    shown = f"[{host}]" if host and ":" in host else host
    content = msgspec.json.encode([{"targets": [f"{shown}:{at.port}"]}])
    try:
        with whole_file(path, mode=0o644) as file:  # another user's Prometheus reads it
            file.write(content)
    except OSError as error:
        name = readable_name(str(path))
        raise UsageError(
            f"--metrics-targets {name} cannot be written: {os_reason(error)}; "
            "name another file"
        ) from None
    try:
        yield
    finally:
        with suppress(OSError):
            # the next run of that name may have begun
            if path.read_bytes() == content:
                path.unlink()
