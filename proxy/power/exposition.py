"""Prometheus text: the few samples a source wants out of a page of thousands."""

from __future__ import annotations

from collections.abc import Sequence

from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from proxy.errors import SensorError

SIMULATED = "servewatt_simulated"
"""A sample of this name with value 1 marks the whole page as not measured."""


def samples_named(text: str, names: Sequence[str]) -> tuple[list[Sample], bool]:
    """Samples with one of these names, and whether a simulator made the page.

    Raises SensorError on lines that are not in Prometheus' format.
    """
    # An exporter shows dozens of families per device: parse those asked for.
    wanted = "\n".join(
        line for line in text.splitlines() if line.startswith((*names, SIMULATED))
    )
    try:
        found = [
            sample
            for family in text_string_to_metric_families(wanted + "\n")
            for sample in family.samples
        ]
    except ValueError as error:
        raise SensorError(f"not Prometheus text: {error}") from None
    is_simulated = any(s.name == SIMULATED and s.value == 1 for s in found)
    return [sample for sample in found if sample.name in names], is_simulated
