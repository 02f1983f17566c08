"""`metering-proxy upstreams`, where nothing answers; the rest is in test_fleet.py."""

from __future__ import annotations

import socket

import pytest
from click.testing import CliRunner

from proxy.commands.upstreams import upstreams
from proxy.errors import ProxyError


def test_a_proxy_that_does_not_run_is_told_with_the_way_out() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening: refuses
        admin = f"http://127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(ProxyError, match=r"/upstreams: nobody answers .* --admin"):
            CliRunner().invoke(upstreams, ["--admin", admin], catch_exceptions=False)
