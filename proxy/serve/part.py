"""`python -m proxy.serve.part meter|relay-1`: one process of a proxy of several.

Its arguments only name it for whoever lists processes; what it is to do comes by
standard input. That it serves it says on standard output, and from then on, each
second, that its loop still turns.
"""

from __future__ import annotations

import asyncio
import json
import os
import pickle
from typing import Any, NoReturn

from proxy.errors import ProxyError
from proxy.process.arithmetic import import_numpy_on_one_thread
from proxy.process.logs import log_to_stderr
from proxy.process.terminal import run_command
from proxy.serve.heartbeat import beat, end_after_lease
from proxy.serve.orders import LENGTH_BYTES
from proxy.serve.parts import HUNG_SECONDS, Job, MeterPart


def main() -> NoReturn:
    """Do the job; every expected failure is one line and an exit code."""
    run_command("metering-proxy", _work, ProxyError)


def _work() -> None:
    answers = os.dup(1)
    os.dup2(2, 1)  # what a library prints is no answer
    job: Job = pickle.loads(_read(int.from_bytes(_read(LENGTH_BYTES), "big")))
    config, part = job.config, job.part
    log_to_stderr(config.log_level, config.log_format)
    import_numpy_on_one_thread()

    end_after_lease(
        config.drain_delay_seconds + config.drain_timeout_seconds + HUNG_SECONDS
    )
    beats: list[asyncio.Task[None]] = []

    def announce(addresses: dict[str, Any]) -> None:
        os.write(answers, json.dumps(addresses).encode() + b"\n")
        beats.append(asyncio.get_running_loop().create_task(beat(answers)))

    if isinstance(part, MeterPart):
        from proxy.serve.app import run_process
        from proxy.serve.link_folder import LinkFolder, remove_left_over

        folder = LinkFolder.held(os.path.dirname(part.path))
        try:
            run_process(config, announce, until_eof=True, part=part)
        finally:
            if folder is not None:
                folder.release()
                remove_left_over()  # where the process that made it was killed
    else:
        from proxy.serve.relay_process import run_relay

        run_relay(config, announce, part)


def _read(size: int) -> bytes:
    """So many bytes of standard input; whoever should write them may be gone."""
    data = b""
    while len(data) < size:
        more = os.read(0, size - len(data))
        if not more:
            raise ProxyError("the process that started this one has ended")
        data += more
    return data


if __name__ == "__main__":
    main()
