"""`loadgen worker`: a host that sends a part of the load, see `loadgen.run.worker`."""

from __future__ import annotations

import click

from loadgen.run.config import WorkerConfig
from proxy.process.command import Command, asks_for
from proxy.process.terminal import echo

EXAMPLES = """
\b
Examples:
  loadgen worker --bus nats://bus:4222
  loadgen worker --bus tls://bus:4222 --bus-ca ca.pem --bus-creds load.creds \\
      --name rack7 --runs 1
"""


@click.command(cls=Command, epilog=EXAMPLES)
@asks_for(WorkerConfig)
def worker(config: WorkerConfig) -> int:
    """Send a part of the load of runs that are kept on another host.

    Waits on a NATS server until `loadgen replay --workers N --bus URL` asks for it,
    sends its sessions of that run's plan at the run's own zero, and puts every record
    on the bus. Ctrl-C, or SIGTERM, ends its part of a run as it stands.
    """
    from loadgen.run.worker import run_worker

    return run_worker(config, lambda text: echo(f"loadgen: {text}", err=True))
