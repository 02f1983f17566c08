"""A proxy's archive alone, for tests that kill it: files records without end.

Arguments: database URL, upstream. Prints how many are written, each time that
changes; stays as far ahead of the database as a busy proxy does.
"""

from __future__ import annotations

import sys
import time
from itertools import count

from sqlalchemy import make_url

from proxy.store.archive import Archive
from proxy.store.writer import WriterBounds
from tests.support.stored_records import record


def main(url: str, upstream: str) -> None:
    """Until killed."""
    archive = Archive(
        make_url(url),
        upstream=upstream,
        bounds=WriterBounds(batch_records=50, batch_seconds=0.02),
    )
    archive.start()
    written = -1
    for number in count(1):
        archive.add([record(number)])
        time.sleep(0.0001)
        state = archive.state()
        assert state is not None
        if state.written_total != written:
            written = state.written_total
            print(number, written, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
