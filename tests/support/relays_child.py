"""Two relays before one meter, with little patience for one that hangs.

    python -m tests.support.relays_child ENGINE_URL SILENT_TURNS

Serves on free ports and prints its addresses, until its standard input closes.
"""

import json
import sys

from proxy.process.logs import log_to_stderr
from proxy.serve.config import ServeConfig, UpstreamConfig
from proxy.serve.processes import run_processes

log_to_stderr("info", "text")
run_processes(
    ServeConfig(
        (UpstreamConfig("vllm", sys.argv[1], power=("none",)),),
        listen=("127.0.0.1", 0),
        admin=("127.0.0.1", 0),
        relays=2,
        drain_delay_seconds=0,
    ),
    lambda addresses: print(json.dumps(addresses), flush=True),
    until_eof=True,
    silent_turns=int(sys.argv[2]),
)
