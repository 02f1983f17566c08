"""What a run ran on: versions and sizes, no name of a host or a user."""

from __future__ import annotations

import os
import platform
from importlib import metadata as packages

from loadgen import __version__

PACKAGES = ("aiohttp", "httptools", "httpx", "msgspec", "numpy", "uvloop")
"""What can change a measurement; recorded with every run."""


def environment() -> dict[str, str | int | None]:
    """Recorded with every run, because it can change what was measured."""
    found: dict[str, str | int | None] = {
        "servewatt": __version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cpu_count": os.cpu_count(),
    }
    for name in PACKAGES:
        try:
            found[name] = packages.version(name)
        except packages.PackageNotFoundError:
            found[name] = None
    return found
