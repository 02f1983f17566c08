"""An admin port open to a network, and everybody who has to ask it: real processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from tests.support.certificates import authority
from tests.support.children import PATIENCE_SECONDS, metering, simulating
from tests.support.paths import ROOT

TOKEN = "kept-out-of-every-file-0123456789"


@dataclass(frozen=True)
class Guarded:
    """A metered simulator whose admin API listens on every address."""

    url: str
    admin: str
    token_file: Path


def everywhere(token_file: Path) -> tuple[str, ...]:
    """Options of an admin API on every address, which therefore needs a token."""
    return ("--admin", "0.0.0.0:0", "--admin-token-file", str(token_file))


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    folder = tmp_path_factory.mktemp("guarded")
    token_file = folder / "token"
    token_file.write_text(TOKEN + "\n")
    with (
        simulating(folder) as engine,
        metering(folder, engine, *everywhere(token_file), waits=False) as proxy,
    ):
        port = proxy["admin_url"].rpartition(":")[2]
        yield Guarded(proxy["url"], f"http://127.0.0.1:{port}", token_file)


def replayed(
    guarded: Guarded, out: Path, *more: str, token: str | None = None
) -> subprocess.CompletedProcess[str]:
    trace = out.parent / "one.jsonl"
    row = {"input_length": 100, "output_length": 30, "kind": "code"}
    trace.write_text(json.dumps(row) + "\n")
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    environment.pop("SERVEWATT_ADMIN_TOKEN", None)
    if token is not None:
        environment["SERVEWATT_ADMIN_TOKEN"] = token
    return subprocess.run(
        [sys.executable, "-m", "loadgen", "replay", str(trace), "--rate", "inf",
         "--url", guarded.url, "--ledger", guarded.admin, "--out", str(out), *more],
        env=environment, capture_output=True, text=True, timeout=PATIENCE_SECONDS,
    )  # fmt: skip


def test_every_route_wants_the_token(guarded: Guarded) -> None:
    with httpx.Client(base_url=guarded.admin, trust_env=False) as client:
        assert client.get("/healthz").status_code == 200
        headers = {"authorization": f"Bearer {TOKEN}"}
        index = client.get("/", headers=headers).json()
        assert "/metrics" in index["paths"]
        for path in index["paths"]:
            if path not in ("/healthz", "/readyz"):
                for method in ("GET", "POST", "DELETE"):
                    assert client.request(method, path).status_code == 401, path
        info = client.get("/info", headers=headers)
        assert info.json()["config"]["admin_token_file"] == str(guarded.token_file)
        assert TOKEN not in info.text


@pytest.mark.parametrize("how", ["file", "environment"])
def test_a_replay_with_the_token_knows_its_energy(
    guarded: Guarded, tmp_path: Path, how: str
) -> None:
    out = tmp_path / "run"
    if how == "file":
        done = replayed(guarded, out, "--ledger-token-file", str(guarded.token_file))
    else:
        done = replayed(guarded, out, token=TOKEN)
    assert done.returncode == 0, done.stdout + done.stderr
    summary = json.loads((out / "summary.json").read_text())
    assert summary["energy"]["measured_joules"] > 0
    kept = b"".join(p.read_bytes() for p in out.rglob("*") if p.is_file())
    assert TOKEN.encode() not in kept
    assert TOKEN not in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("token", "problem"),
    [(None, "wants a token"), ("another-token-of-some-length", "does not accept")],
)
def test_a_replay_without_it_says_so_at_once(
    guarded: Guarded, tmp_path: Path, token: str | None, problem: str
) -> None:
    done = replayed(guarded, tmp_path / "run", token=token)
    assert done.returncode == 1
    assert problem in done.stderr
    assert "--ledger-token-file" in done.stderr
    assert token is None or token not in done.stderr


def test_the_calibration_of_a_guarded_proxy_is_shown_to_who_has_it(
    guarded: Guarded,
) -> None:
    command = [sys.executable, "-m", "proxy", "calibrate", guarded.admin]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    environment.pop("SERVEWATT_ADMIN_TOKEN", None)
    given = [*command, "--admin-token-file", str(guarded.token_file)]
    codes = [
        subprocess.run(
            c, env=environment, capture_output=True, timeout=PATIENCE_SECONDS
        ).returncode
        for c in (command, given)
    ]
    assert codes == [1, 0]


def test_all_of_it_behind_tls_as_security_md_says(tmp_path: Path) -> None:
    ours = authority(tmp_path)
    leaf = ours.leaf("leaf")
    token_file = tmp_path / "token"
    token_file.write_text(TOKEN)
    with (
        simulating(tmp_path) as engine,
        metering(
            tmp_path, engine, *everywhere(token_file), "--tls-cert", str(leaf.cert),
            "--tls-key", str(leaf.key), "--admin-tls", waits=False,
        ) as proxy,
    ):  # fmt: skip
        port = proxy["admin_url"].rpartition(":")[2]
        admin = f"https://127.0.0.1:{port}"
        guarded = Guarded(proxy["url"], admin, token_file)
        given = ["--ledger-token-file", str(token_file)]
        with pytest.MonkeyPatch.context() as environment:
            environment.setenv("SSL_CERT_FILE", str(ours.cert))
            done = replayed(guarded, tmp_path / "run", *given)
        assert done.returncode == 0, done.stdout + done.stderr
        summary = json.loads((tmp_path / "run" / "summary.json").read_text())
        assert summary["energy"]["measured_joules"] > 0
        assert summary["completed"] == 1
