"""SIGHUP: the file of `--config` is used whole while requests flow, or not at all."""

from __future__ import annotations

import os
import signal
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.children import (
    PATIENCE_SECONDS,
    Killable,
    child,
    get,
    killable,
    wait_for,
)

MODEL = "simulated-llama-3.1-8b"


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    with ExitStack() as stack:
        folder = tmp_path_factory.mktemp("engines")
        yield [
            stack.enter_context(
                child("loadgen", "simulate", "--listen", "127.0.0.1:0", cwd=folder)
            )["url"]
            for _ in range(2)
        ]


def write(path: Path, *tables: tuple[str, str], **models: str) -> None:
    texts = [
        f'[[upstream]]\nname = "{name}"\nurl = "{url}"\npower = "none"\n'
        + (f'models = ["{models[name]}"]\n' if name in models else "")
        for name, url in tables
    ]
    path.write_text("\n".join(texts))


def proxy(folder: Path) -> Killable:
    return killable(
        "--config", str(folder / "u.toml"), "--usage-event", "drop",
        "--store", f"sqlite:///{folder}/records.sqlite",
        log=folder / "log", environment=os.environ | {"COLUMNS": "80"},
    )  # fmt: skip


def upstreams(addresses: dict[str, Any]) -> dict[str, str]:
    reply = get(f"{addresses['admin_url']}/upstreams").json()
    return {each["name"]: each["url"] for each in reply["upstreams"]}


def reloads(addresses: dict[str, Any], outcome: str) -> bool:
    text = get(f"{addresses['admin_url']}/metrics").text
    return f'servewatt_config_reloads_total{{outcome="{outcome}"}} 1.0' in text


def ask(addresses: dict[str, Any], request_id: str, tokens: int = 2) -> int:
    body = {
        "model": MODEL, "max_tokens": tokens, "stream": True, "ignore_eos": True,
        "messages": [{"role": "user", "content": "hello"}],
    }  # fmt: skip
    reply = httpx.post(
        f"{addresses['url']}/v1/chat/completions", json=body,
        timeout=PATIENCE_SECONDS, headers={"x-request-id": request_id},
    )  # fmt: skip
    assert reply.text.endswith("data: [DONE]\n\n") or reply.status_code != 200
    return reply.status_code


def test_upstreams_come_and_go_while_a_stream_goes_on(
    engines: list[str], tmp_path: Path
) -> None:
    one, two = engines
    file = tmp_path / "u.toml"
    write(file, ("a", one))
    with proxy(tmp_path) as (addresses, process):
        run = get(f"{addresses['admin_url']}/books").json()["run"]
        long: list[int] = []
        thread = threading.Thread(
            target=lambda: long.append(ask(addresses, "long", tokens=300))
        )
        thread.start()
        wait_for(
            lambda: (
                'in_flight{engine="a"} 1.0'
                in get(f"{addresses['admin_url']}/metrics").text
            )
        )
        write(file, ("b", two))
        process.send_signal(signal.SIGHUP)
        wait_for(lambda: upstreams(addresses) == {"b": two})
        assert ask(addresses, "at-b") == 200
        assert get(f"{addresses['admin_url']}/books").json()["run"] != run
        write(file, ("b", two), ("a", one))
        process.send_signal(signal.SIGHUP)
        wait_for(lambda: upstreams(addresses) == {"b": two, "a": one})
        assert {ask(addresses, f"both-{n}") for n in range(4)} == {200}
        thread.join(PATIENCE_SECONDS)
        assert long == [200]  # it was never cut
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE_SECONDS) == 0
    connection = sqlite3.connect(tmp_path / "records.sqlite")
    rows = connection.execute(
        "select request_id, engine, upstream, outcome, output_tokens"
        " from servewatt_records"
    ).fetchall()
    connection.close()
    found = {row[0]: row[1:] for row in rows}
    assert len(rows) == len(found) == 6
    assert found["long"] == ("a", one, "ok", 300)
    assert found["at-b"] == ("b", two, "ok", 2)
    assert {found[f"both-{n}"][:2] for n in range(4)} == {("a", one), ("b", two)}


def test_a_changed_upstream_is_another_one(engines: list[str], tmp_path: Path) -> None:
    one, two = engines
    file = tmp_path / "u.toml"
    write(file, ("a", one), ("b", two), a=MODEL, b="none of it")
    with proxy(tmp_path) as (addresses, process):
        assert ask(addresses, "before") == 200
        write(file, ("a", two), ("b", one), a="none of it", b=MODEL)
        process.send_signal(signal.SIGHUP)
        wait_for(lambda: upstreams(addresses) == {"a": two, "b": one})
        assert ask(addresses, "after") == 200
        wait_for(
            lambda: get(f"{addresses['admin_url']}/requests/after").status_code == 200
        )
        after = get(f"{addresses['admin_url']}/requests/after").json()
        assert after["engine"] == "b"
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE_SECONDS) == 0


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("[[upstream]\n", "u.toml"),
        ('[[upstream]]\nname = "a"\nurl = "http://b"\n', "has no power"),
        ("", "names no upstream"),
        (
            '[[upstream]]\nname = "a"\nurl = "http://b"\npower = "csv=/no/such.csv"\n'
            'upstream_ca = "/no/such.pem"\n',
            "",
        ),
    ],
    ids=["no TOML", "no power", "empty", "unusable files"],
)
def test_a_file_with_a_mistake_changes_nothing(
    engines: list[str], tmp_path: Path, text: str, why: str
) -> None:
    write(tmp_path / "u.toml", ("a", engines[0]))
    with proxy(tmp_path) as (addresses, process):
        (tmp_path / "u.toml").write_text(text)
        process.send_signal(signal.SIGHUP)
        wait_for(lambda: reloads(addresses, "refused"))
        assert upstreams(addresses) == {"a": engines[0]}
        assert ask(addresses, "still") == 200
        lines = [
            line
            for line in (tmp_path / "log").read_text().splitlines()
            if "going on with the configuration in use" in line
        ]
        assert len(lines) == 1
        assert why in lines[0]
        # and once it is right again it is used
        write(tmp_path / "u.toml", ("a", engines[0]), ("b", engines[1]))
        process.send_signal(signal.SIGHUP)
        wait_for(lambda: set(upstreams(addresses)) == {"a", "b"})
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE_SECONDS) == 0
