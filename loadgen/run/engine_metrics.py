"""The engine's own metrics, scraped beside a run and kept in its folder.

`engine_metrics.jsonl` has a line per scrape: the instant, then every sample of the
page by its name with labels. The buckets of histograms are in the first and the last
line only, for they are most of the page. What the engine does not tell costs nothing:
there is no file then.
"""

from __future__ import annotations

import math
import threading
import time
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import msgspec
from prometheus_client.parser import text_string_to_metric_families

from proxy.process.files import PRIVATE, whole_file
from proxy.process.http_get import GetError, Getter

FILE = "engine_metrics.jsonl"
EVERY_SECONDS = 5.0
BACKENDS = ("tgi", "vllm")
"""Engines that have a page of metrics, at `/metrics`."""


class Scrape(msgspec.Struct, frozen=True, kw_only=True):
    """One line of the file."""

    unix_seconds: float
    samples: dict[str, float]
    """By name and labels, as in the page; a value that is no number is left out."""


def samples_of(page: str, *, with_buckets: bool) -> dict[str, float]:
    """Samples of a page in Prometheus' text format. Raises ValueError."""
    found: dict[str, float] = {}
    for family in text_string_to_metric_families(page):
        for sample in family.samples:
            if sample.name.endswith("_created"):
                continue
            if sample.name.endswith("_bucket") and not with_buckets:
                continue
            if math.isfinite(sample.value):
                found[_key(sample.name, sample.labels)] = sample.value
    return found


def _key(name: str, labels: Mapping[str, str]) -> str:
    if not labels:
        return name
    inner = ",".join(f'{key}="{value}"' for key, value in labels.items())
    return f"{name}{{{inner}}}"


@contextmanager
def scraping(
    url: str | None,
    path: Path,
    headers: Mapping[str, str] | None = None,
    every_seconds: float = EVERY_SECONDS,
) -> Iterator[None]:
    """Scrape an engine's page at `url` while the block runs, then write the file."""
    if url is None:
        yield
        return
    pages: list[tuple[float, bytes]] = []
    ended = threading.Event()

    def work() -> None:
        with Getter(headers=headers) as getter:
            while True:
                try:
                    reply = getter.get(url)
                    if reply.status == 200:
                        pages.append((time.time(), zlib.compress(reply.body)))
                except GetError:
                    pass  # it is busy, or tells nothing: the run is not about this
                if ended.is_set() or (ended.wait(every_seconds) and not pages):
                    return

    thread = threading.Thread(target=work, name="engine-metrics", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        with suppress(OSError):  # an extra: the run is kept without it
            _write(path, pages)


def _write(path: Path, pages: list[tuple[float, bytes]]) -> None:
    """Parsed after the run, for parsing a page takes milliseconds of the load's."""
    lines = []
    for number, (unix_seconds, page) in enumerate(pages):
        is_edge = number in (0, len(pages) - 1)
        try:
            text = zlib.decompress(page).decode("utf-8", "replace")
            samples = samples_of(text, with_buckets=is_edge)
        except ValueError:
            continue  # not a page of metrics
        if samples:
            scrape = Scrape(unix_seconds=round(unix_seconds, 3), samples=samples)
            lines.append(msgspec.json.encode(scrape) + b"\n")
    if lines:
        with whole_file(path, mode=PRIVATE) as file:
            file.writelines(lines)
