"""What keeping records costs: microseconds per record on the event loop, records/s.

    python benchmarks/store_cost.py [--store URL] [--records 100000]

`loop` is what the proxy's event loop does for each settled record: number it, keep it
in memory, append it to the writer's queue. `write` is the writer's thread putting a
full queue into the database, transaction by transaction, with the database's share
apart. `journal` is what a request's two lines in the file of unstored requests cost: on
the loop, and on the thread that writes them. `read` is paging through all of it as
`/requests` does. Without --store, a SQLite file in a temporary folder.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from sqlalchemy import URL

from proxy.meter.ledger import RequestEnergy, RequestRecord
from proxy.store.address import Retention, sqlite_url, store_url
from proxy.store.archive import Archive
from proxy.store.database import Database
from proxy.store.journal import Journal
from proxy.store.stored_record import StoredRecord, row_of
from proxy.store.writer import BATCH_RECORDS, RecordWriter, WriterBounds
from proxy.wire.events import RequestOpened
from proxy.wire.facts import Labels, RequestFacts

PER_BEAT = 5
"""Settled together: 100 requests a second at 20 beats a second."""
PAGE = 5000


def made(number: int) -> RequestRecord:
    return RequestRecord(
        request_id=f"{number:032x}", route="/v1/chat/completions",
        model="meta-llama/Llama-3.1-8B-Instruct", kind="conversation", tenant="none",
        outcome="ok", error=None, status=200, arrived_seconds=number / 100,
        scheduled_seconds=number / 100 + 0.01, first_token_seconds=number / 100 + 0.1,
        last_token_seconds=number / 100 + 5, finished_seconds=number / 100 + 5.01,
        prompt_tokens=1000, cached_tokens=0, output_tokens=250,
        energy=RequestEnergy(
            30.1, 120.2, 40.3, 190.6, "phase", "exact",
            {"equal": 149.9, "tokens": 151.2, "phase": 150.3, "calibrated": 150.1},
        ),
    )  # fmt: skip


def loop_seconds(records: list[RequestRecord], url: URL) -> tuple[float, float]:
    """CPU for each record, with a writer that is never started and without one."""
    found = []
    for store in (url, None):
        archive = Archive(store, upstream="loop")
        began = time.process_time()
        for first in range(0, len(records), PER_BEAT):
            archive.add(records[first : first + PER_BEAT])
        found.append((time.process_time() - began) / len(records))
    return found[0], found[1]


def write_seconds(records: list[RequestRecord], url: URL) -> tuple[float, float]:
    """Wall time for each record: all of it, and making rows of them alone."""
    now = int(time.time() * 1e6)
    stored = [StoredRecord(now + n, 1.7e9, record) for n, record in enumerate(records)]
    began = time.perf_counter()
    for one in stored:
        row_of(one)
    rows = time.perf_counter() - began
    database = Database(url, "write", "run")
    bounds = WriterBounds(queue_records=len(records))
    writer = RecordWriter(database, Retention(None, None), bounds=bounds)
    writer.turn()
    writer.add(stored)
    began = time.perf_counter()
    writer.turn()
    whole = time.perf_counter() - began
    state = writer.state()
    assert state.written_total == len(records), state
    database.close()
    return whole / len(records), rows / len(records)


def journal_seconds(records: list[RequestRecord], folder: Path) -> tuple[float, float]:
    """CPU for each request: on the event loop, and in the thread."""
    journal = Journal(folder / "journal", "run", "phase")
    facts = RequestFacts("chat")
    opened = [
        RequestOpened(number, 0.0, record.request_id, facts, Labels(record.model))
        for number, record in enumerate(records, 1)
    ]
    ended = [replace(record, key=n) for n, record in enumerate(records, 1)]
    loop = thread = 0.0
    for first in range(0, len(records), PER_BEAT):
        began = time.process_time()
        for event, record in zip(
            opened[first : first + PER_BEAT], ended[first : first + PER_BEAT],
            strict=True,
        ):  # fmt: skip
            journal.add("", event)
            journal.end(record)
        between = time.process_time()
        journal.forget([("", event.key) for event in opened[first : first + PER_BEAT]])
        journal.turn()
        loop += between - began
        thread += time.process_time() - between
    return loop / len(records), thread / len(records)


def read_seconds(records: int, url: URL) -> float:
    """Wall time for each record, in pages as large as the load generator's."""
    archive = Archive(url, upstream="write")
    since = read = 0
    began = time.perf_counter()
    while body := asyncio.run(archive.lines(since, PAGE)):
        lines = body.splitlines()
        read += len(lines)
        since = int(lines[-1].partition(b'"sequence":')[2].partition(b",")[0])
    assert read == records, read
    return (time.perf_counter() - began) / records


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--store", help="a database that may be filled")
    parser.add_argument("--records", type=int, default=100_000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "records.sqlite"
        url = store_url(options.store or sqlite_url(path))
        records = [made(number) for number in range(options.records)]
        stored, memory = loop_seconds(records, url)
        write, rows = write_seconds(records, url)
        read = read_seconds(len(records), url)
        print(f"{url.get_backend_name()}, {len(records)} records")
        print(
            f"loop   {stored * 1e6:6.2f} us/record CPU "
            f"(memory only: {memory * 1e6:.2f})"
        )
        print(
            f"write  {write * 1e6:6.1f} us/record, {1 / write:,.0f} records/s in "
            f"batches of {BATCH_RECORDS} (making rows: {rows * 1e6:.1f} us)"
        )
        on_loop, on_thread = journal_seconds(records, Path(folder))
        print(
            f"journal {on_loop * 1e6:5.2f} us/request CPU on the loop, "
            f"{on_thread * 1e6:.2f} on its thread"
        )
        print(f"read   {read * 1e6:6.1f} us/record, {1 / read:,.0f} records/s")
        if path.exists():
            print(f"size   {path.stat().st_size / len(records):6.0f} bytes/record")


if __name__ == "__main__":
    main()
