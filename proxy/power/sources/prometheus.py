"""Any Prometheus text endpoint: an exporter, a PDU's page, Prometheus' `/federate`.

    prometheus=http://host:8888/metrics#joules=METRIC{label="x"}&boundary=node

`joules` and `watts` select series by name and labels (`=` or `=~`), `joules-scale`
and `watts-scale` turn their unit into joules and watts, `device` names the label
that tells devices apart. Stamps in the text are honoured, on the remote clock.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass

from prometheus_client.samples import Sample

from proxy.errors import ConfigError, SensorError
from proxy.power.argument import BOUNDARIES, base_url, parse_argument
from proxy.power.blanks import figure
from proxy.power.energy_source import EnergySource, SourceOptions
from proxy.power.http import HttpSensor, RemoteClock, read_samples
from proxy.wire.facts import Reading

EXAMPLE = "'prometheus=http://host:8888/metrics#joules=METRIC&boundary=host'"
OPTIONS = ("joules", "watts", "joules-scale", "watts-scale", "device", "boundary")

DEVICE_LABELS = ("gpu", "device", "index", "instance")
"""Without a `device` option: the first of these that the series carry."""

MIG_LABELS = ("GPU_I_ID", "GPU_I_PROFILE", "mig_instance", "mig_profile")
UUID_LABELS = ("UUID", "uuid", "gpu_uuid", "GPU_UUID")
"""What makes a board the same under two names."""

SELECTOR = re.compile(r"([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{(.*)\})?")
MATCHER = re.compile(r'\s*([a-zA-Z_]\w*)\s*(=~?)\s*"([^"]*)"\s*(?:,|$)')


@dataclass(frozen=True, slots=True)
class Selector:
    """One metric by name, its labels each fully matching a pattern."""

    metric: str
    labels: tuple[tuple[str, re.Pattern[str]], ...]
    scale: float
    """Factor that turns a value into joules or watts."""

    def matches(self, sample: Sample) -> bool:
        """Whether a sample is of one of the selected series."""
        return sample.name == self.metric and all(
            pattern.fullmatch(sample.labels.get(label, ""))
            for label, pattern in self.labels
        )


@dataclass(frozen=True, slots=True)
class Query:
    """The series of a page that are energy or power, and their device label."""

    joules: Selector | None
    watts: Selector | None
    device_label: str | None = None


class PrometheusSource:
    """One page of Prometheus text, scraped at every read."""

    name = "prometheus"
    follows_updates = True

    def __init__(self, url: str, query: Query, boundary: str) -> None:
        self.boundary = boundary
        self.is_simulated = False
        self._url = url
        self._query = query
        self._http = HttpSensor(self.name, expected="Prometheus text")
        self._clock = RemoteClock(time.time() - time.monotonic())

    @property
    def clock_offset_seconds(self) -> float | None:
        """Offset by the `Date` headers so far; zero while that fits them all."""
        return self._clock.offset_seconds

    def read(self) -> Sequence[Reading]:
        """One scrape. Raises SensorError with the address and what was wrong."""
        reply = self._http.get(self._url)
        if reply.date_unix_seconds is not None:
            self._clock.observe(
                reply.begin_seconds, reply.end_seconds, reply.date_unix_seconds, 1.0
            )
        readings, stamp, self.is_simulated = parse_page(reply.text, self._query)
        if not readings:
            raise SensorError(
                f"prometheus at {self._url} shows none of the selected series"
            )
        if stamp is None:
            return readings
        at = self._clock.local_seconds(stamp)
        return [Reading(r.device, r.joules, r.watts, at) for r in readings]

    def close(self) -> None:
        """Close the connection."""
        self._http.close()


def parse_page(text: str, query: Query) -> tuple[list[Reading], float | None, bool]:
    """Readings by device, the newest stamp (Unix seconds) if any, simulated or not.

    Raises SensorError on other text, and where two series name one device: to
    take either would be a guess, to add them perhaps a double count. Raises
    ConfigError for parts of a board, and for one board under two names.
    """
    selectors = [s for s in (query.joules, query.watts) if s is not None]
    samples, is_simulated = read_samples(text, [s.metric for s in selectors])
    figures: dict[Selector, dict[str, float | None]] = {s: {} for s in selectors}
    boards: dict[Selector, dict[str, str]] = {s: {} for s in selectors}
    stamps: list[float] = []
    for sample in samples:
        for selector in selectors:
            if not selector.matches(sample):
                continue
            device = _device(sample, query.device_label)
            _check_board(sample, selector, device, boards[selector])
            if device in figures[selector]:
                raise SensorError(
                    f"prometheus: two series of {selector.metric} are device "
                    f"{device!r}; name the label that tells them apart with "
                    'device=LABEL, or select one with {label="value"}'
                )
            value = figure(sample.value)
            figures[selector][device] = (
                None if value is None else value * selector.scale
            )
            if sample.timestamp is not None and math.isfinite(sample.timestamp):
                stamps.append(float(sample.timestamp))
    joules = figures[query.joules] if query.joules else {}
    watts = figures[query.watts] if query.watts else {}
    devices = sorted(joules.keys() | watts.keys())
    readings = [Reading(d, joules.get(d), watts.get(d)) for d in devices]
    return readings, max(stamps, default=None), is_simulated


def _check_board(
    sample: Sample, selector: Selector, device: str, boards: dict[str, str]
) -> None:
    """Raises ConfigError for a part of a board, or one board under two names."""
    for label in MIG_LABELS:
        if sample.labels.get(label):
            raise ConfigError(
                f"prometheus: {selector.metric} of {device!r} is of a MIG instance "
                f"({label}={sample.labels[label]!r}): energy is only known for the "
                "whole board, which its instances share; switch MIG off "
                "(nvidia-smi -mig 0) to meter it"
            )
    uuid = next(
        (sample.labels[name] for name in UUID_LABELS if name in sample.labels), ""
    )
    other = boards.setdefault(uuid, device) if uuid else device
    if other != device:
        raise ConfigError(
            f"prometheus: {selector.metric} shows board {uuid} as {other!r} and as "
            f"{device!r}: its joules would count double, select one of them with "
            '{label="value"}'
        )


def _device(sample: Sample, label: str | None) -> str:
    labels = (label,) if label else DEVICE_LABELS
    for known in labels:
        if known in sample.labels:
            return f"{known}{sample.labels[known]}"
    return "all"


def parse_selector(text: str, scale: float) -> Selector:
    """`METRIC` or `METRIC{label="x",other=~"y.*"}`. Raises ConfigError otherwise."""
    found = SELECTOR.fullmatch(text)
    rest = (found[2] or "") if found else ""
    labels: list[tuple[str, re.Pattern[str]]] = []
    try:
        while rest and (matcher := MATCHER.match(rest)):
            value = matcher[3] if matcher[2] == "=~" else re.escape(matcher[3])
            labels.append((matcher[1], re.compile(value)))
            rest = rest[matcher.end() :]
    except re.error:
        pass  # the remainder in `rest` is refused below
    if found is None or rest.strip():
        raise ConfigError(
            f"--power prometheus: {text!r} is not a series, expected "
            'METRIC or METRIC{label="value"}'
        )
    return Selector(found[1], tuple(labels), scale)


def open_prometheus(options: SourceOptions) -> EnergySource:
    """Raises ConfigError without an address or anything to select."""
    argument = parse_argument("prometheus", options.argument, OPTIONS)
    url = base_url("prometheus", argument.address, EXAMPLE)
    if options.gpus:
        raise ConfigError(
            "--gpus does not choose series of --power prometheus; select them with "
            'joules=METRIC{gpu="0"}'
        )
    selectors = {
        key: parse_selector(argument.options[key], argument.number(f"{key}-scale", 1.0))
        for key in ("joules", "watts")
        if key in argument.options
    }
    if not selectors:
        raise ConfigError(
            f"--power prometheus needs joules=METRIC or watts=METRIC: {EXAMPLE}"
        )
    if "boundary" not in argument.options:
        raise ConfigError(
            "--power prometheus cannot know what its joules contain; add "
            f"boundary={'|'.join(BOUNDARIES)}: {EXAMPLE}"
        )
    query = Query(
        selectors.get("joules"), selectors.get("watts"), argument.options.get("device")
    )
    return PrometheusSource(url, query, argument.choice("boundary", BOUNDARIES, "gpu"))
