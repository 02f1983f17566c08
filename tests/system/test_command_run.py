"""`metering-proxy meter` as a user starts it: real processes, signals and sensors."""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from click import ClickException

from proxy.cli import cli
from proxy.errors import ProxyError
from tests.support.paths import ROOT
from tests.support.power_benches import compile_nvml

PATIENCE_SECONDS = 60
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "100"}
METER = [sys.executable, "-m", "proxy", "meter"]


def meter(*arguments: str | Path, **options: Any) -> subprocess.CompletedProcess[Any]:
    defaults: dict[str, Any] = {"text": True, "env": ENVIRONMENT}
    done: subprocess.CompletedProcess[Any] = subprocess.run(
        [*METER, *map(str, arguments)],
        capture_output=True, timeout=PATIENCE_SECONDS, check=False,
        **defaults | options,
    )  # fmt: skip
    return done


def python(code: str) -> list[str]:
    return ["--", sys.executable, "-c", code]


class Exporter:
    """A dcgm-exporter of one GPU at 100 W, whose readings a test can break."""

    def __init__(self) -> None:
        self.mode = "counter"
        self.begin = time.monotonic()
        self.served = 0
        self.changed = threading.Condition()
        exporter = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                status, text = exporter.reply()
                self.send_response(status)
                self.end_headers()
                self.wfile.write(text.encode())
                with exporter.changed:
                    exporter.served += 1
                    exporter.changed.notify_all()

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,))
        self.thread.start()

    @property
    def power(self) -> str:
        return f"dcgm=http://127.0.0.1:{self.server.server_port}/metrics"

    def reply(self) -> tuple[int, str]:
        if self.mode == "broken":
            return 503, "out of order\n"
        watts = 'DCGM_FI_DEV_POWER_USAGE{gpu="0"} 100\n'
        if self.mode == "power":
            return 200, watts
        ticks = (time.monotonic() - self.begin) // 0.01
        name = "DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION"
        return 200, f'{watts}{name}{{gpu="0"}} {ticks * 1000}\n'

    def wait_for_reads(self, count: int) -> None:
        with self.changed:
            wanted = self.served + count
            assert self.changed.wait_for(lambda: self.served >= wanted, 30)

    def close(self) -> None:
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


@pytest.fixture
def exporter() -> Iterator[Exporter]:
    running = Exporter()
    try:
        yield running
    finally:
        running.close()


@pytest.fixture(scope="module")
def simulator() -> Iterator[str]:
    process = subprocess.Popen(
        [sys.executable, "-m", "loadgen", "simulate", "--listen", "127.0.0.1:0",
         "--n-gpus", "2", "--counter-period", "0.02", "--announce"],
        env=ENVIRONMENT, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    with process:
        assert process.stdout is not None
        assert process.stdin is not None
        url = json.loads(process.stdout.readline())["url"]
        yield f"dcgm={url}/dcgm/metrics"
        process.stdin.close()


def started(exporter: Exporter, json_path: Path, code: str) -> subprocess.Popen[str]:
    """A metered command that has begun and says so in its first line."""
    process = subprocess.Popen(
        [*METER, "--power", exporter.power, "--baseline", "0.1", "--interval", "0.01",
         "--json", str(json_path), *python(code)],
        env=ENVIRONMENT, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "began\n"
    return process


# The alarm ends a command that nobody ends: a broken meter fails, and hangs no test.
UNTIL_A_LINE = "import signal; signal.alarm(60); print('began', flush=True); input()"


def finished(process: subprocess.Popen[str], json_path: Path) -> dict[str, Any]:
    """Let it end; the figures of its only source, with the text in `said`."""
    _, said = process.communicate("end\n", timeout=PATIENCE_SECONDS)
    report = json.loads(json_path.read_text())
    (source,) = report["sources"]
    return {**source, "said": said, "exit_code": process.returncode}


def test_a_command_is_metered_with_bounds_and_the_simulator_named(
    simulator: str, tmp_path: Path
) -> None:
    path = tmp_path / "run.json"
    done = meter(
        "--power", simulator, "--tdp", "700", "--json", path, "--label", "job=7",
        *python("import time; time.sleep(1)"),
    )  # fmt: skip
    report = json.loads(path.read_text())
    (source,) = report["sources"]
    assert (done.returncode, report["exit_code"], report["signal"]) == (0, 0, None)
    assert report["labels"] == {"job": "7"}
    assert source["simulated"]
    assert source["boundary"] == "gpu"
    assert "SIMULATED" in done.stderr
    idle = 110.0  # each of two idle H100 of the simulator
    for device in ("gpu0", "gpu1"):
        figures = source["devices"][device]
        assert figures["at_least_joules"] <= figures["joules"]
        assert figures["joules"] <= figures["at_most_joules"]
        assert figures["mean_watts"] == pytest.approx(idle, rel=0.1)
        assert figures["peak_watts"] == pytest.approx(idle, rel=0.1)
        assert figures["baseline_watts"] == pytest.approx(idle, rel=0.1)
        assert figures["measured_by"] == "counter"
    assert source["joules"] == pytest.approx(
        2 * idle * report["duration_seconds"], rel=0.1
    )
    said = source["runtime_times_power"]
    assert said["joules"] == pytest.approx(1400 * report["duration_seconds"])
    assert said["error_percent"] == pytest.approx(
        1400 / (2 * idle) * 100 - 100, rel=0.2
    )
    assert max(map(len, done.stderr.splitlines())) <= 100


def test_a_command_names_its_parts_and_their_energy_is_told(
    exporter: Exporter, tmp_path: Path
) -> None:
    phases = tmp_path / "phases"
    code = (
        "import json, time\n"
        "begin = time.monotonic(); time.sleep(1.2); end = time.monotonic()\n"
        f"with open({str(phases)!r}, 'a') as file:\n"
        "    part = dict(name='work', begin_seconds=begin, end_seconds=end)\n"
        "    print(json.dumps(part), file=file); print('{', file=file)"
    )
    done = meter(
        "--power", exporter.power, "--phases", phases, "--json", tmp_path / "j",
        *python(code),
    )  # fmt: skip
    assert done.returncode == 0
    report = json.loads((tmp_path / "j").read_text())
    (phase,) = report["phases"]
    energy = phase["sources"]["dcgm"]
    truth = 100 * phase["duration_seconds"]
    assert energy["at_least_joules"] <= truth + 1 <= energy["at_most_joules"] + 2
    assert energy["joules"] == pytest.approx(truth, rel=0.1)
    assert phase["begin_seconds"] > 0
    assert "line 2: not a phase" in report["phases_failure"]
    assert re.search(r"work +1\.\d+ +1\d\d", done.stderr)


def test_the_commands_streams_are_its_own(exporter: Exporter) -> None:
    content = bytes(range(256)) * 100
    done = meter(
        "--power", exporter.power, "--baseline", "0", "--quiet", "--", "cat",
        input=content, text=False,
    )  # fmt: skip
    assert done.stdout == content
    assert done.stderr == b""


def test_inherited_descriptors_reach_the_command(exporter: Exporter) -> None:
    reader, writer = os.pipe()
    done = meter(
        "--power", "none", *python(f"import os; os.write({writer}, b'x')"),
        pass_fds=[writer],
    )  # fmt: skip
    os.close(writer)
    with os.fdopen(reader) as file:
        assert file.read() == "x"
    assert done.returncode == 0


def test_json_without_a_path_follows_what_the_command_wrote(exporter: Exporter) -> None:
    done = meter(
        "--power", exporter.power, "--baseline", "0", "--json", "--", "echo", "hello"
    )
    first, rest = done.stdout.split("\n", 1)
    assert first == "hello"
    assert json.loads(rest)["command"] == ["echo", "hello"]
    assert "metering-proxy: echo hello" in done.stderr


def test_options_behind_the_command_are_its_own() -> None:
    done = meter("--power", "none", "--quiet", "echo", "--json", "-n", "--help")
    assert done.stdout == "--json -n --help\n"


@pytest.mark.parametrize(
    ("code", "exit_code", "ended_by"),
    [
        ("raise SystemExit(255)", 255, None),
        ("import os; os.kill(os.getpid(), 9)", 137, "SIGKILL"),
    ],
)
def test_the_exit_code_is_the_commands(
    code: str, exit_code: int, ended_by: str | None
) -> None:
    done = meter("--power", "none", "--json", "-", *python(code))
    assert done.returncode == exit_code
    report = json.loads(done.stdout)
    assert (report["exit_code"], report["signal"]) == (exit_code, ended_by)


def test_a_pipe_that_closes_ends_the_command_as_without_us() -> None:
    line = f"{' '.join(METER)} --power none --quiet -- yes; echo $? >&2"
    done = subprocess.run(
        ["sh", "-c", f"({line}) | head -n 1"],
        env=ENVIRONMENT, capture_output=True, text=True, timeout=PATIENCE_SECONDS,
    )  # fmt: skip
    assert done.stdout == "y\n"
    assert done.stderr == f"{128 + signal.SIGPIPE}\n"


def failure_of(*arguments: str) -> tuple[int, str]:
    """Exit code and line of a command that is refused, without a process of ours."""
    log = logging.getLogger("servewatt.sampler")
    level = log.level  # the command's own process is quiet about its sensors
    try:
        cli.main(["meter", *arguments], standalone_mode=False)
    except ProxyError as error:
        return error.exit_code, str(error)
    except ClickException as error:
        return error.exit_code, error.format_message()
    finally:
        log.setLevel(level)
    raise AssertionError("it ran")


@pytest.mark.parametrize(
    ("command", "exit_code", "complaint"),
    [
        ("no-such-command", 127, "'no-such-command': command not found"),
        ("./no/such/file", 127, "command not found"),
        ("", 127, "command not found"),
        ("/etc/passwd", 126, "not executable"),
        ("/etc", 126, "not executable"),
        ("{garbage}", 126, "exec format error"),
    ],
)
def test_a_command_that_cannot_run_is_told_as_by_a_shell(
    command: str, exit_code: int, complaint: str, tmp_path: Path
) -> None:
    garbage = tmp_path / "garbage"
    garbage.write_bytes(b"\0\1\2 no program")
    garbage.chmod(0o755)
    code, line = failure_of("--power", "none", "--", command.format(garbage=garbage))
    assert code == exit_code
    assert complaint in line
    assert "\n" not in line


def test_a_command_that_cannot_run_is_one_line_and_the_exit_code() -> None:
    done = meter("--", "no-such-command")
    line = "metering-proxy: cannot run 'no-such-command': command not found\n"
    assert (done.returncode, done.stdout, done.stderr) == (127, "", line)


@pytest.mark.parametrize(
    "arguments",
    [
        ("--power", "wattmeter"),
        ("--power", "nvml=x"),
        ("--power", "rapl", "--gpus", "0"),
        ("--power", "nvml,nvml"),
        ("--tdp", "lots"),
        ("--tdp", "disk=5"),
        ("--label", "novalue"),
        ("--textfile", "/no/such/folder"),
        ("--textfile", ".", "--name", "../x"),
        ("--textfile", ".", "--label", "user=me"),
        ("--textfile", ".", "--label", "le-ss=me"),
    ],
)
def test_what_can_never_work_is_said_before_the_command_runs(
    arguments: tuple[str, ...], tmp_path: Path
) -> None:
    code, _ = failure_of(*arguments, "--", "touch", str(tmp_path / "ran"))
    assert code == 2
    assert not (tmp_path / "ran").exists()


def test_a_sensor_that_cannot_be_opened_stops_nothing(tmp_path: Path) -> None:
    done = meter(
        "--power", "dcgm=http://127.0.0.1:9/metrics", "--json", tmp_path / "json",
        *python("print('worked'); raise SystemExit(4)"),
    )  # fmt: skip
    assert (done.stdout, done.returncode) == ("worked\n", 4)
    (source,) = json.loads((tmp_path / "json").read_text())["sources"]
    assert source["joules"] is None
    assert source["unknown_because"] == "no_device"
    assert "127.0.0.1:9" in source["failure"]
    assert "energy unknown: dcgm at http://127.0.0.1:9/metrics" in done.stderr


def test_a_gap_of_the_sensor_is_said_and_the_counter_counts_on(
    exporter: Exporter, tmp_path: Path
) -> None:
    process = started(exporter, tmp_path / "json", UNTIL_A_LINE)
    exporter.wait_for_reads(20)
    exporter.mode = "broken"
    exporter.wait_for_reads(2)
    exporter.mode = "counter"
    exporter.wait_for_reads(20)
    figures = finished(process, tmp_path / "json")
    assert figures["joules"] is not None
    assert figures["gap_seconds"]["sensor_gap"] > 0
    assert figures["at_least_joules"] <= figures["joules"] <= figures["at_most_joules"]
    assert figures["mean_watts"] == pytest.approx(100, rel=0.2)
    assert figures["read_errors"] >= 1
    assert "its counter counted on" in figures["said"]
    assert "answered 503" in figures["said"]


def test_power_that_was_not_read_is_in_no_figure(
    exporter: Exporter, tmp_path: Path
) -> None:
    exporter.mode = "power"
    process = started(exporter, tmp_path / "json", UNTIL_A_LINE)
    exporter.wait_for_reads(20)
    exporter.mode = "broken"
    exporter.wait_for_reads(2)
    exporter.mode = "power"
    exporter.wait_for_reads(20)
    figures = finished(process, tmp_path / "json")
    assert figures["joules"] is None
    assert figures["unknown_because"] == "sensor_gap"
    assert figures["unmeasured_seconds"] > 0
    assert figures["at_least_joules"] > 0
    assert figures["measured_by"] == "power"
    assert "unknown: the sensor could not be read for a while" in figures["said"]


def test_a_sensor_that_is_lost_leaves_a_lower_bound(
    exporter: Exporter, tmp_path: Path
) -> None:
    process = started(exporter, tmp_path / "json", UNTIL_A_LINE)
    exporter.wait_for_reads(20)
    exporter.mode = "broken"
    exporter.wait_for_reads(2)
    figures = finished(process, tmp_path / "json")
    assert figures["exit_code"] == 0
    assert figures["joules"] is None
    assert figures["unknown_because"] == "sensor_gap"
    assert figures["at_least_joules"] > 0
    assert "at least" in figures["said"]


def test_a_driver_reload_leaves_the_energy_unknown(
    exporter: Exporter, tmp_path: Path
) -> None:
    process = started(exporter, tmp_path / "json", UNTIL_A_LINE)
    exporter.wait_for_reads(20)
    exporter.begin = time.monotonic()
    exporter.wait_for_reads(20)
    figures = finished(process, tmp_path / "json")
    assert figures["joules"] is None
    assert figures["unknown_because"] == "counter_reset"
    assert "the counter started anew" in figures["said"]


def test_a_command_shorter_than_the_counters_period_is_not_zero(
    exporter: Exporter, tmp_path: Path
) -> None:
    done = meter(
        "--power", exporter.power, "--interval", "0.2", "--baseline", "0.6",
        "--json", tmp_path / "json", "--", "true",
    )  # fmt: skip
    (source,) = json.loads((tmp_path / "json").read_text())["sources"]
    assert source["joules"] is None
    assert source["unknown_because"] == "too_short"
    assert source["at_most_joules"] > 0
    assert "too short for this sensor" in done.stderr


SIGNAL_COUNTER = """
import os, signal
signal.alarm(60)
expected = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1}
signal.pthread_sigmask(signal.SIG_BLOCK, expected)
print("began", *[os.getppid()] * SHOWS_PARENT, flush=True)
seen = []
while signal.SIGUSR1 not in seen:
    seen.append(signal.sigwait(expected))
    print("got", signal.Signals(seen[-1]).name, flush=True)
raise SystemExit(10 + len(seen))
"""


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP", "SIGINT"])
def test_a_signal_for_us_alone_is_passed_on_and_the_figures_follow(
    name: str, exporter: Exporter, tmp_path: Path
) -> None:
    number = signal.Signals[name]
    if signal.getsignal(number) is signal.SIG_IGN:
        pytest.skip(f"these tests run where {name} is ignored, as under nohup")
    process = started(exporter, tmp_path / "json", f"SHOWS_PARENT = 0{SIGNAL_COUNTER}")
    assert process.stdout is not None
    process.send_signal(number)
    assert process.stdout.readline() == f"got {name}\n"
    process.send_signal(signal.SIGUSR1)
    figures = finished(process, tmp_path / "json")
    assert figures["exit_code"] == 12
    assert "gpu (dcgm)" in figures["said"]


def test_a_signal_the_command_does_not_survive_still_gives_figures(
    exporter: Exporter, tmp_path: Path
) -> None:
    process = started(exporter, tmp_path / "json", UNTIL_A_LINE)
    exporter.wait_for_reads(50)
    process.terminate()
    process.wait(PATIENCE_SECONDS)
    figures = finished(process, tmp_path / "json")
    assert figures["exit_code"] == 143
    assert figures["joules"] > 0
    assert "ended by SIGTERM" in figures["said"]


def test_ctrl_c_before_the_command_began_runs_nothing(
    exporter: Exporter, tmp_path: Path
) -> None:
    process = subprocess.Popen(
        [*METER, "--power", exporter.power, "--baseline", "600", "--", "touch",
         str(tmp_path / "ran")],
        env=ENVIRONMENT, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    exporter.wait_for_reads(5)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 130
    assert not (tmp_path / "ran").exists()


IN_A_TERMINAL = """
import os, pty, sys
code = pty.spawn(sys.argv[1:])
sys.exit(os.waitstatus_to_exitcode(code))
"""


def test_ctrl_c_in_a_terminal_reaches_the_command_once(exporter: Exporter) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", IN_A_TERMINAL, *METER, "--power", exporter.power,
         "--baseline", "0", *python(f"SHOWS_PARENT = 1{SIGNAL_COUNTER}")],
        env=ENVIRONMENT, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    began, parent = process.stdout.readline().split()
    assert began == b"began"
    # Asleep, we cannot pass it on at the same moment: two would count as one.
    os.kill(int(parent), signal.SIGSTOP)
    process.stdin.write(b"\x03")
    process.stdin.flush()
    assert process.stdout.readline() == b"^Cgot SIGINT\r\n"
    # By the time this one has come through, a second SIGINT would have.
    os.kill(int(parent), signal.SIGUSR1)
    os.kill(int(parent), signal.SIGCONT)
    assert process.stdout.readline() == b"got SIGUSR1\r\n"
    said = process.stdout.read().decode()
    process.stdin.close()
    process.stdout.close()
    assert process.wait(PATIENCE_SECONDS) == 12
    assert "exit code 12" in said


def test_a_signal_that_is_ignored_around_us_is_ignored_in_the_command() -> None:
    show = "import signal; print(signal.getsignal(1) == signal.SIG_IGN)"
    done = subprocess.run(
        ["sh", "-c", 'trap "" HUP; exec "$@"', "sh", *METER, "--power", "none",
         "--quiet", *python(show)],
        env=ENVIRONMENT, capture_output=True, text=True, timeout=PATIENCE_SECONDS,
    )  # fmt: skip
    assert done.stdout == "True\n"


def test_two_sources_stand_side_by_side(exporter: Exporter, tmp_path: Path) -> None:
    recording = tmp_path / "node.csv"
    rows = "".join(f"{n / 10},psu,{n * 80},800\n" for n in range(600))
    recording.write_text(f"# boundary=node\nseconds,device,joules,watts\n{rows}")
    done = meter(
        "--power", f"{exporter.power},csv={recording}", "--gpus", "0", "--json", "-",
        "--quiet", "--tdp", "400", "--tdp", "node=1000",
        *python("import time; time.sleep(1)"),
    )  # fmt: skip
    report = json.loads(done.stdout)
    gpu, node = report["sources"]
    assert (gpu["boundary"], node["boundary"]) == ("gpu", "node")
    assert gpu["mean_watts"] == pytest.approx(100, rel=0.2)
    assert node["mean_watts"] == pytest.approx(800, rel=0.4)
    assert gpu["runtime_times_power"]["watts"] == 400
    assert node["runtime_times_power"]["watts"] == 1000
    assert not report["simulated"]


@pytest.mark.parametrize(
    ("driver", "runtime"), [({}, 1200.0), ({"SERVEWATT_NVML_OLD": "1"}, None)]
)
def test_the_power_limit_of_the_boards_stands_in_for_a_tdp(
    driver: dict[str, str], runtime: float | None, tmp_path: Path
) -> None:
    compile_nvml(tmp_path)
    script = tmp_path / "script"
    script.write_text("\n".join(str(6000 * n) for n in range(5000)))
    done = meter(
        "--power", "nvml", "--baseline", "0", "--json", "-", "--quiet", "--", "true",
        env=ENVIRONMENT | driver | {
            "LD_LIBRARY_PATH": str(tmp_path), "SERVEWATT_NVML_SCRIPT": str(script),
            "SERVEWATT_NVML_BOARDS": "2", "CUDA_VISIBLE_DEVICES": "0,1",
        },
    )  # fmt: skip
    (source,) = json.loads(done.stdout)["sources"]
    said = source["runtime_times_power"]
    assert (said and said["watts"]) == runtime
    assert (said and said["watts_from"]) == (runtime and "power limit")
    assert sorted(source["devices"]) == ["gpu0", "gpu1"]


def test_files_that_cannot_be_written_do_not_change_the_exit_code() -> None:
    done = meter("--power", "none", "--json", "/no/such/file", *python("exit(5)"))
    assert done.returncode == 5
    assert re.search(r"--json /no/such/file: No such file", done.stderr)
