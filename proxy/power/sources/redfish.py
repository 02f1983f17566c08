"""Redfish: power of the whole node, by its management controller.

Chassis are discovered from /redfish/v1/Chassis. Newer controllers have
`EnvironmentMetrics` (`PowerWatts`, `EnergyJoules`, `EnergykWh`), older ones
`Power` (`PowerControl[0].PowerConsumedWatts`; further entries are parts of the
first). Schemas: https://redfish.dmtf.org/schemas/. Power is measured about once
a second and cached, so it resolves nothing shorter than a minute.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from proxy.errors import ConfigError, SensorError
from proxy.power.argument import base_url, parse_argument
from proxy.power.blanks import figure
from proxy.power.energy_source import EnergySource, SourceOptions
from proxy.power.http import HttpSensor
from proxy.power.paced import Paced
from proxy.wire.facts import Reading

log = logging.getLogger("servewatt.power")

EXAMPLE = (
    "'redfish=https://bmc#user-env=BMC_USER&password-env=BMC_PASSWORD' "
    "(names of environment variables; chassis=ID and verify=no are optional)"
)
MIN_SECONDS = 1.0
ANSWER_SECONDS = 10.0
"""Management controllers are slow, above all while they build their first page."""
JOULES_PER_KWH = 3_600_000.0


class RedfishSource:
    """The chassis of one management controller."""

    name = "redfish"
    boundary = "node"
    is_simulated = False

    def __init__(
        self,
        url: str,
        *,
        basic_auth: tuple[str, str] | None = None,
        chassis: str | None = None,
        is_verified: bool = True,
        min_seconds: float = MIN_SECONDS,
    ) -> None:
        self._url = url
        self._http = HttpSensor(
            self.name, basic_auth=basic_auth, is_verified=is_verified,
            total_seconds=ANSWER_SECONDS,
            expected="a Redfish service that accepts this user",
        )  # fmt: skip
        self._paced = Paced(self._ask, min_seconds)
        try:
            self._device, self._links = self._choose(chassis)
        except (ConfigError, SensorError):
            self.close()
            raise

    def read(self) -> Sequence[Reading]:
        """The newest reading, at most one question a second."""
        return self._paced.read()

    def close(self) -> None:
        """Close the connection."""
        self._http.close()

    def _choose(self, wanted: str | None) -> tuple[str, list[str]]:
        """Name and links to power of the node's chassis.

        GPUs, trays and sleds are chassis too, contained in the node's: adding
        them to it would count them twice, so only the outermost is taken.
        """
        members = self._get("/redfish/v1/Chassis").get("Members")
        paths = [_link(member) for member in _list(members)]
        found: dict[str, list[str]] = {}
        known: list[str] = []
        for path in filter(None, paths):
            name = path.rstrip("/").rpartition("/")[2]
            known.append(name)
            if wanted not in (None, name):
                continue
            chassis = self._get(path)
            pages = (_link(chassis.get(k)) for k in ("EnvironmentMetrics", "Power"))
            links = [page for page in pages if page]
            around = chassis.get("Links")
            is_inside = isinstance(around, dict) and around.get("ContainedBy")
            if links and (wanted or not is_inside):
                found[name] = links
        if len(found) == 1:
            return found.popitem()
        if found:
            raise ConfigError(
                f"redfish at {self._url} has several chassis with power "
                f"({', '.join(found)}) and cannot tell which is the node: "
                "add chassis=ID"
            )
        raise SensorError(
            f"redfish at {self._url} shows no power of "
            f"{f'chassis {wanted!r}' if wanted else 'any chassis'}; "
            f"chassis there: {', '.join(known) or 'none'}"
        )

    def _ask(self) -> Sequence[Reading]:
        for link in self._links:
            page, reply = self._http.get_json(self._url + link)
            joules, watts = parse_power(page)
            if joules is not None or watts is not None:
                return [Reading(self._device, joules, watts, reply.at_seconds)]
        raise SensorError(f"redfish at {self._url}: {self._device} shows no power now")

    def _get(self, path: str) -> dict[str, Any]:
        return self._http.get_json(self._url + path)[0]


def parse_power(page: Mapping[str, Any]) -> tuple[float | None, float | None]:
    """Joules and watts of an EnvironmentMetrics or a Power resource; None if absent.

    Kilowatt-hours are used only where there is neither joules nor watts: a
    usual step of 0.001 kWh is 3600 J, many seconds of a whole node.
    """
    watts = _number(_reading(page, "PowerWatts"))
    controls = _list(page.get("PowerControl"))
    if watts is None and controls and isinstance(controls[0], dict):
        watts = _number(controls[0].get("PowerConsumedWatts"))
    joules = _number(_reading(page, "EnergyJoules"))
    kilowatt_hours = _number(_reading(page, "EnergykWh"))
    if joules is None and watts is None and kilowatt_hours is not None:
        joules = kilowatt_hours * JOULES_PER_KWH
    return joules, watts


def _link(value: object) -> str | None:
    """The path a reference points to; None for anything else."""
    path = value.get("@odata.id") if isinstance(value, dict) else None
    return path if isinstance(path, str) and path.startswith("/") else None


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _reading(page: Mapping[str, Any], name: str) -> object:
    excerpt = page.get(name)
    return excerpt.get("Reading") if isinstance(excerpt, dict) else None


def _number(value: object) -> float | None:
    return figure(value)


def open_redfish(options: SourceOptions) -> EnergySource:
    """Raises ConfigError without an address, SensorError without an answer."""
    argument = parse_argument(
        "redfish", options.argument, ("user-env", "password-env", "chassis", "verify")
    )
    if options.gpus:
        raise ConfigError("--power redfish measures the node; --gpus is not for it")
    url = base_url("redfish", argument.address, EXAMPLE)
    user, password = argument.secret("user-env"), argument.secret("password-env")
    if (user is None) != (password is None):
        raise ConfigError(
            f"--power redfish needs both user-env and password-env, or none: {EXAMPLE}"
        )
    is_verified = argument.choice("verify", ("yes", "no"), "yes") == "yes"
    if not is_verified:
        log.warning("redfish at %s: its certificate is not checked (verify=no)", url)
    return RedfishSource(
        url,
        basic_auth=(user, password) if user is not None and password else None,
        chassis=argument.options.get("chassis"),
        is_verified=is_verified,
    )
