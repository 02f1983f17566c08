"""Configuration of `metering-proxy meter`: its fields are the options."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from msgspec import Meta

from proxy.power.argument import BOUNDARIES
from proxy.power.sources import split_sources
from proxy.process.options import Option, split_names


def _sources(text: str) -> tuple[str, ...]:
    found = tuple(split_sources(text))
    if len(set(found)) < len(found):
        raise ValueError(f"{text!r} names a source twice")
    return tuple(source for source in found if source != "none")


def _labels(pairs: tuple[str, ...]) -> dict[str, str]:
    found = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not key or not equals:
            raise ValueError(f"{pair!r} is not KEY=VALUE")
        found[key] = value
    return found


def _tdp_watts(texts: tuple[str, ...]) -> dict[str, float]:
    found = {}
    for text in texts:
        boundary, _, number = text.rpartition("=")
        try:
            watts = float(number)
        except ValueError:
            watts = 0.0
        if not 0 < watts < float("inf") or boundary not in ("", *BOUNDARIES):
            raise ValueError(
                f"{text!r} is neither watts of each GPU, such as 700, nor "
                f"BOUNDARY=WATTS with one of {', '.join(BOUNDARIES)}"
            )
        found[boundary or "each"] = watts
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasureConfig:
    """One command to be metered."""

    command: tuple[str, ...]
    sources: Annotated[
        tuple[str, ...],
        Option(
            "Sensors, side by side, as `metering-proxy sources` lists them.",
            "SOURCE,...",
            heading="Meter",
            name="power",
            parse=_sources,
            default="nvml",
        ),
    ] = ("nvml",)
    gpus: Annotated[
        tuple[str, ...],
        Option(
            "GPUs to count: indices or UUIDs.",
            "0,1",
            parse=split_names,
            default="",
            default_is="all",
        ),
    ] = ()
    sample_interval_seconds: Annotated[
        float,
        Meta(ge=0.001, le=60),
        Option("Seconds between two reads of a sensor.", "S", name="interval"),
    ] = 0.02
    baseline_seconds: Annotated[
        float,
        Meta(ge=0, le=3600),
        Option(
            "Measure this long before the start; 0 for no baseline. Longer than a "
            "slow sensor's period, or its energy stays unknown.",
            "S",
        ),
    ] = 1.0
    tdp_watts: Annotated[
        Mapping[str, float],
        Option(
            "Rated watts of each GPU, or of a whole boundary, for the runtime x TDP "
            "figure.",
            "W|BOUNDARY=W",
            name="tdp",
            parse=_tdp_watts,
            multiple=True,
            default_is="the GPUs' power limit",
        ),
    ] = field(default_factory=dict)
    """By boundary, of all its devices; `each` is of every GPU."""
    json_path: Annotated[
        str | None,
        Option(
            "Write the figures as JSON: to a file, or with - or nothing to standard "
            "output, behind what the command wrote there.",
            "[PATH]",
            heading="Output",
            name="json",
            bare="-",
        ),
    ] = None
    phases_path: Annotated[
        Path | None,
        Option(
            "Report parts of the command too: it appends a JSON line for each to this "
            "file, with name, begin_seconds and end_seconds (monotonic clock).",
            "PATH",
            name="phases",
        ),
    ] = None
    textfile_folder: Annotated[
        Path | None,
        Option(
            "Add to a file in this folder of node_exporter's textfile collector, one "
            "for each user and --name.",
            "DIR",
            name="textfile",
        ),
    ] = None
    name: Annotated[
        str | None, Option("Name in that file.", "NAME", default_is="the program's")
    ] = None
    labels: Annotated[
        Mapping[str, str],
        Option(
            "Kept in the JSON, and a label in the textfile: few values.",
            "K=V",
            name="label",
            parse=_labels,
            multiple=True,
        ),
    ] = field(default_factory=dict)
    quiet: Annotated[bool, Option("No figures on standard error.")] = False

    @property
    def run_name(self) -> str:
        """The name that was given, or that of the program."""
        program = os.path.basename(self.command[0])
        return self.name or re.sub(r"[^A-Za-z0-9._-]", "_", program)[:64]
