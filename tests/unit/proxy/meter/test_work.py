"""What a policy is told that a request did: parallel sequences, chunks, caches."""

from __future__ import annotations

import numpy as np
import pytest

from proxy.meter.activity.work import Activity
from proxy.meter.attribution.policies import FloatArray, by_tokens
from proxy.meter.config import MeterConfig
from proxy.meter.ledger import RequestRecord
from proxy.meter.meter import Meter
from proxy.wire.events import RequestClosed, RequestOpened, TokensReceived
from proxy.wire.facts import Labels, PhaseSeconds, RequestFacts, Update, Usage
from tests.support.meter_scenes import counter, play

PROMPT = 100


class Alone:
    """One request alone on the engine from 2 s on, and all that it was seen to do."""

    def __init__(self, facts: RequestFacts) -> None:
        self._seen: list[Activity] = []
        self.meter = Meter(MeterConfig("probe", {"probe": self._probe}))
        play(self.meter, counter(6.0))
        self.meter.feed(RequestOpened(1, 2.0, "one", facts, Labels()))

    def _probe(self, activity: Activity) -> FloatArray:
        self._seen.append(activity)
        return by_tokens(activity)

    def got(self, at_seconds: float, *updates: Update) -> None:
        """One read."""
        self.meter.feed(TokensReceived(1, at_seconds, updates))

    def ended(self, at_seconds: float) -> RequestRecord:
        """The record."""
        self.meter.feed(RequestClosed(1, at_seconds, "ok", status=200))
        (record,) = self.meter.settle(30.0)
        return record

    def did(self, what: str) -> float:
        """Sum of one column over all windows."""
        return float(np.sum([getattr(one, what).sum() for one in self._seen]))


def token(usage: Usage | None = None) -> Update:
    return Update(carries_token=True, usage=usage)


@pytest.mark.parametrize("is_apart", [False, True], ids=["in one read", "one by one"])
def test_parallel_sequences_are_computed_together(is_apart: bool) -> None:
    alone = Alone(RequestFacts("chat", is_stream=True, sequences=3))
    for step in range(20):
        at = 2.1 + 0.02 * step
        if is_apart:
            for number in range(3):
                alone.got(at + 1e-4 * number, token())
        else:
            alone.got(at, token(), token(), token())
    last = Update(is_usage_only=True, usage=Usage(PROMPT, 60))
    alone.got(2.5, last)
    record = alone.ended(2.5)
    assert record.output_tokens == 60
    assert alone.did("prefill_tokens") == pytest.approx(PROMPT)  # once for all three
    assert alone.did("output_tokens") == pytest.approx(60)
    assert alone.did("decode_tokens") == pytest.approx(57)
    assert alone.did("decode_steps") == pytest.approx(19)


@pytest.mark.parametrize("sequences", [1, 3])
def test_a_whole_reply_took_a_step_for_each_token_of_a_sequence(sequences: int) -> None:
    alone = Alone(RequestFacts("chat", sequences=sequences))
    phases = PhaseSeconds(0.0, 0.01, 0.19) if sequences == 1 else None
    usage = Usage(PROMPT, 30 * sequences, 0)
    alone.got(2.2, Update(carries_token=True, usage=usage, phases=phases))
    record = alone.ended(2.2)
    assert record.output_tokens == 30 * sequences
    assert alone.did("prefill_tokens") == pytest.approx(PROMPT)
    assert alone.did("output_tokens") == pytest.approx(30 * sequences)
    assert alone.did("decode_steps") == pytest.approx(29, abs=2)


def test_several_tokens_in_a_chunk_are_several_tokens_of_one_step() -> None:
    """Speculative decoding: accepted together, computed together."""
    facts = RequestFacts("chat", is_stream=True, has_running_usage=True)
    alone = Alone(facts)
    for step in range(6):
        alone.got(2.1 + 0.02 * step, token(Usage(PROMPT, 1 + 5 * step)))
    record = alone.ended(2.3)
    assert record.output_tokens == 26
    assert alone.did("output_tokens") == pytest.approx(26)
    assert alone.did("decode_tokens") == pytest.approx(25)
    assert alone.did("decode_steps") == pytest.approx(5)


def test_cached_prompt_tokens_are_read_and_not_computed() -> None:
    facts = RequestFacts("chat", is_stream=True, has_running_usage=True)
    cold, warm = Alone(facts), Alone(facts)
    for alone, cached in ((cold, 0), (warm, 80)):
        for step in range(20):
            alone.got(2.1 + 0.02 * step, token(Usage(PROMPT, step + 1, cached)))
        alone.ended(2.5)
    assert cold.did("prefill_tokens") == pytest.approx(PROMPT)
    assert warm.did("prefill_tokens") == pytest.approx(PROMPT - 80)
    # the context that a token reads is as long either way
    assert warm.did("kv_tokens") == pytest.approx(cold.did("kv_tokens"))
    assert warm.did("decode_tokens") == pytest.approx(cold.did("decode_tokens"))


def test_tgis_time_of_inference_says_when_it_was_scheduled() -> None:
    """Its headers tell waiting and computing, not prefill and decode apart."""
    alone = Alone(RequestFacts("generate"))
    phases = PhaseSeconds(queue_seconds=0.3, inference_seconds=0.7)
    usage = Usage(PROMPT, 30)
    alone.got(3.0, Update(carries_token=True, usage=usage, phases=phases))
    record = alone.ended(3.0)
    assert record.scheduled_seconds == pytest.approx(2.3)
    assert record.first_token_seconds is not None
    assert 2.3 < record.first_token_seconds < 2.4


@pytest.mark.parametrize("settled_at", [1.2, 30.0])
def test_without_idle_watts_nothing_is_called_exact(settled_at: float) -> None:
    """Idle would be part of what requests caused: the split is not known.

    Watts that are learnt afterwards do not change what was divided before.
    """
    meter = Meter()
    play(meter, counter(6.0))
    facts = RequestFacts("chat")
    meter.feed(RequestOpened(1, 0.2, "one", facts, Labels()))
    phases = PhaseSeconds(0.0, 0.01, 0.19)
    reply = Update(carries_token=True, usage=Usage(PROMPT, 30, 0), phases=phases)
    meter.feed(TokensReceived(1, 0.4, (reply,)))
    meter.feed(RequestClosed(1, 0.4, "ok", status=200))
    (record,) = meter.settle(settled_at)
    assert meter.state().idle_source == ("unknown" if settled_at < 2 else "measured")
    assert record.energy.quality == "estimated"
    assert record.energy.idle_share_joules == 0.0
