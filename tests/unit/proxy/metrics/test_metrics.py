"""The exported figures: one table, one snapshot, names and units as promised."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import Metric
from prometheus_client.openmetrics import parser as openmetrics_parser
from prometheus_client.parser import text_string_to_metric_families

from proxy import __version__
from proxy.meter.attribution.fit import FitRules
from proxy.meter.config import MeterConfig
from proxy.metrics.collector import Metrics
from proxy.metrics.histograms import MAX_CLASSES, PROMPT_BINS, ClassBound, length_bin
from proxy.metrics.recent import render_recent
from proxy.metrics.samples import EngineSnapshot, Measured, RequestMetric, Snapshot
from proxy.metrics.table import METRICS, REQUEST_METRICS
from proxy.power.engine_load import GaugeStats
from proxy.power.hardware import HardwareLog
from proxy.power.sampler import SamplerStats
from proxy.process.build import build_form
from proxy.process.tally import Tally
from proxy.recording.recorder import RecordingState
from proxy.relay.counters import RelayCounters
from proxy.wire.api import StoreState
from proxy.wire.events import EngineObserved, HardwareObserved
from proxy.wire.facts import EngineGauges, HardwareState
from tests.support.metered import metered

STATE = HardwareState(
    "gpu0", 1.98e9, 2.6e9, 61.0, ("hw_thermal_slowdown",), 700.0, 2, 0, 31, (7, 9)
)


@pytest.fixture(scope="module")
def metrics() -> Metrics:
    meter, records = metered(
        MeterConfig(
            fit_rules=FitRules(row_seconds=0.1, refit_seconds=0.1, min_rows=1000),
            engine="vllm",
        )
    )
    gauges = EngineGauges(running=0, waiting=0, draft_tokens=9.0, accepted_tokens=6.0)
    meter.feed(EngineObserved(7.9, gauges))
    found = Metrics()
    found.observe(records)
    up = SamplerStats(samples=400, is_up=True, boundary="gpu", heard_seconds=7.9)
    store = StoreState(
        url="sqlite:///x", is_up=True, last_error=None,
        queue_records=3, written_total=5, dropped_total=2, deleted_total=1,
    )  # fmt: skip
    boards = HardwareLog()
    for at in (1.0, 2.0):
        boards.add(HardwareObserved("gpu", at, (STATE,)))
    engine = EngineSnapshot(
        "vllm",
        [Measured("gpu", "nvml", meter.state(), up)],
        RelayCounters(chunks=7),
        records_without_energy=found.records_without_energy("vllm"),
        legs={"prefill": 2},
        leg_joules={"prefill": 40.0},
        gauges=GaugeStats(scrapes_total=8, errors_total=1, is_up=True),
        boards=tuple(boards.now()),
        slowdown_seconds=dict(boards.slowdown_seconds),
        limit_changes=dict(boards.limit_changes),
        at_seconds=8.0,
        bin_requests=found.bins.requests_of("vllm"),
        bin_joules=found.bins.joules_of("vllm"),
    )
    recording = RecordingState(True, 7, Counter(file=2))
    found.show(
        Snapshot(
            [engine], RelayCounters(), loop_lag_seconds=0.001, store=store,
            recording=recording,
        )
    )  # fmt: skip
    found.observe([])
    return found


@pytest.fixture(scope="module")
def around() -> Metrics:
    """The same, with a sensor of the node beside it."""
    meter, _ = metered(has_node=True)
    up = SamplerStats(samples=400, is_up=True)
    found = Metrics()
    engine = EngineSnapshot(
        "vllm",
        [
            Measured(
                "gpu", "nvml", meter.state_of("gpu"), up,
                meter.outside_state("gpu"), bare_idle_watts=60.0,
            ),
            Measured("node", "redfish", meter.state_of("node"), SamplerStats()),
        ],
        RelayCounters(),
        ratios=meter.ratios(),
        unjoined_records=meter.unjoined_total,
    )  # fmt: skip
    found.show(Snapshot([engine], RelayCounters()))
    return found


def parsed(text: bytes) -> list[Metric]:
    return list(text_string_to_metric_families(text.decode()))


def values(metrics: Metrics) -> dict[str, float]:
    return {
        sample.name
        + "{"
        + ",".join(f"{k}={v}" for k, v in sorted(sample.labels.items()))
        + "}": sample.value
        for family in parsed(metrics.render(False))
        for sample in family.samples
    }


def test_the_accounts_sum_to_the_settled_energy(metrics: Metrics) -> None:
    shown = values(metrics)
    accounts = [
        value
        for name, value in shown.items()
        if name.startswith("servewatt_energy_joules_total")
    ]
    assert len(accounts) == 5
    measured = shown[
        "servewatt_measured_energy_joules_total{boundary=gpu,device=gpu0,engine=vllm}"
    ]
    assert 0 < sum(accounts) <= measured
    # classes are the same joules, told apart
    classes = sum(
        value
        for name, value in shown.items()
        if name.startswith("servewatt_attributed_energy_joules_total")
    )
    requests = sum(
        shown[f"servewatt_energy_joules_total{{account={a},boundary=gpu,engine=vllm}}"]
        for a in ("prefill", "decode", "idle_share")
    )
    assert classes == pytest.approx(requests)


def test_every_boundary_has_its_own_accounts_and_sensor(around: Metrics) -> None:
    shown = values(around)
    for name, source, up in (("gpu", "nvml", 1), ("node", "redfish", 0)):
        sensor = f"{{boundary={name},engine=vllm,source={source}}}"
        assert shown[f"servewatt_sensor_up{sensor}"] == up
        assert (
            shown[f"servewatt_books_residual_joules{{boundary={name},engine=vllm}}"]
            < 1e-3
        )
        accounts = [
            value
            for key, value in shown.items()
            if key.startswith("servewatt_energy_joules_total")
            and f"boundary={name}," in key
        ]
        measured = [
            value
            for key, value in shown.items()
            if key.startswith("servewatt_measured") and f"boundary={name}," in key
        ]
        assert len(accounts) == 5
        assert 0 < sum(accounts) <= sum(measured)
    ratio = "servewatt_boundary_ratio{{engine=vllm,inner={},outer=node}}"
    assert shown[ratio.format("gpu")] == pytest.approx(1 / 2, rel=1e-3)
    assert 0 < shown[ratio.format("idle_accelerators")] < 25 / 200
    outside = (
        "servewatt_idle_accelerators_power_watts{boundary=gpu,device=gpu1,engine=vllm}"
    )
    assert shown[outside] == pytest.approx(25.0)
    assert shown["servewatt_bare_idle_power_watts{boundary=gpu,engine=vllm}"] == 60.0


def test_every_line_of_the_table_is_shown(metrics: Metrics, around: Metrics) -> None:
    shown = {
        name.partition("{")[0].removesuffix("_bucket")
        for name in values(metrics) | values(around)
    }
    without_cause = {
        "servewatt_unattributed_energy_joules_total",
        "servewatt_requests_total",
        "servewatt_refused_requests_total",
        "servewatt_client_timeouts_total",
        "servewatt_loop_errors_total",
        "servewatt_energy_power_ratio",
        "servewatt_relay_up",
        "servewatt_process_restarts_total",
    }
    assert set(METRICS) - shown == without_cause


def test_each_board_shows_how_it_works_and_how_long_it_was_slowed(
    metrics: Metrics,
) -> None:
    shown, of = values(metrics), "boundary=gpu,device=gpu0,engine=vllm"
    for name, value in {
        "sm_clock_hertz": 1.98e9,
        "temperature_celsius": 61.0,
        "power_limit_watts": 700.0,
        "power_limit_changes_total": 0.0,
        "last_xid": 31.0,
        "other_processes": 1.0,
    }.items():
        assert shown[f"servewatt_device_{name}{{{of}}}"] == value
    slowed = "servewatt_device_throttled_seconds_total"
    assert shown[f"{slowed}{{{of},reason=hw_thermal_slowdown}}"] == 1.0
    assert shown[f"{slowed}{{{of},reason=sw_power_cap}}"] == 0.0
    errors = "servewatt_device_ecc_errors{boundary=gpu,device=gpu0,engine=vllm,kind="
    assert shown[f"{errors}corrected}}"] == 2.0


def test_fitted_constants_are_shown(metrics: Metrics) -> None:
    shown = values(metrics)
    constants = [name for name in shown if name.startswith("servewatt_calibration_j")]
    assert len(constants) == 7
    assert all(shown[name] >= 0 for name in constants)
    # two requests are not enough
    assert shown["servewatt_calibration_fitted{engine=vllm}"] == 0.0


def test_single_requests_are_linked_by_exemplars(metrics: Metrics) -> None:
    families = openmetrics_parser.text_string_to_metric_families(  # type: ignore[no-untyped-call]
        metrics.render(True).decode()
    )
    linked = {
        sample.exemplar.labels["request_id"]
        for family in families
        if family.name in REQUEST_METRICS
        for sample in family.samples
        if sample.exemplar
    }
    assert linked == {"chatty", "coder"}


def test_without_a_sensor_no_joule_is_shown() -> None:
    meter, _ = metered()
    bare = Metrics()
    measured = [Measured("none", "none", meter.state(), None)]
    engine = EngineSnapshot("vllm", measured, RelayCounters())
    bare.show(Snapshot([engine], RelayCounters()))
    shown = {name.partition("{")[0] for name in values(bare)}
    assert "servewatt_energy_joules_total" not in shown
    assert "servewatt_books_residual_joules" not in shown


def test_the_last_requests_can_be_scraped_singly() -> None:
    _, records = metered()
    samples = [s for family in parsed(render_recent(records)) for s in family.samples]
    assert len(samples) == 6  # two requests, three phases
    total = sum(s.value for s in samples if s.labels["request_id"] == "coder")
    coder = next(r for r in records if r.request_id == "coder")
    assert total == pytest.approx(coder.energy.energy_joules)


def test_engines_are_told_apart_and_none_is_the_others() -> None:
    meter, records = metered(MeterConfig(engine="one"))
    idle, _ = metered(MeterConfig(engine="two", has_sensor=False))
    up = SamplerStats(samples=400, is_up=True)
    found = Metrics()
    found.observe(records)
    one = EngineSnapshot(
        "one", [Measured("gpu", "nvml", meter.state(), up)], RelayCounters(), 3
    )
    two = EngineSnapshot(
        "two", [Measured("none", "none", idle.state(), None)],
        RelayCounters(rerouted=2), is_up=False, is_draining=True,
        legs={"decode": 3}, leg_joules={"decode": 60.0},
    )  # fmt: skip
    found.show(Snapshot([one, two], RelayCounters()))
    shown = values(found)
    for name, figures in {
        "servewatt_upstream_up": (1, 0),
        "servewatt_upstream_draining": (0, 1),
        "servewatt_requests_in_flight": (3, 0),
        "servewatt_rerouted_requests_total": (0, 2),
    }.items():
        assert shown[f"{name}{{engine=one}}"] == figures[0]
        assert shown[f"{name}{{engine=two}}"] == figures[1]
    assert shown["servewatt_legs_total{engine=two,leg=decode}"] == 3
    assert shown["servewatt_leg_energy_joules_total{engine=two,leg=decode}"] == 60
    assert not any(name.startswith("servewatt_legs_total{engine=one") for name in shown)
    histogram = "servewatt_request_energy_joules_count"
    assert {name for name in shown if name.startswith(histogram)} == {
        f"{histogram}{{engine=one,kind={kind},model=m,outcome=ok,tenant=none}}"
        for kind in ("code", "conversation")
    }


OUTCOMES = ("ok", "aborted", "error", "upstream_error", "unfinished")


@given(
    classes=st.lists(
        st.tuples(*[st.integers(0, 400).map(str)] * 4, st.sampled_from(OUTCOMES)),
        min_size=1,
        max_size=300,
    )
)
def test_no_clients_labels_make_more_classes_than_there_is_room_for(
    classes: list[tuple[str, str, str, str, str]],
) -> None:
    bound = ClassBound()
    seen = {bound.bounded(labels) for labels in classes}
    assert len(seen) <= MAX_CLASSES + len(OUTCOMES)
    assert [bound.bounded(labels) for labels in classes] == [
        bound.bounded(labels) for labels in classes
    ]
    assert all(bound.bounded(labels)[4] == labels[4] for labels in classes)


def test_all_classes_that_there_is_room_for_are_a_page_of_10_000_lines() -> None:
    edges = sum(len(spec.edges) + 3 for spec in REQUEST_METRICS.values())
    assert (MAX_CLASSES + len(OUTCOMES)) * edges < 10_000


def test_a_flood_of_tenants_leaves_the_served_models_apart() -> None:
    bound = ClassBound()
    for number in range(2000):
        bound.bounded(("vllm", "llama", "code", f"tenant-{number}", "ok"))
    assert bound.bounded(("vllm", "llama", "chat", "mine", "ok")) == (
        "vllm", "llama", "other", "other", "ok",
    )  # fmt: skip
    assert bound.bounded(("vllm", "qwen", "chat", "mine", "ok"))[1] == "qwen"


DECADES = {
    "servewatt_request_energy_joules": (0.1, 1e4),
    "servewatt_output_token_energy_joules": (1e-3, 100.0),
    "servewatt_request_ttft_seconds": (1e-3, 100.0),
    "servewatt_inter_token_latency_seconds": (1e-3, 1.0),
    "servewatt_request_time_per_output_token_seconds": (1e-3, 1.0),
    "servewatt_request_duration_seconds": (0.01, 1e3),
}
"""Where a figure is usually, by histogram."""


def quantile(fraction: float, tally: Tally) -> float:
    """`histogram_quantile` of Prometheus, below the last edge."""
    rank = fraction * sum(tally.counts)
    below, bucket = 0, 0
    while below + tally.counts[bucket] < rank:
        below += tally.counts[bucket]
        bucket += 1
    low = tally.edges[bucket - 1] if bucket else 0.0
    part = (rank - below) / tally.counts[bucket]
    return low + (tally.edges[bucket] - low) * part


@pytest.mark.parametrize("name", DECADES)
@given(data=st.data())
def test_the_median_of_identical_requests_is_near_their_figure(
    name: str, data: st.DataObject
) -> None:
    low, high = DECADES[name]
    value = data.draw(st.floats(low, high, exclude_min=True))
    spec = METRICS[name]
    edges = (
        spec.edges if isinstance(spec, RequestMetric) else RelayCounters()
        .token_seconds.edges
    )  # fmt: skip
    tally = Tally(edges)
    tally.add(value, data.draw(st.integers(1, 1000)))
    assert quantile(0.5, tally) == pytest.approx(value, rel=0.12)
    assert all(
        later / sooner <= 1.25
        for sooner, later in pairwise(edges)
        if low <= sooner < high
    )


@pytest.mark.parametrize("outcome", ["error", "aborted", "timeout", "upstream_error"])
def test_what_failed_keeps_the_energy_that_it_consumed(outcome: str) -> None:
    _, records = metered()
    found = Metrics()
    found.observe([replace(records[0], outcome=outcome)])
    (count,) = [
        value
        for name, value in values(found).items()
        if name.startswith("servewatt_request_energy_joules_count")
        and f"outcome={outcome}" in name
    ]
    assert count == 1


def test_a_share_of_idle_alone_is_no_energy_of_a_request() -> None:
    _, records = metered()
    idle = replace(
        records[0].energy, prefill_joules=0.0, decode_joules=0.0, energy_joules=0.006,
        idle_share_joules=0.006,
    )  # fmt: skip
    found = Metrics()
    found.observe(
        [replace(records[0], outcome="error", output_tokens=None, energy=idle)]
    )
    assert not any(name.startswith("servewatt_request_en") for name in values(found))


def test_lengths_have_their_energy_by_bins_and_only_of_whole_replies() -> None:
    _, records = metered()
    found = Metrics()
    found.observe(records)
    found.observe([replace(records[0], outcome="aborted")])
    engine = records[0].engine
    assert found.bins.requests_of(engine) == {("128", "32"): 1, ("2048", "32"): 1}
    assert sum(found.bins.joules_of(engine).values()) == pytest.approx(
        sum(r.energy.energy_joules or 0.0 for r in records)
    )


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [(0, "128"), (128, "128"), (129, "512"), (32_768, "32768"), (32_769, "more")],
)
def test_a_length_is_in_the_bin_that_ends_at_or_above_it(
    tokens: int, expected: str
) -> None:
    assert length_bin(tokens, PROMPT_BINS) == expected


@pytest.mark.parametrize(("is_simulated", "shown"), [(True, "true"), (False, "false")])
def test_the_info_says_whether_joules_are_simulated(
    is_simulated: bool, shown: str
) -> None:
    meter, _ = metered()
    stats = SamplerStats(is_up=True, is_simulated=is_simulated)
    engine = EngineSnapshot(
        "vllm", [Measured("gpu", "dcgm", meter.state(), stats)], RelayCounters()
    )
    found = Metrics()
    found.show(Snapshot([engine], RelayCounters()))
    labels = f"build={build_form()},simulated={shown},version={__version__}"
    info = f"servewatt_build_info{{{labels}}}"
    assert values(found)[info] == 1


def test_an_age_is_shown_of_a_sensor_that_answered_before() -> None:
    meter, _ = metered()
    silent, heard = SamplerStats(), SamplerStats(heard_seconds=3.0)
    engine = EngineSnapshot(
        "vllm",
        [
            Measured("gpu", "nvml", meter.state(), heard),
            Measured("node", "ipmi", meter.state(), silent),
        ],
        RelayCounters(),
        at_seconds=10.0,
    )
    found = Metrics()
    found.show(Snapshot([engine], RelayCounters()))
    ages = {k: v for k, v in values(found).items() if "sensor_age" in k}
    name = "servewatt_sensor_age_seconds{boundary=gpu,engine=vllm,source=nvml}"
    assert ages == {name: 7.0}


def test_the_exemplar_of_a_long_id_stays_within_what_openmetrics_allows() -> None:
    _, records = metered()
    found = Metrics()
    found.observe([replace(records[0], request_id='"\\' * 300)])
    families = openmetrics_parser.text_string_to_metric_families(  # type: ignore[no-untyped-call]
        found.render(True).decode()
    )
    exemplars = [s.exemplar for f in families for s in f.samples if s.exemplar]
    assert exemplars
    for exemplar in exemplars:
        assert sum(len(k) + len(v) for k, v in exemplar.labels.items()) <= 128


def test_a_figure_that_is_no_number_is_not_counted() -> None:
    _, records = metered()
    found = Metrics()
    found.observe([replace(records[0], finished_seconds=float("nan"))])
    assert not any("duration" in name for name in values(found))


def test_a_request_that_consumed_nothing_has_no_energy_to_observe() -> None:
    _, records = metered()
    refused = replace(
        records[0],
        status=404,
        outcome="error",
        output_tokens=None,
        energy=replace(records[0].energy, energy_joules=0.0),
    )
    found = Metrics()
    found.observe([refused])
    counts = {
        sample.name: sample.value
        for family in text_string_to_metric_families(found.render(False).decode())
        for sample in family.samples
        if sample.name.endswith("_count")
    }
    assert "servewatt_request_energy_joules_count" not in counts
    assert counts["servewatt_request_duration_seconds_count"] == 1


def test_the_proxy_has_its_name_and_host_beside_the_instance_of_the_scrape() -> None:
    found = Metrics()
    found.show(Snapshot([], RelayCounters(), instance="proxy-a", host="node7"))
    page = found.render(False).decode()
    assert 'servewatt_proxy_info{host="node7",name="proxy-a"} 1.0' in page
