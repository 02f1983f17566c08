"""Downloads of public originals: stream, resume, check.

The edge of the catalogue. Bytes go to `<file>.part` and get their name when their
sha256 is right, so a file that exists is the published one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import httpx

from loadgen.errors import LoadgenError, UsageError
from loadgen.traces.catalogue import CATALOGUE, Original
from loadgen.traces.readers.open import sha256_of

TIMEOUT_SECONDS = 30.0
"""Without a byte; a slow download is not a failed one."""

Progress = Callable[[int, int | None], None]
"""Called with bytes so far and bytes in all, where the server states them."""


def find(name: str, catalogue: Mapping[str, Original] = CATALOGUE) -> Original:
    """The original of that name; `UsageError` lists the names there are."""
    if name not in catalogue:
        raise UsageError(f"unknown original {name!r}; known: {', '.join(catalogue)}")
    return catalogue[name]


def fetch(
    original: Original,
    out: Path,
    progress: Progress = lambda done, total: None,
) -> bool:
    """Download `original` to `out`; False if it was there already, and right.

    An interrupted download is resumed where the server supports ranges. Raises
    `LoadgenError` for a server that refuses, a connection that breaks, bytes that
    are not the published ones, and a different file under that name.
    """
    if out.exists():
        if sha256_of(out) == original.sha256:
            return False
        raise LoadgenError(
            f"{out} exists and is not the published file: remove it, or name another "
            "place with -o"
        )
    part = out.with_name(out.name + ".part")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        _download(original, part, progress)
        found = sha256_of(part)
    except httpx.HTTPError as error:
        kept = part.stat().st_size if part.exists() else 0
        raise LoadgenError(
            f"{original.url}: {error or type(error).__name__}; {kept} bytes are kept, "
            "run the command again to go on"
        ) from None
    except OSError as error:
        raise LoadgenError(f"{part}: cannot be written: {error.strerror}") from None
    if found != original.sha256:
        part.unlink()
        raise LoadgenError(
            f"{original.url}: sha256 is {found}, expected {original.sha256}; "
            "the download was removed"
        )
    part.rename(out)
    return True


def _download(original: Original, part: Path, progress: Progress) -> None:
    """Download the missing part of the file, resuming the last attempt."""
    done = part.stat().st_size if part.exists() else 0
    # The published bytes are what is hashed: no server may compress them.
    headers = {"accept-encoding": "identity"}
    if done:
        headers["range"] = f"bytes={done}-"
    with (
        httpx.Client(timeout=TIMEOUT_SECONDS, follow_redirects=True) as client,
        client.stream("GET", original.url, headers=headers) as response,
    ):
        is_rest = response.status_code == httpx.codes.PARTIAL_CONTENT
        is_all_there = (
            response.status_code == httpx.codes.REQUESTED_RANGE_NOT_SATISFIABLE
        )
        if done and is_all_there:
            return  # the sha256 decides whether it is
        if response.status_code != httpx.codes.OK and not is_rest:
            raise LoadgenError(
                f"{original.url}: the server answered {response.status_code} "
                f"{response.reason_phrase}"
            )
        if is_rest and not _starts_at(response, done):
            raise LoadgenError(
                f"{original.url}: asked to go on at byte {done}, the server sent "
                f"{response.headers.get('content-range')!r}; remove {part}"
            )
        done = done if is_rest else 0
        length = response.headers.get("content-length")
        total = done + int(length) if length else original.size_bytes
        with part.open("ab" if is_rest else "wb") as file:
            for chunk in response.iter_raw():
                file.write(chunk)
                done += len(chunk)
                progress(done, total)


def _starts_at(response: httpx.Response, byte: int) -> bool:
    found = str(response.headers.get("content-range", ""))
    return found.replace("=", " ").startswith(f"bytes {byte}-")
