"""What a user copies works: commands parse, files exist, ports meet."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path

import click
import pytest
import yaml

from loadgen.cli import cli as loadgen
from proxy.cli import cli as metering_proxy
from proxy.process.command import given
from proxy.serve.config_file import read_config
from tests.support.examples import EXAMPLES, FILES, LINES, Line
from tests.support.paths import ROOT

OURS = [line for line in LINES if line.program in ("loadgen", "metering-proxy")]


def parsed(line: Line) -> click.Context:
    """Our own command with its options; refuses unknown ones, runs nothing."""
    group = {"loadgen": loadgen, "metering-proxy": metering_proxy}[line.program]
    assert isinstance(group, click.Group)
    with click.Context(group) as context:
        command = group.get_command(context, line.words[1])
    assert command is not None, line
    return command.make_context(line.words[1], list(line.words[2:]))


@pytest.mark.parametrize("line", OURS, ids=str)
def test_our_commands_parse_and_their_files_exist(
    line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not any("$" in word for word in line.words), line.words
    monkeypatch.chdir(line.path.parent)
    context = parsed(line)
    for value in context.params.values():
        if isinstance(value, Path):
            assert value.exists(), value
    if context.params.get("config"):
        upstreams, _ = read_config(
            context.params["config"], given(context) - {"config"}
        )
        assert len(upstreams) > 1


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.parent.name)
def test_every_local_port_that_is_asked_is_listened_on(path: Path) -> None:
    lines = [line for line in LINES if line.path == path]
    listening = set()
    for line in lines:
        if line.words[:2] == ("metering-proxy", "serve"):
            with contextlib.chdir(path.parent):
                params = parsed(line).params
            listening |= {params["listen"][1], params["admin"][1]}
        text = " ".join(line.words)
        listening |= {int(p) for p in re.findall(r" --port (\d+)", text)}
        listening |= {int(p) for p in re.findall(r" -p (?:[\d.]+:)?(\d+):", text)}
    urls = {
        int(port)
        for line in lines
        for word in line.words
        for port in re.findall(r"http://(?:127\.0\.0\.1|localhost):(\d+)", word)
    }
    assert urls
    assert urls <= listening


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.parent.name)
def test_an_example_shows_the_whole_way(path: Path) -> None:
    commands = {line.words[:2] for line in LINES if line.path == path}
    assert {("metering-proxy", "serve"), ("loadgen", "replay")} <= commands


def test_every_example_is_in_the_list_and_the_list_in_the_readme() -> None:
    page = (EXAMPLES / "README.md").read_text()
    linked = set(re.findall(r"\]\(([\w/.-]+)\)", page))
    assert linked == {str(path.relative_to(EXAMPLES)) for path in FILES}
    assert "(examples/README.md)" in (ROOT / "README.md").read_text()


def test_the_job_of_workers_is_one_of_kubernetes_and_its_command_one_of_ours() -> None:
    job = yaml.safe_load((EXAMPLES / "workers" / "worker-job.yaml").read_text())
    assert (job["apiVersion"], job["kind"]) == ("batch/v1", "Job")
    spec = job["spec"]
    assert spec["completionMode"] == "Indexed"
    assert spec["completions"] == spec["parallelism"]
    assert spec["backoffLimit"] == 0
    pod = spec["template"]["spec"]
    [container] = pod["containers"]
    words = [
        word.replace("$(JOB_COMPLETION_INDEX)", "3") for word in container["command"]
    ]
    params = parsed(Line(EXAMPLES, tuple(words))).params
    assert params["name"] == "worker-3"
    assert params["runs"] == 1
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert {volume["name"] for volume in pod["volumes"]} == mounts.keys()
    for path in (params["bus_ca"], params["bus_creds"]):
        assert str(path.parent) == mounts["bus"]
    assert str(params["spool"]) == mounts["spool"]
