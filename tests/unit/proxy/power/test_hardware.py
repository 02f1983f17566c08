"""How boards work: what is believed, what is kept, what a window says of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.power.blanks import ANY
from proxy.power.hardware import (
    HOLD_SECONDS,
    MAX_SERIES,
    MAX_STATES,
    HardwareLog,
    board_text,
    celsius,
    clock_hertz,
    error_count,
    limit_watts,
    throttle_reasons,
    xid_number,
)
from proxy.power.sources.dcgm import SHOWN, parse_dcgm
from proxy.wire.api import BoardSummary
from proxy.wire.events import HardwareObserved
from proxy.wire.facts import HardwareState
from tests.support.profiles import examples

BELIEFS = {
    "clock_hertz": clock_hertz,
    "celsius": celsius,
    "limit_watts": limit_watts,
    "error_count": error_count,
    "xid_number": xid_number,
    "throttle_reasons": throttle_reasons,
}
ANYTHING = (
    st.floats()
    | st.integers()
    | st.sampled_from(sorted(ANY))
    | st.none()
    | st.booleans()
    | st.text(max_size=5)
)


@pytest.mark.parametrize("believed", BELIEFS.values(), ids=BELIEFS)
@examples(100)
@given(value=ANYTHING)
def test_a_figure_is_one_that_a_board_can_have_or_none(
    believed: object, value: object
) -> None:
    found = believed(value)  # type: ignore[operator]  # one of six functions
    if found is None or isinstance(found, tuple):
        return
    assert math.isfinite(found)
    assert value not in ANY


def test_figures_come_in_base_units() -> None:
    assert clock_hertz(1980) == 1.98e9
    assert celsius(-3.5) == -3.5
    assert limit_watts(700) == 700.0
    assert error_count(0) == 0
    assert xid_number(79) == 79


@pytest.mark.parametrize(
    ("believed", "absurd"),
    [
        (clock_hertz, 0), (clock_hertz, 2e6), (celsius, 200), (celsius, -60),
        (limit_watts, 0), (limit_watts, 1e5), (error_count, -1), (error_count, 1e18),
        (xid_number, 1e9), (throttle_reasons, -1), (throttle_reasons, 0.5),
        (throttle_reasons, math.nan), (clock_hertz, "1980"), (celsius, True),
    ],
)  # fmt: skip
def test_an_absurd_figure_is_none(believed: object, absurd: object) -> None:
    assert believed(absurd) is None  # type: ignore[operator]  # one of six functions


def test_bits_are_reasons_by_name_and_a_new_one_is_unknown() -> None:
    assert throttle_reasons(0) == ()
    assert throttle_reasons(0x44) == ("sw_power_cap", "hw_thermal_slowdown")
    assert throttle_reasons(0x8004) == ("sw_power_cap", "unknown")


DCGM_PAGE = """\
DCGM_FI_DEV_POWER_USAGE{gpu="0",UUID="GPU-a"} 301.5
DCGM_FI_DEV_POWER_USAGE{gpu="1",UUID="GPU-b"} 60
DCGM_FI_DEV_SM_CLOCK{gpu="0",UUID="GPU-a"} 1410
DCGM_FI_DEV_MEM_CLOCK{gpu="0",UUID="GPU-a"} 1593
DCGM_FI_DEV_GPU_TEMP{gpu="0",UUID="GPU-a"} 64
DCGM_FI_DEV_CLOCK_THROTTLE_REASONS{gpu="0",UUID="GPU-a"} 4
DCGM_FI_DEV_POWER_MGMT_LIMIT{gpu="0",UUID="GPU-a"} 400
DCGM_FI_DEV_ECC_SBE_VOL_TOTAL{gpu="0",UUID="GPU-a"} 3
DCGM_FI_DEV_ECC_DBE_VOL_TOTAL{gpu="0",UUID="GPU-a"} 9223372036854775792
DCGM_FI_DEV_XID_ERRORS{gpu="0",UUID="GPU-a",err_code="31"} 31
"""


def test_a_dcgm_page_tells_what_it_has() -> None:
    page = parse_dcgm(DCGM_PAGE, frozenset(), SHOWN)
    assert page.states == (
        HardwareState(
            "gpu0", 1.41e9, 1.593e9, 64.0, ("sw_power_cap",), 400.0, 3, None, 31
        ),
        HardwareState("gpu1"),
    )


def test_a_dcgm_page_names_board_and_driver() -> None:
    named = DCGM_PAGE.replace(
        'UUID="GPU-a"',
        'UUID="GPU-a",modelName="NVIDIA H100",DCGM_FI_DRIVER_VERSION="550.90"',
    )
    first, second = parse_dcgm(named, frozenset(), SHOWN).states
    assert (first.model, first.driver) == ("NVIDIA H100", "550.90")
    assert (second.model, second.driver) == (None, None)


@pytest.mark.parametrize(
    ("told", "text"),
    [
        ("A ", "A"),
        (b"B", "B"),
        ("", None),
        (None, None),
        (3, None),
        ("x" * 999, "x" * 96),
    ],
)
def test_a_name_is_a_short_text(told: object, text: str | None) -> None:
    assert board_text(told) == text


def test_the_reasons_have_an_old_name_and_a_new_one() -> None:
    renamed = DCGM_PAGE.replace("CLOCK_THROTTLE_REASONS", "CLOCKS_EVENT_REASONS")
    assert parse_dcgm(renamed, frozenset(), SHOWN) == parse_dcgm(
        DCGM_PAGE, frozenset(), SHOWN
    )


def test_boards_that_are_not_chosen_have_no_state() -> None:
    page = parse_dcgm(DCGM_PAGE, frozenset({"1"}), SHOWN)
    assert page.states == (HardwareState("gpu1"),)


# -- what is kept --------------------------------------------------------------


def log_of(states: Sequence[HardwareState | None], step: float = 1.0) -> HardwareLog:
    """One board observed every `step` seconds; None: it did not answer."""
    log = HardwareLog()
    for number, state in enumerate(states):
        found = () if state is None else (state,)
        log.add(HardwareObserved("gpu", number * step, found))
    return log


def board(reasons: tuple[str, ...] = (), **figures: object) -> HardwareState:
    return HardwareState("gpu0", throttle_reasons=reasons, **figures)  # type: ignore[arg-type]  # figures are of many types


def window_of(
    states: Sequence[HardwareState | None], begin: float = 0.0, end: float = 100.0
) -> BoardSummary:
    (found,) = log_of(states).within(begin, end).boards()
    return found


CAPPED = board(("sw_power_cap", "hw_slowdown"))


def test_seconds_of_throttling_are_counted_by_reason_and_once_in_all() -> None:
    found = window_of(
        [board(), CAPPED, CAPPED, board(("gpu_idle",)), board()], 0.0, 4.5
    )
    assert found.seconds == 4.5
    assert found.throttled_seconds == 2.0
    assert found.throttled_seconds_by_reason == {
        "hw_slowdown": 2.0, "sw_power_cap": 2.0,
    }  # fmt: skip


def test_a_window_cuts_what_was_observed_before_and_after() -> None:
    assert window_of([CAPPED] * 10, 2.25, 4.5).throttled_seconds == 2.25


def test_settings_and_idleness_are_no_throttling() -> None:
    settings = board(("gpu_idle", "applications_clocks_setting", "sync_boost"))
    assert window_of([settings] * 3).throttled_seconds == 0.0


def test_a_board_that_tells_no_reasons_is_not_called_well() -> None:
    found = window_of([HardwareState("gpu0", temperature_celsius=50.0)] * 3)
    assert found.throttled_seconds is None
    assert found.power_limit_changes is None
    assert found.other_processes is None
    assert found.xids is None


def test_an_observation_holds_for_a_while_only() -> None:
    log = HardwareLog()
    log.add(HardwareObserved("gpu", 0.0, (CAPPED,)))
    log.add(HardwareObserved("gpu", 60.0, (board(),)))
    (found,) = log.within(0.0, 60.0).boards()
    assert found.throttled_seconds == HOLD_SECONDS
    assert log.slowdown_seconds["gpu", "gpu0", "sw_power_cap"] == HOLD_SECONDS


def test_clocks_are_those_of_a_board_that_works() -> None:
    idle = board(("gpu_idle",), sm_clock_hertz=2.1e8)
    busy = [board(sm_clock_hertz=hertz) for hertz in (1.9e9, 1.5e9, 1.8e9)]
    found = window_of([idle, *busy, idle])
    assert found.sm_clock_hertz is not None
    assert (found.sm_clock_hertz.min, found.sm_clock_hertz.median) == (1.5e9, 1.8e9)
    alone = window_of([idle]).sm_clock_hertz
    assert alone is not None
    assert alone.max == 2.1e8


def test_changes_of_the_limit_new_faults_and_errors_are_counted() -> None:
    found = window_of(
        [
            board(power_limit_watts=700.0, corrected_ecc_errors=5, last_xid=13),
            board(power_limit_watts=500.0, corrected_ecc_errors=7, last_xid=13),
            board(power_limit_watts=700.0, corrected_ecc_errors=1, last_xid=79),
        ]
    )
    assert found.power_limit_changes == 2
    assert found.corrected_ecc_errors == 3  # two, then one since a new start
    assert found.xids == [79]
    assert found.power_limit_watts is not None
    assert found.power_limit_watts.min == 500.0


def test_other_processes_are_those_beside_one() -> None:
    alone, shared = board(process_ids=(7,)), board(process_ids=(7, 9, 12))
    found = window_of([alone, shared, alone, board(process_ids=())], 0.0, 4.0)
    assert found.other_processes == 2
    assert found.shared_seconds == 1.0
    assert found.process_ids == [7, 9, 12]


def test_changes_of_the_limit_are_counted_since_the_start() -> None:
    limits = [700.0, 700.0, 500.0, 700.0]
    log = log_of([board(power_limit_watts=watts) for watts in limits])
    assert log.limit_changes["gpu", "gpu0"] == 2


def test_what_is_not_observed_any_more_is_not_shown_as_now() -> None:
    log = log_of([CAPPED, None])
    assert list(log.now()) == []
    assert log.observed_seconds() is None
    assert log.within(10.0, 20.0).boards() == []


def test_a_window_holds_no_more_than_what_reaches_into_it() -> None:
    log = log_of([CAPPED] * 5000)
    assert len(log.within(100.0, 110.0).events) <= 11 + 2 * HOLD_SECONDS


def test_memory_is_bounded_and_the_series_thinned() -> None:
    log = log_of([board(sm_clock_hertz=1.98e9)] * (MAX_STATES + 100))
    whole = log.within(-math.inf, math.inf)
    (found,) = whole.boards()
    assert found.seconds == pytest.approx(MAX_STATES, abs=HOLD_SECONDS)
    series = whole.series(offset_seconds=1000.0)
    assert MAX_SERIES / 2 < len(series.at_unix_seconds) <= MAX_SERIES
    assert series.at_unix_seconds[0] == 1100.0
    assert set(series.sm_clock_hertz) == {1.98e9}


@given(
    cuts=st.lists(st.floats(0.0, 20.0), max_size=5),
    capped=st.lists(st.booleans(), min_size=2, max_size=20),
)
@examples(50)
def test_pieces_of_a_window_add_up(cuts: list[float], capped: list[bool]) -> None:
    log = log_of([CAPPED if each else board() for each in capped])
    edges = sorted({0.0, 30.0, *cuts})

    def throttled(begin: float, end: float) -> float:
        return sum(
            each.throttled_seconds or 0.0 for each in log.within(begin, end).boards()
        )

    pieces = [throttled(a, b) for a, b in pairwise(edges)]
    assert sum(pieces) == pytest.approx(throttled(0.0, 30.0))
