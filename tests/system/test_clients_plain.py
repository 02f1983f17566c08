"""curl, httpx and the standard library, unchanged: the proxy is not to be noticed."""

from __future__ import annotations

import http.client
import json
import shutil
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from tests.support.both_ways import (
    MODEL,
    Ask,
    Asked,
    Ways,
    ask_both,
    assert_as_recorded,
    both_ways,
    plain,
)
from tests.support.children import post, record_of

TOKENS = 8
LARGE_WORDS = 10_000
LARGE = "elevenchars " * LARGE_WORDS
"""120 kB: more than one read, sent once the server said `100 Continue`."""

needs_curl = pytest.mark.skipif(
    shutil.which("curl") is None, reason="curl is not installed (Debian: curl)"
)


def body(words: str = "five words for the model", **more: Any) -> bytes:
    fields = {
        "model": MODEL, "max_tokens": TOKENS, "ignore_eos": True,
        "messages": [{"role": "user", "content": words}],
    }  # fmt: skip
    return json.dumps(fields | more).encode()


def seen(text: str) -> Any:
    """What a reply says: an object, or the events of a stream."""
    if not text.startswith(("data:", ":")):
        return plain(json.loads(text))
    events = [part.removeprefix("data: ") for part in text.strip().split("\n\n")]
    assert events[-1] == "[DONE]"
    return [plain(json.loads(event)) for event in events[:-1]]


# --- curl ---------------------------------------------------------------------


def curl(*arguments: str, given: bytes | None = None) -> str:
    done = subprocess.run(
        ["curl", "-sS", "--noproxy", "*", "--max-time", "60", *arguments],
        input=given, capture_output=True, check=True,
    )  # fmt: skip
    return done.stdout.decode()


def curl_chat(*arguments: str, **more: Any) -> Ask:
    def ask(url: str, request_id: str) -> Any:
        # the file is standard input: a large body is no argument
        text = curl(
            f"{url}/v1/chat/completions", *arguments, "--data-binary", "@-",
            "-H", "content-type: application/json", "-H", f"x-request-id: {request_id}",
            given=body(**more),
        )  # fmt: skip
        return seen(text)

    return ask


def curl_twice(url: str, request_id: str) -> Any:
    """Two URLs in one go, which curl serves with one connection if it may."""
    target = f"{url}/v1/chat/completions"
    marks = "\n%{http_code} %{num_connects}\n"
    header = ["-H", "content-type: application/json"]
    first, second = body(), body(stream=True)
    text = curl(
        target, *header, "-H", f"x-request-id: {request_id}", "-w", marks,
        "-d", first.decode(), "--next", "-sS", "--noproxy", "*",
        target, *header, "-H", f"x-request-id: {request_id}-next", "-w", marks,
        "-d", second.decode(),
    )  # fmt: skip
    one, first_mark, rest = text.split("\n", 2)
    events, _, second_mark = rest.rstrip("\n").rpartition("\n")
    return {
        "one": seen(one), "first": first_mark, "two": seen(events),
        "second": second_mark,
    }  # fmt: skip


CURL: dict[str, Ask] = {
    "curl": curl_chat(),
    "curl-stream": curl_chat("-N", stream=True),
    "curl-1.0": curl_chat("--http1.0"),
    "curl-1.0-stream": curl_chat("--http1.0", "-N", stream=True),
    "curl-h2-offered": curl_chat("--http2", "-N", stream=True),
    "curl-chunked": curl_chat("-H", "transfer-encoding: chunked"),
    "curl-expect": curl_chat("-H", "expect: 100-continue", words=LARGE),
    "curl-compressed": curl_chat("--compressed"),
    "curl-close": curl_chat("-H", "connection: close", stream=True),
    "curl-twice": curl_twice,
}

# --- Python -------------------------------------------------------------------


def with_httpx(url: str, request_id: str, **more: Any) -> Any:
    headers = {"content-type": "application/json", "x-request-id": request_id}
    reply = post(
        f"{url}/v1/chat/completions", content=body(**more), headers=headers, timeout=60
    )
    return [reply.status_code, reply.headers["content-type"], seen(reply.text)]


def with_httpx_stream(url: str, request_id: str) -> Any:
    headers = {"content-type": "application/json", "x-request-id": request_id}
    with httpx.stream(
        "POST", f"{url}/v1/chat/completions", content=body(stream=True),
        headers=headers, timeout=60,
    ) as reply:  # fmt: skip
        return seen("\n".join(reply.iter_lines()))


def with_urllib(url: str, request_id: str, **more: Any) -> Any:
    request = urllib.request.Request(
        f"{url}/v1/chat/completions",
        data=body(**more),
        headers={"content-type": "application/json", "x-request-id": request_id},
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as reply:
            return [reply.status, seen(reply.read().decode())]
    except urllib.error.HTTPError as error:
        with error:
            return [error.code, seen(error.read().decode())]


def with_parts(url: str, request_id: str) -> Any:
    """A body of unknown length, as from a generator."""
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=60)
    whole = body(stream=True)
    connection.request(
        "POST", "/v1/chat/completions",
        body=iter([whole[:7], whole[7:60], whole[60:]]),
        headers={"content-type": "application/json", "x-request-id": request_id},
        encode_chunked=True,
    )  # fmt: skip
    try:
        return seen(connection.getresponse().read().decode())
    finally:
        connection.close()


PYTHON: dict[str, Ask] = {
    "httpx": with_httpx,
    "httpx-stream": with_httpx_stream,
    "urllib": with_urllib,
    "urllib-stream": lambda url, name: with_urllib(url, name, stream=True),
    "http.client-parts": with_parts,
}
REFUSED: dict[str, Ask] = {
    "httpx-refused": lambda url, name: with_httpx(url, name, max_tokens=0),
    "urllib-refused": lambda url, name: with_urllib(url, name, model="no-such"),
}


@pytest.fixture(scope="module")
def ways(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ways]:
    with both_ways(tmp_path_factory.mktemp("plain"), "vllm") as ways:
        yield ways


@pytest.fixture(scope="module")
def served(ways: Ways) -> dict[str, Asked]:
    curls = CURL if shutil.which("curl") else {}
    return ask_both(ways, curls | PYTHON | REFUSED)


def assert_same(asked: Asked) -> None:
    """Equal but for vLLM's fingerprint, which goes with the usage event taken out."""
    for reply in (asked.direct, asked.proxied):
        forget_fingerprint(reply)
    assert asked.proxied == asked.direct


def forget_fingerprint(value: Any) -> None:
    parts = value.values() if isinstance(value, dict) else value
    if isinstance(value, dict):
        value.pop("system_fingerprint", None)
    if isinstance(value, dict | list):
        for part in list(parts):
            forget_fingerprint(part)


@needs_curl
@pytest.mark.parametrize("name", CURL)
def test_curl_gets_the_same_and_is_recorded(
    served: dict[str, Asked], name: str
) -> None:
    assert_same(served[name])
    prompt = LARGE_WORDS if name == "curl-expect" else 5
    assert_as_recorded(
        served[name], outcome="ok", status=200, prompt_tokens=prompt,
        output_tokens=TOKENS,
    )  # fmt: skip


@needs_curl
def test_curl_keeps_its_connection_for_the_next_url(
    ways: Ways, served: dict[str, Asked]
) -> None:
    reply = served["curl-twice"].proxied
    assert (reply["first"], reply["second"]) == ("200 1", "200 0")
    assert record_of(ways.admin, "curl-twice-next")["output_tokens"] == TOKENS


@needs_curl
def test_curl_head_and_health_are_as_the_engine_has_them(ways: Ways) -> None:
    for path in ("/health", "/v1/models", "/version"):
        heads = [
            curl("-I", "-o", "/dev/null", "-w", "%{http_code} %{size_download}", base)
            for base in (f"{ways.direct}{path}", f"{ways.proxied}{path}")
        ]
        assert heads[0] == heads[1]
        pages = [curl(f"{base}{path}") for base in (ways.direct, ways.proxied)]
        assert pages[0] == pages[1]


@needs_curl
def test_curl_may_leave_in_the_middle(ways: Ways) -> None:
    done = subprocess.run(
        ["curl", "-sSN", "--noproxy", "*", "--max-time", "0.5",
         f"{ways.proxied}/v1/chat/completions", "-H", "content-type: application/json",
         "-H", "x-request-id: curl-left", "-d",
         body(stream=True, max_tokens=5000).decode()],
        capture_output=True, check=False,
    )  # fmt: skip
    assert done.returncode == 28  # curl's own timeout
    record = record_of(ways.admin, "curl-left")
    assert record["outcome"] == "aborted"
    assert record["energy"]["energy_joules"] > 0


@pytest.mark.parametrize("name", PYTHON)
def test_python_gets_the_same_and_is_recorded(
    served: dict[str, Asked], name: str
) -> None:
    assert_same(served[name])
    assert_as_recorded(
        served[name], outcome="ok", status=200, prompt_tokens=5, output_tokens=TOKENS
    )


@pytest.mark.parametrize("name", REFUSED)
def test_refusals_keep_their_status_and_words(
    served: dict[str, Asked], name: str
) -> None:
    assert_same(served[name])
    status = served[name].proxied[0]
    assert status in (400, 404)
    assert_as_recorded(served[name], outcome="error", status=status)
