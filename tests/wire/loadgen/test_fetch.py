"""Fetching originals from a server that is slow to be right: resume, check, refuse."""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from loadgen.errors import LoadgenError, UsageError
from loadgen.traces.catalogue import CATALOGUE, Original, by_sha256
from loadgen.traces.fetch import fetch, find
from tests.support.trace_files import REAL

BODY = bytes(range(256)) * 400


class Server(ThreadingHTTPServer):
    """Serves BODY, as well as it is told to."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.ranges: list[str | None] = []
        self.knows_ranges = True
        self.cut_at: int | None = None
        self.status: int | None = None
        self.wrong_offset = False

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/data/trace.csv"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        server = self.server
        asked = self.headers.get("Range")
        server.ranges.append(asked)
        if server.status is not None:
            self.send_error(server.status)
            return
        start = 0
        found = re.fullmatch(r"bytes=(\d+)-", asked or "")
        if found and server.knows_ranges:
            start = int(found[1])
            if start >= len(BODY):
                self.send_error(416)
                return
            self.send_response(206)
            told = 0 if server.wrong_offset else start
            self.send_header(
                "Content-Range", f"bytes {told}-{len(BODY) - 1}/{len(BODY)}"
            )
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(len(BODY) - start))
        self.end_headers()
        self.wfile.write(BODY[start : server.cut_at])

    def log_message(self, format: str, *args: object) -> None:
        """Keep the tests' output clean."""


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.01,))
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def original(server: Server, sha256: str | None = None) -> Original:
    return Original(
        url=server.url,
        sha256=sha256 or hashlib.sha256(BODY).hexdigest(),
        licence="CC-BY-4.0",
        citation="Nobody et al.",
        about="bytes",
    )


def test_a_file_is_fetched_checked_and_shown(server: Server, tmp_path: Path) -> None:
    out, seen = tmp_path / "new" / "trace.csv", list[tuple[int, int | None]]()
    assert fetch(original(server), out, lambda done, all: seen.append((done, all)))
    assert out.read_bytes() == BODY
    assert seen[-1] == (len(BODY), len(BODY))
    assert [p.name for p in out.parent.iterdir()] == ["trace.csv"]


def test_what_is_there_is_not_fetched_again(server: Server, tmp_path: Path) -> None:
    out = tmp_path / "trace.csv"
    out.write_bytes(BODY)
    assert not fetch(original(server), out)
    assert server.ranges == []


def test_another_file_of_that_name_is_kept(server: Server, tmp_path: Path) -> None:
    out = tmp_path / "trace.csv"
    out.write_bytes(b"mine")
    with pytest.raises(LoadgenError, match="exists and is not the published file"):
        fetch(original(server), out)
    assert out.read_bytes() == b"mine"


def test_a_download_cut_short_goes_on_where_it_ended(
    server: Server, tmp_path: Path
) -> None:
    out = tmp_path / "trace.csv"
    server.cut_at = 70_000
    with pytest.raises(LoadgenError, match="70000 bytes are kept, run the command aga"):
        fetch(original(server), out)
    assert not out.exists()
    server.cut_at = None
    assert fetch(original(server), out)
    assert out.read_bytes() == BODY
    assert server.ranges == [None, "bytes=70000-"]


def test_a_server_without_ranges_starts_over(server: Server, tmp_path: Path) -> None:
    out = tmp_path / "trace.csv"
    (tmp_path / "trace.csv.part").write_bytes(b"x" * 500)
    server.knows_ranges = False
    assert fetch(original(server), out)
    assert out.read_bytes() == BODY


def test_a_part_that_is_the_whole_needs_nothing_more(
    server: Server, tmp_path: Path
) -> None:
    out = tmp_path / "trace.csv"
    (tmp_path / "trace.csv.part").write_bytes(BODY)
    assert fetch(original(server), out)
    assert out.read_bytes() == BODY


def test_a_server_that_goes_on_elsewhere_is_not_believed(
    server: Server, tmp_path: Path
) -> None:
    (tmp_path / "trace.csv.part").write_bytes(BODY[:10])
    server.wrong_offset = True
    with pytest.raises(
        LoadgenError, match="asked to go on at byte 10, the server sent"
    ):
        fetch(original(server), tmp_path / "trace.csv")


def test_wrong_bytes_are_refused_and_removed(server: Server, tmp_path: Path) -> None:
    with pytest.raises(
        LoadgenError, match=r"sha256 is \w{64}, expected 0{64}; the dow"
    ):
        fetch(original(server, "0" * 64), tmp_path / "trace.csv")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("status", [404, 500])
def test_a_refusal_names_the_url_and_the_answer(
    server: Server, tmp_path: Path, status: int
) -> None:
    server.status = status
    with pytest.raises(LoadgenError, match=f"trace.csv: the server answered {status}"):
        fetch(original(server), tmp_path / "trace.csv")
    assert list(tmp_path.iterdir()) == []


def test_a_server_that_is_not_there_is_one_clear_line(tmp_path: Path) -> None:
    with Server() as gone:
        url = gone.url
    missing = Original(url, "0" * 64, "", "", "")
    with pytest.raises(LoadgenError, match="0 bytes are kept, run the command again"):
        fetch(missing, tmp_path / "trace.csv")


def test_a_place_that_cannot_be_written_is_one_clear_line(
    server: Server, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(LoadgenError, match="cannot be written"):
        fetch(original(server), tmp_path / "file" / "trace.csv")


def test_an_unknown_name_lists_the_known() -> None:
    with pytest.raises(
        UsageError, match="unknown original 'x'; known: azure-2023-conv"
    ):
        find("x")


@pytest.mark.parametrize("name", CATALOGUE)
def test_every_original_says_how_to_check_and_cite_it(name: str) -> None:
    found = CATALOGUE[name]
    assert re.fullmatch(r"[0-9a-f]{64}", found.sha256)
    assert found.url.startswith("https://")
    assert found.licence in {"CC-BY-4.0", "Apache-2.0", "MIT"}
    assert len(found.citation) > 20
    assert by_sha256(found.sha256) is found


@pytest.mark.data
def test_checksums_are_those_of_the_published_files() -> None:
    readme = REAL / "README.md"
    if not readme.exists():
        pytest.skip("../shared/data/README.md is not there")
    text = readme.read_text() + (REAL.parent / "reference" / "traces.md").read_text()
    for name, found in CATALOGUE.items():
        assert found.sha256 in text, name
        assert found.commit in text, name
