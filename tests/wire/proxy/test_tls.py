"""TLS on both sides, over real sockets, with certificates made for the test."""

from __future__ import annotations

import asyncio
import shutil
import signal
import ssl
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from click.testing import CliRunner

from proxy.cli import cli
from proxy.errors import ConfigError
from proxy.relay.config import RelayConfig
from proxy.security.tls import Identity, ServerTls, UpstreamTls
from proxy.serve.config import MeterOptions, UpstreamConfig
from proxy.serve.upstream import MeteredUpstream
from proxy.store.archive import Archive
from tests.support.certificates import Authority, Leaf, authority
from tests.support.children import PATIENCE_SECONDS, child
from tests.support.paths import ROOT
from tests.support.relaying import LOOPS, Bench, relaying, run
from tests.support.scripted import (
    DONE,
    LAST_CHUNK,
    Message,
    Peer,
    ScriptedServer,
    chunk,
    reply_bytes,
    request_bytes,
    running,
    sse,
    stream_head,
)

CHAT = b'{"model":"tiny","stream":true,"messages":[]}'
STREAM = [
    sse({"id": "x", "choices": [{"delta": {"content": str(number)}}]})
    for number in range(50)
]
loops = pytest.mark.parametrize("loop", LOOPS)


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return authority(tmp_path_factory.mktemp("ours"))


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return authority(tmp_path_factory.mktemp("other"), "other")


@pytest.fixture(scope="module")
def leaf(ours: Authority) -> Leaf:
    return ours.leaf("leaf")


async def streaming(peer: Peer) -> None:
    while await peer.request() is not None:
        await peer.send(stream_head())
        for event in [*STREAM, DONE]:
            await peer.send(chunk(event))
        await peer.send(LAST_CHUNK)


async def asked(bench: Bench) -> Message:
    client = await bench.client()
    await client.send(request_bytes(body=CHAT))
    return await client.reply()


def trusting(trusted: Authority | None, **more: Any) -> dict[str, Any]:
    ca = None if trusted is None else str(trusted.cert)
    return {"upstream_tls": UpstreamTls(ca, **more)}


# --- the upstream


@loops
def test_the_configured_authority_is_trusted(
    loop: str, ours: Authority, leaf: Leaf
) -> None:
    async def test() -> None:
        tls = leaf.server_context()
        async with relaying(streaming, tls=tls, **trusting(ours)) as bench:
            reply = await asked(bench)
            assert (reply.status, reply.body) == (200, b"".join(STREAM) + DONE)
            assert (await bench.meter.only()).outcome == "ok"

    run(loop, test)


@loops
@pytest.mark.parametrize(
    ("case", "problem"),
    [
        ("wrong authority", "unable to get local issuer certificate"),
        ("system authorities", "unable to get local issuer certificate"),
        ("expired", "certificate has expired"),
        ("wrong name", "is not valid for '127.0.0.1'"),
    ],
)
def test_an_upstream_that_is_not_who_it_should_be_is_a_502_that_says_why(
    loop: str, case: str, problem: str, ours: Authority, other: Authority, leaf: Leaf
) -> None:
    trusted = {"wrong authority": other, "system authorities": None}.get(case, ours)
    shown = leaf
    if case == "expired":
        shown = ours.leaf("expired", days=-1)
    if case == "wrong name":
        shown = ours.leaf("elsewhere", alt="DNS:elsewhere.example")

    async def test() -> None:
        tls = shown.server_context()
        async with relaying(streaming, tls=tls, **trusting(trusted)) as bench:
            reply = await asked(bench)
            assert reply.status == 502
            message = reply.json()["error"]["message"]
            assert "its certificate is not trusted" in message
            assert problem in message
            assert "\n" not in message
            assert bench.upstream.requests == []
            assert (await bench.meter.only()).outcome == "upstream_error"

    run(loop, test)


@loops
@pytest.mark.parametrize("shows_one", [True, False])
def test_an_upstream_may_ask_for_our_certificate(
    loop: str, shows_one: bool, ours: Authority, leaf: Leaf
) -> None:
    mine = ours.leaf("proxy")
    files = {"upstream_cert": str(mine.cert), "upstream_key": str(mine.key)}
    shown = files if shows_one else {}

    async def test() -> None:
        tls = leaf.server_context(asks_for=ours.cert)
        async with relaying(streaming, tls=tls, **trusting(ours, **shown)) as bench:
            reply = await asked(bench)
            assert reply.status == (200 if shows_one else 502)
            assert len(bench.upstream.requests) == shows_one

    run(loop, test)


@pytest.mark.parametrize("trusts", [True, False])
def test_health_is_asked_with_the_same_authority(
    ours: Authority, other: Authority, leaf: Leaf, trusts: bool
) -> None:
    async def healthy(peer: Peer) -> None:
        while await peer.request() is not None:
            await peer.send(reply_bytes())

    ca = ours if trusts else other

    async def test() -> None:
        async with ScriptedServer(healthy, tls=leaf.server_context()) as engine:
            upstream = MeteredUpstream(
                UpstreamConfig(
                    "vllm", engine.url, "vllm", ("none",), tls=UpstreamTls(str(ca.cert))
                ),
                MeterOptions("phase", 0.02, 0.5),
            )
            upstream.open_upstream(RelayConfig(engine.url), time.monotonic, Archive())
            problem = await upstream.health.ask()
            assert (problem is None) == trusts
            assert trusts or "certificate" in str(problem)

    asyncio.run(test())


# --- clients


def client_context(ours: Authority) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=ours.cert)


async def tls_client(bench: Bench, context: ssl.SSLContext) -> Peer:
    _, peer = await asyncio.get_running_loop().create_connection(
        Peer, "127.0.0.1", bench.relay.port, ssl=context
    )
    bench.clients.append(peer)
    return peer


@loops
def test_clients_get_the_same_bytes_through_tls(
    loop: str, ours: Authority, leaf: Leaf
) -> None:
    identity = ServerTls(str(leaf.cert), str(leaf.key)).identity()

    async def test() -> None:
        async with relaying(streaming, identity=identity) as bench:
            client = await tls_client(bench, client_context(ours))
            for _ in range(2):
                await client.send(request_bytes(body=CHAT))
                reply = await client.reply()
                assert (reply.status, reply.body) == (200, b"".join(STREAM) + DONE)
            first, second = await bench.meter.closings(2)
            assert first.outcome == second.outcome == "ok"

    run(loop, test)


@loops
def test_an_event_passes_through_tls_before_the_next_one_is_there(
    loop: str, ours: Authority, leaf: Leaf
) -> None:
    identity = ServerTls(str(leaf.cert), str(leaf.key)).identity()
    seen = asyncio.Event()

    async def one_by_one(peer: Peer) -> None:
        await peer.request()
        await peer.send(stream_head(), chunk(STREAM[0]))
        await seen.wait()
        await peer.send(chunk(STREAM[1]), chunk(DONE), LAST_CHUNK)

    async def test() -> None:
        tls = leaf.server_context()
        async with relaying(
            one_by_one, tls=tls, identity=identity, **trusting(ours)
        ) as bench:
            client = await tls_client(bench, client_context(ours))
            await client.send(request_bytes(body=CHAT))
            assert await client.until(STREAM[0])
            seen.set()
            assert await client.until(DONE)

    run(loop, test)


@loops
def test_a_client_that_leaves_tls_frees_its_engine(
    loop: str, ours: Authority, leaf: Leaf
) -> None:
    identity = ServerTls(str(leaf.cert), str(leaf.key)).identity()

    async def endless(peer: Peer) -> None:
        await peer.request()
        await peer.send(stream_head(), chunk(STREAM[0]))
        await peer.gone.wait()

    async def test() -> None:
        async with relaying(endless, identity=identity) as bench:
            client = await tls_client(bench, client_context(ours))
            await client.send(request_bytes(body=CHAT))
            assert await client.until(STREAM[0])
            client.abort()
            await bench.upstream.peers[0].gone.wait()
            assert (await bench.meter.only()).outcome == "aborted"

    run(loop, test)


@loops
@pytest.mark.parametrize("case", ["plain HTTP", "TLS 1.1", "who trusts another"])
def test_what_is_no_good_tls_is_not_served(
    loop: str, case: str, ours: Authority, other: Authority, leaf: Leaf
) -> None:
    identity = ServerTls(str(leaf.cert), str(leaf.key)).identity()

    async def test() -> None:
        async with relaying(streaming, identity=identity) as bench:
            if case == "plain HTTP":
                client = await bench.client()
                await client.send(request_bytes(body=CHAT))
                await client.gone.wait()
            else:
                context = client_context(ours if case == "TLS 1.1" else other)
                if case == "TLS 1.1":
                    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
                    context.load_verify_locations(ours.cert)
                    context.set_ciphers("ALL:@SECLEVEL=0")
                    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
                        context.minimum_version = ssl.TLSVersion.TLSv1_1
                    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
                        context.maximum_version = ssl.TLSVersion.TLSv1_1
                with pytest.raises((ssl.SSLError, ConnectionError)):
                    await tls_client(bench, context)
            assert bench.upstream.requests == []

    run(loop, test)


def test_both_directions_speak_tls_1_2_at_least(leaf: Leaf) -> None:
    identity = ServerTls(str(leaf.cert), str(leaf.key)).identity()
    assert identity is not None
    for context in (identity.context, UpstreamTls().context()):
        assert context.minimum_version == ssl.TLSVersion.TLSv1_2
    upstream = UpstreamTls().context()
    assert upstream.check_hostname
    assert upstream.verify_mode == ssl.CERT_REQUIRED


def test_there_is_no_option_to_switch_checks_off() -> None:
    page = CliRunner().invoke(cli, ["serve", "--help"]).output
    assert "--upstream-ca" in page
    assert not [w for w in ("insecure", "no-verify", "skip-verify") if w in page]


# --- files


@pytest.mark.parametrize(
    ("files", "problem"),
    [
        (("cert", None), "belong together"),
        ((None, "key"), "belong together"),
        (("cert", "nowhere"), "no such file"),
        (("cert", "other key"), "key values mismatch"),
        (("cert", "text"), "pem lib"),
        (("cert", "locked"), "passphrase"),
    ],
)
def test_unusable_files_are_one_line(
    files: tuple[str | None, str | None],
    problem: str,
    leaf: Leaf,
    other: Authority,
    tmp_path: Path,
) -> None:
    (tmp_path / "text").write_text("not a key")
    if files[1] == "locked":
        command = f"openssl ec -in {leaf.key} -out {tmp_path}/locked -aes256"
        subprocess.run(
            [*command.split(), "-passout", "pass:secret"], check=True,
            capture_output=True,
        )  # fmt: skip
    paths = {
        None: None, "cert": str(leaf.cert), "key": str(leaf.key),
        "other key": str(other.key),
    }  # fmt: skip
    cert, key = (paths.get(f, str(tmp_path / f) if f else None) for f in files)
    with pytest.raises(ConfigError, match=problem) as caught:
        ServerTls(cert, key).identity()
    assert "\n" not in str(caught.value)


def test_files_for_a_plain_upstream_are_refused(ours: Authority) -> None:
    config = UpstreamConfig(
        "vllm", "http://127.0.0.1:9", "vllm", ("none",), tls=UpstreamTls(str(ours.cert))
    )
    with pytest.raises(ConfigError, match="plain HTTP"):
        MeteredUpstream(config, MeterOptions("phase", 0.02, 0.5))
    with pytest.raises(ConfigError, match="--upstream-ca /nowhere"):
        UpstreamTls("/nowhere").context()
    assert "identity" not in repr(RelayConfig("http://h")).replace("identity=None", "")


def test_a_new_certificate_is_taken_and_a_broken_one_is_not(
    ours: Authority, leaf: Leaf, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cert, key = tmp_path / "cert", tmp_path / "key"
    shutil.copy(leaf.cert, cert)
    shutil.copy(leaf.key, key)
    identity = ServerTls(str(cert), str(key)).identity()
    assert identity is not None

    def serial(identity: Identity) -> str:
        ends = ssl.MemoryBIO(), ssl.MemoryBIO()
        server = identity.context.wrap_bio(ends[0], ends[1], server_side=True)
        client = client_context(ours).wrap_bio(
            ends[1], ends[0], server_hostname="127.0.0.1"
        )
        for _ in range(4):
            for side in (client, server):
                try:
                    side.do_handshake()
                except ssl.SSLWantReadError:
                    continue
        found = client.getpeercert()
        assert found
        return str(found["serialNumber"])

    first = serial(identity)
    renewed = ours.leaf("renewed")
    shutil.copy(renewed.cert, cert)
    shutil.copy(renewed.key, key)
    identity.reload()
    second = serial(identity)
    assert second != first
    key.write_text("half written")
    identity.reload()
    assert serial(identity) == second
    assert "going on with the certificate in use" in caplog.text


def test_a_proxy_all_in_tls_as_a_user_starts_it(
    ours: Authority, leaf: Leaf, tmp_path: Path
) -> None:
    async def healthy(peer: Peer) -> None:
        while await peer.request() is not None:
            await peer.send(reply_bytes())

    arguments = [
        "serve", "--power", "none", "--store", "none", "--engine-metrics", "none",
        "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0",
        "--tls-cert", str(leaf.cert), "--tls-key", str(leaf.key), "--admin-tls",
    ]  # fmt: skip
    with (
        running(healthy) as engine,
        child("proxy", *arguments, "--upstream", engine.url, cwd=tmp_path) as proxy,
        httpx.Client(verify=client_context(ours), trust_env=False) as client,
    ):
        assert client.get(f"{proxy['url']}/health").status_code == 200
        assert client.get(f"{proxy['admin_url']}/readyz").status_code == 200
        assert proxy["url"].startswith("https://127.0.0.1:")
        with pytest.raises(httpx.ConnectError), httpx.Client(trust_env=False) as wrong:
            wrong.get(f"{proxy['url']}/health")


def test_hangup_reads_the_certificate_again_and_ends_nothing(
    ours: Authority, leaf: Leaf, tmp_path: Path
) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "proxy", "serve", "--upstream", "http://127.0.0.1:9",
         "--power", "none", "--store", "none", "--listen", "127.0.0.1:0", "--admin",
         "127.0.0.1:0", "--tls-cert", leaf.cert, "--tls-key", leaf.key, "--announce"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, cwd=ROOT,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stderr is not None
    assert process.stdin is not None
    try:
        assert process.stdout.readline()
        process.send_signal(signal.SIGHUP)
        while "certificate read again" not in (line := process.stderr.readline()):
            assert line, "it ended without reading them again"
        assert process.poll() is None
    finally:
        process.stdin.close()
        process.wait(PATIENCE_SECONDS)
        process.stdout.close()
        process.stderr.close()
    assert process.returncode == 0
