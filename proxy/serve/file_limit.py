"""Open files of this process: each request may need two sockets."""

from __future__ import annotations

import logging
import resource

log = logging.getLogger("servewatt.proxy")

OTHER_FILES = 200
"""Sensors, the store, scrapes, logs and libraries."""


def allow_open_files(max_connections: int) -> None:
    """Raise the soft limit as far as it may; say where that is not enough."""
    needed = 2 * max_connections + OTHER_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if hard != resource.RLIM_INFINITY and hard < needed:
        log.warning(
            "only %s open files are allowed, %s connections may need %s: raise the "
            "limit (ulimit -Hn, LimitNOFILE=) or lower --max-connections",
            hard, max_connections, needed,
        )  # fmt: skip
