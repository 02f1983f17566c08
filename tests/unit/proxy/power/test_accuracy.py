"""What sensors' makers state, and nothing that they do not."""

from __future__ import annotations

from proxy.power.accuracy import ACCURACY_FRACTION, accuracy_of
from proxy.power.sources import NAMES


def test_only_known_sources_have_an_accuracy() -> None:
    assert set(ACCURACY_FRACTION) <= set(NAMES)


def test_a_model_is_exact_and_an_unstated_accuracy_is_unknown() -> None:
    assert accuracy_of("nvml", is_simulated=False) == 0.05
    assert accuracy_of("dcgm", is_simulated=True) == 0.0
    assert accuracy_of("ipmi", is_simulated=False) is None
