"""What an export of records costs: seconds and megabytes at most.

    python benchmarks/export_cost.py [--records 1000000]

A SQLite store of so many records is filled in a temporary folder, then exported by
`metering-proxy records export` in a process of its own.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from proxy.store.address import sqlite_url, store_url
from proxy.store.database import Database
from proxy.store.stored_record import StoredRecord, row_of
from tests.support.stored_records import record

BATCH = 10_000


def fill(url: str, count: int) -> None:
    database = Database(store_url(url), "http://engine", "run", None, {"vllm": "gpu"})
    database.open()
    row = row_of(StoredRecord(1, 1.7e9, record(1)))
    for first in range(0, count, BATCH):
        database.write(
            [
                {**row, "sequence": number, "request_id": f"{number:032x}"}
                for number in range(first, min(first + BATCH, count))
            ]
        )
    database.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--records", type=int, default=1_000_000)
    count = parser.parse_args().records
    with tempfile.TemporaryDirectory() as name:
        url = sqlite_url(Path(name) / "records.sqlite")
        fill(url, count)
        out = Path(name) / "records.parquet"
        began = time.perf_counter()
        subprocess.run(
            [sys.executable, "-m", "proxy", "records", "export", "--store", url,
             "--parquet", str(out)],
            check=True, env=os.environ,
        )  # fmt: skip
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        print(
            f"{count:,} records: {time.perf_counter() - began:.1f} s, "
            f"{used.ru_utime + used.ru_stime:.1f} s of CPU, at most "
            f"{used.ru_maxrss / 1024:.0f} MB, file {out.stat().st_size / 1e6:.1f} MB"
        )


if __name__ == "__main__":
    main()
