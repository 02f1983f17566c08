from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.meter.activity.work import Activity
from proxy.meter.attribution.policies import (
    POLICIES,
    CostModel,
    FloatArray,
    attribute,
    by_phase,
)

FIELDS = [name for name in Activity.__dataclass_fields__ if name != "shared"]


def activity(**columns: list[float]) -> Activity:
    """Given columns; all others are zero."""
    count = len(next(iter(columns.values())))
    return Activity(
        **{name: np.array(columns.get(name, [0.0] * count)) for name in FIELDS}
    )


@st.composite
def activities(draw: st.DrawFn) -> Activity:
    count = draw(st.integers(1, 8))
    amounts = st.lists(
        st.one_of(st.just(0.0), st.floats(0.0, 1e7)), min_size=count, max_size=count
    )
    return activity(**{name: draw(amounts) for name in FIELDS})


@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)
@given(did=activities(), joules=st.floats(0, 1e6))
def test_every_joule_is_charged_once(policy, did: Activity, joules: float) -> None:  # type: ignore[no-untyped-def] # parametrised over the registry
    split = attribute(joules, did, policy)
    anybody = (did.prefill_seconds + did.decode_seconds).sum() > 0
    assert (split >= 0).all()
    assert split.shape == (len(did.prefill_tokens), 2)
    if anybody or policy(did).sum() > 0:
        assert split.sum() == pytest.approx(joules, rel=1e-9, abs=1e-9)
    else:
        assert split.sum() == 0.0


@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)
@given(did=activities(), joules=st.floats(1, 1e6))
def test_who_did_nothing_gets_nothing(policy, did: Activity, joules: float) -> None:  # type: ignore[no-untyped-def] # as above
    with_idler = Activity(
        **{name: np.append(getattr(did, name), 0.0) for name in FIELDS}
    )
    split = attribute(joules, with_idler, policy)
    assert split[-1].tolist() == [0.0, 0.0]
    assert split[:-1] == pytest.approx(attribute(joules, did, policy))


@pytest.mark.parametrize(
    "weights",
    [
        [[-1.0, 0.0], [math.nan, 2.0]],
        [[math.inf, 1.0], [0.0, 0.0]],
        [[0.0, 0.0], [0.0, 0.0]],
        [[5e-324, 0.0], [0.0, 5e-324]],
        [[1e308, 1e308], [1e308, 0.0]],
    ],
)
def test_no_policy_can_lose_or_invent_joules(weights: list[list[float]]) -> None:
    did = activity(prefill_seconds=[0.1, 0.2])

    def hostile(_: Activity) -> FloatArray:
        return np.array(weights)

    split = attribute(100.0, did, hostile)
    assert split.sum() == pytest.approx(100.0)
    assert (split >= 0).all()


@pytest.mark.parametrize("joules", [-1e-9, math.nan, math.inf])
def test_energy_that_cannot_be_is_refused(joules: float) -> None:
    with pytest.raises(ValueError, match="cannot divide"):
        attribute(joules, activity(decode_seconds=[1.0]), by_phase)


def cost_of_step(members: tuple[int, ...], did: Activity, cost: CostModel) -> float:
    """The cost model of one step, whoever takes part in it."""
    if not members:
        return 0.0
    own = (
        cost.prefill_token_joules * did.prefill_tokens
        + cost.prefill_context_joules * did.prefill_context_tokens
        + cost.decode_token_joules * did.decode_tokens
        + cost.kv_token_joules * did.kv_tokens
    )
    return cost.step_joules + sum(float(own[member]) for member in members)


@given(
    prompts=st.lists(st.floats(0, 4000), min_size=1, max_size=5),
    contexts=st.lists(st.floats(1, 8000), min_size=5, max_size=5),
)
def test_phase_is_the_shapley_value_of_its_cost_model(
    prompts: list[float], contexts: list[float]
) -> None:
    count = len(prompts)
    is_prefill = [prompt > 0 for prompt in prompts]
    did = activity(
        prefill_tokens=prompts,
        prefill_context_tokens=[prompt * prompt / 2 for prompt in prompts],
        prefill_steps=[float(own) / count for own in is_prefill],
        decode_tokens=[float(not own) for own in is_prefill],
        decode_steps=[float(not own) / count for own in is_prefill],
        kv_tokens=[
            0.0 if own else context
            for own, context in zip(is_prefill, contexts, strict=False)
        ],
    )
    cost = CostModel()
    marginal = np.zeros(count)
    for order in itertools.permutations(range(count)):
        for place, member in enumerate(order):
            before = cost_of_step(tuple(order[:place]), did, cost)
            marginal[member] += cost_of_step(order[: place + 1], did, cost) - before
    shapley = marginal / math.factorial(count)
    total = cost_of_step(tuple(range(count)), did, cost)
    split = attribute(total, did, by_phase).sum(axis=1)
    assert split == pytest.approx(shapley, rel=1e-9)


def test_cached_prompts_and_long_contexts_move_joules_where_the_work_is() -> None:
    did = activity(
        prefill_tokens=[1000.0, 0.0], decode_tokens=[0.0, 1.0], kv_tokens=[0.0, 4000.0]
    )
    split = attribute(1.0, did, by_phase)
    assert split[0, 0] > 0.99
    assert split[1, 0] == split[0, 1] == 0.0


def test_the_constants_are_what_their_derivation_says() -> None:
    cost = CostModel()
    flops, per_flop = 2 * 8.03e9, 1.5e-12
    assert cost.step_joules == pytest.approx(16.06e9 * 120e-12, rel=0.01)
    assert cost.prefill_token_joules == pytest.approx(flops * per_flop, rel=0.01)
    assert cost.decode_token_joules == cost.prefill_token_joules
    assert cost.prefill_context_joules == pytest.approx(
        4 * 32 * 4096 * per_flop, rel=0.01
    )
    assert cost.kv_token_joules == pytest.approx(
        2 * 32 * 8 * 128 * 2 * 120e-12, rel=0.01
    )
