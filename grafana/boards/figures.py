"""Names, colours, empty states and figures that more than one dashboard shows."""

from __future__ import annotations

from grafana.boards.panel import Stat
from grafana.boards.query import gained, rate, ratio, series, total

ENERGY = "servewatt_request_energy_joules"
OUTPUT_TOKENS = "servewatt_request_output_tokens_sum"
TTFT = "servewatt_request_ttft_seconds"
TPOT = "servewatt_request_time_per_output_token_seconds"
DURATION = "servewatt_request_duration_seconds"
JOULES_PER_KWH = "3.6e6"

NO_LOAD = "no load generator"
NO_REQUEST = "no answered request"
NO_SENSOR = "no energy is measured"
NO_BOARD = "no board tells"

ACCOUNT_COLOURS = {
    "prefill": "blue",
    "decode": "purple",
    "idle_share": "light-orange",
    "idle": "text",
    "unattributed": "red",
}
UP_STATES = {0: ("DOWN", "red"), 1: ("up", "green")}

IS_SIMULATED = Stat(
    title="Joules are",
    unit="none",
    description="Whether a device or a simulator gave the joules on this page; with "
    "one simulated sensor in it, all of a sum is.",
    queries={"": total(series("servewatt_sensor_simulated"), function="max")},
    states={0: ("measured", "green"), 1: ("SIMULATED", "orange")},
    empty=NO_SENSOR,
)


def answered_joules_per_token(by: str = "") -> str:
    """Of late; joules and tokens are those of the same requests."""
    return ratio(
        rate(f"{ENERGY}_sum", by, outcome="ok"), rate(OUTPUT_TOKENS, by, outcome="ok")
    )


def answered_joules_per_token_shown(by: str = "") -> str:
    """The same, over the time shown."""
    return ratio(
        gained(f"{ENERGY}_sum", by, outcome="ok"),
        gained(OUTPUT_TOKENS, by, outcome="ok"),
    )
