"""IPMI: power of the whole node, by its management controller and `ipmitool`.

`ipmitool dcmi power reading` on this host (through /dev/ipmi0, root only) or
over the network. Controllers without DCMI have a plain sensor instead, named
with `sensor=`. Whole watts, about once a second.
"""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections.abc import Mapping, Sequence

from proxy.errors import ConfigError, SensorError
from proxy.power.argument import parse_argument
from proxy.power.energy_source import EnergySource, SourceOptions
from proxy.power.paced import Paced
from proxy.wire.facts import Reading

MIN_SECONDS = 1.0
ANSWER_SECONDS = 10.0
WATTS = re.compile(r"Instantaneous power reading:\s*(\d+)\s*Watts")
IS_ACTIVE = re.compile(r"Power reading state is:\s*activated")


class IpmiSource:
    """One node, asked by running `ipmitool`."""

    name = "ipmi"
    boundary = "node"
    is_simulated = False

    def __init__(
        self,
        *,
        host: str | None = None,
        user: str | None = None,
        password: str | None = None,
        sensor: str | None = None,
        min_seconds: float = MIN_SECONDS,
    ) -> None:
        remote = ["-I", "lanplus", "-H", host, "-E"] if host else []
        remote += ["-U", user] if host and user else []
        asked = (
            ["sensor", "reading", sensor] if sensor else ["dcmi", "power", "reading"]
        )
        self._command = ["ipmitool", *remote, *asked]
        # -E takes the password from here: argv can be read by every user of a host
        self._environment: Mapping[str, str] = os.environ | (
            {"IPMI_PASSWORD": password} if password is not None else {}
        )
        self._parse = parse_sensor if sensor else parse_dcmi
        self._device = host or "node"
        self._paced = Paced(self._ask, min_seconds)

    def read(self) -> Sequence[Reading]:
        """The newest reading, at most one question a second."""
        return self._paced.read()

    def close(self) -> None:
        """Nothing is kept open."""

    def _ask(self) -> Sequence[Reading]:
        begin = time.monotonic()
        try:
            done = subprocess.run(
                self._command, capture_output=True, text=True, errors="replace",
                env=self._environment, timeout=ANSWER_SECONDS, check=False,
                stdin=subprocess.DEVNULL,
            )  # fmt: skip
        except FileNotFoundError:
            raise SensorError(
                "ipmi needs the program ipmitool: install the package ipmitool"
            ) from None
        except subprocess.TimeoutExpired:
            raise SensorError(
                f"ipmi: ipmitool did not answer within {ANSWER_SECONDS:g} s"
            ) from None
        except OSError as error:
            raise SensorError(f"ipmi: ipmitool: {error.strerror or error}") from None
        watts = self._parse(done.stdout) if done.returncode == 0 else None
        if watts is None:
            said = (done.stderr or done.stdout).strip().splitlines()
            reason = said[0] if said else f"exit code {done.returncode}, no output"
            raise SensorError(
                f"ipmi: no power from `{' '.join(self._command)}`: {reason.strip()}; "
                "run as root on a host with a BMC, or give its address: ipmi=HOST"
            )
        at_seconds = (begin + time.monotonic()) / 2
        return [Reading(self._device, watts=watts, at_seconds=at_seconds)]


def parse_dcmi(text: str) -> float | None:
    """Watts of `dcmi power reading`; None when it has none or measuring is off."""
    found = WATTS.search(text)
    return float(found[1]) if found and IS_ACTIVE.search(text) else None


def parse_sensor(text: str) -> float | None:
    """Watts of `sensor reading NAME`, a line `NAME | 220`; None without a number."""
    try:
        return float(text.strip().rpartition("|")[2])
    except ValueError:
        return None


def open_ipmi(options: SourceOptions) -> EnergySource:
    """Raises ConfigError for options that are not ipmi's."""
    argument = parse_argument(
        "ipmi", options.argument, ("user-env", "password-env", "sensor")
    )
    if options.gpus:
        raise ConfigError("--power ipmi measures the node; --gpus is not for it")
    if argument.address.startswith("-"):
        raise ConfigError(f"--power ipmi: {argument.address!r} is not a host name")
    return IpmiSource(
        host=argument.address or None,
        user=argument.secret("user-env"),
        password=argument.secret("password-env"),
        sensor=argument.options.get("sensor"),
    )
