"""A real meter after a small load: two requests, one of each kind, 100 W idle."""

from __future__ import annotations

from dataclasses import replace

from proxy.meter.config import MeterConfig
from proxy.meter.ledger import RequestRecord
from proxy.meter.meter import Meter
from proxy.wire.events import PowerSampled, RequestClosed, RequestOpened, TokensReceived
from proxy.wire.facts import Labels, Reading, RequestFacts, Update, Usage

IDLE_WATTS = 100.0
BUSY_WATTS = 400.0
OTHER_WATTS = 25.0


def metered(
    config: MeterConfig | None = None, *, has_node: bool = False
) -> tuple[Meter, list[RequestRecord]]:
    """The meter at second 8, and what it settled: requests ran from 2.0 to 4.0.

    The node, where it has a sensor, draws twice what the GPU draws, and has a GPU
    that the engine does not use.
    """
    names = ("gpu", "node") if has_node else ("gpu",)
    meter = Meter(replace(config or MeterConfig(), boundaries=names))
    facts = RequestFacts(route="chat", model="m", is_stream=True)
    records: list[RequestRecord] = []
    opened = closed = False
    joules = 0.0
    for step in range(400):
        now = step * 0.02
        joules += 0.02 * (BUSY_WATTS if 2.0 <= now < 4.0 else IDLE_WATTS)
        if now >= 2.0 and not opened:
            opened = True
            meter.feed(
                RequestOpened(
                    1, now, "chatty", facts, Labels("m", "conversation", "none")
                )
            )
            meter.feed(
                RequestOpened(2, now, "coder", facts, Labels("m", "code", "none"))
            )
        if opened and not closed and step % 5 == 0:
            for key in (1, 2):
                meter.feed(
                    TokensReceived(key, now, (Update(carries_token=True, tokens=1),))
                )
        if now >= 4.0 and not closed:
            closed = True
            for key, prompt in ((1, 100), (2, 1000)):
                usage = Usage(prompt_tokens=prompt, output_tokens=21, cached_tokens=0)
                meter.feed(
                    TokensReceived(key, now, (Update(usage=usage, is_usage_only=True),))
                )
                meter.feed(RequestClosed(key, now, "ok", status=200))
        meter.feed(
            PowerSampled("gpu", now, (Reading("gpu0", joules=round(joules, 3)),))
        )
        if has_node:
            other = Reading("gpu1", joules=round(now * OTHER_WATTS, 3), is_outside=True)
            meter.feed(PowerSampled("gpu", now, (other,)))
            meter.feed(
                PowerSampled(
                    "node", now, (Reading("psu", joules=round(2 * joules, 3)),)
                )
            )
        records += meter.settle(now)
    return meter, records
