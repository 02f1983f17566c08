"""What a configuration that is read again means for upstreams that run."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.serve.config import UpstreamConfig
from proxy.serve.plan import Plan, changes_of

A = UpstreamConfig("a", "http://a", power=("none",))
B = UpstreamConfig("b", "http://b", power=("none",))
C = UpstreamConfig("c", "http://c", power=("none",))


@pytest.mark.parametrize(
    ("before", "after", "text"),
    [
        pytest.param((A, B), (A, B), "", id="nothing"),
        pytest.param((A, B), (B, A), "", id="another order"),
        pytest.param((A, B), (A, replace(B, models=("m",))), "", id="other models"),
        pytest.param((A,), (A, B), "new: b", id="one more"),
        pytest.param((A, B), (B,), "gone: a", id="one less"),
        pytest.param(
            (A, B), (A, replace(B, url="http://b2")), "changed: b", id="another address"
        ),
        pytest.param(
            (A, B),
            (C, replace(B, idle_watts=4.0)),
            "new: c; changed: b; gone: a",
            id="all at once",
        ),
        pytest.param(
            (replace(A, gpus=("0",)),),
            (replace(A, gpus=("0",)), B),
            "new: b; changed: a",
            id="alone no more, with GPUs that were nobody's",
        ),
    ],
)
def test_an_upstream_stays_unless_its_settings_change(
    before: tuple[UpstreamConfig, ...], after: tuple[UpstreamConfig, ...], text: str
) -> None:
    assert changes_of(before, after).text == text


FLEETS = st.lists(
    st.builds(
        UpstreamConfig,
        name=st.sampled_from("abcd"),
        url=st.sampled_from(["http://x", "http://y"]),
        power=st.just(("none",)),
        models=st.sampled_from([(), ("m",)]),
    ),
    min_size=1,
    unique_by=lambda config: config.name,
)


@given(before=FLEETS, after=FLEETS)
def test_every_name_of_the_new_file_is_kept_or_built_and_none_is_lost(
    before: list[UpstreamConfig], after: list[UpstreamConfig]
) -> None:
    changes = changes_of(before, after)
    told = [config.name for config in (*changes.kept, *changes.new)]
    assert sorted(told) == sorted(changes.names) == sorted(c.name for c in after)
    assert set(changes.gone) == {c.name for c in before} - {
        config.name for config in changes.kept
    }
    assert {*changes.kept, *changes.new} == set(after)


@given(fleets=st.lists(FLEETS, min_size=2, max_size=5))
def test_a_name_and_its_plan_mean_one_upstream_whatever_plans_were_missed(
    fleets: list[list[UpstreamConfig]],
) -> None:
    plans = [Plan.first(fleets[0])]
    for fleet in fleets[1:]:
        plans.append(plans[-1].then(fleet))
    assert [plan.number for plan in plans] == list(range(len(plans)))
    meant: dict[tuple[str, int], UpstreamConfig] = {}
    for plan in plans:
        assert set(plan.brought_by) == {config.name for config in plan.upstreams}
        for config in plan.upstreams:
            bare = replace(config, models=())
            key = (config.name, plan.brought_by[config.name])
            assert meant.setdefault(key, bare) == bare
    for before, after in pairwise(plans):
        assert after.changes_from(before) == changes_of(
            before.upstreams, after.upstreams
        )
    first, last = plans[0], plans[-1]
    changes = last.changes_from(first)
    assert {config.name for config in changes.kept} == {
        name for name, number in last.brought_by.items() if number == 0
    }
    assert {*changes.kept, *changes.new} == set(last.upstreams)
    assert not last.changes_from(last).new
