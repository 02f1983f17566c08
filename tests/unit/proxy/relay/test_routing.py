"""Which upstream gets a request: turns, sessions, and what a lost replica moves."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.relay.client.response import Refusal
from proxy.relay.routing.routing import MAX_MODELS, Router


@dataclass(frozen=True)
class Spot:
    """An upstream as a test describes it."""

    name: str
    models: tuple[str, ...] | None = ("m",)
    is_up: bool = True
    is_draining: bool = False


def replicas(count: int) -> list[Spot]:
    return [Spot(f"replica-{number}") for number in range(count)]


def ordered(router: Router[Spot], model: str | None, session: str | None) -> list[str]:
    found = router.order(model, None if session is None else session.encode())
    assert not isinstance(found, Refusal), found.message
    return [spot.name for spot in found]


def refused(
    router: Router[Spot], model: str | None, session: bytes | None = None
) -> Refusal:
    found = router.order(model, session)
    assert isinstance(found, Refusal)
    return found


@given(st.integers(1, 8), st.integers(1, 60))
def test_requests_without_a_session_take_turns(count: int, requests: int) -> None:
    router = Router(replicas(count))
    taken = Counter(ordered(router, "m", None)[0] for _ in range(requests))
    counts = [taken[spot.name] for spot in replicas(count)]
    assert max(counts) - min(counts) <= 1


def test_models_take_turns_of_their_own() -> None:
    spots = [Spot("a", ("x", "y")), Spot("b", ("x", "y"))]
    router = Router(spots)
    taken = Counter((m, ordered(router, m, None)[0]) for _ in range(5) for m in "xy")
    assert taken == {("x", "a"): 3, ("x", "b"): 2, ("y", "a"): 3, ("y", "b"): 2}


@given(st.integers(1, 8), st.text(min_size=1), st.lists(st.booleans(), max_size=20))
def test_a_session_stays_whatever_comes_in_between(
    count: int, session: str, others: list[bool]
) -> None:
    router = Router(replicas(count))
    key = session.encode(errors="replace").decode()
    first = ordered(router, "m", key)
    for has_session in others:
        ordered(router, "m", "another" if has_session else None)
    assert ordered(router, "m", key) == first
    assert ordered(Router(replicas(count)), "m", key) == first  # after a restart too


@given(st.integers(2, 8), st.data(), st.lists(st.text("abc01", min_size=1), min_size=1))
def test_a_lost_replica_moves_only_its_own_sessions(
    count: int, data: st.DataObject, sessions: list[str]
) -> None:
    spots = replicas(count)
    lost = data.draw(st.integers(0, count - 1))
    without = [
        replace(spot, is_up=False) if number == lost else spot
        for number, spot in enumerate(spots)
    ]
    whole, left = Router(spots), Router(without)
    for session in sessions:
        before, after = ordered(whole, "m", session), ordered(left, "m", session)
        assert after == [name for name in before if name != f"replica-{lost}"]
        assert ordered(Router(spots), "m", session) == before  # they come back with it


def test_sessions_spread_over_the_replicas() -> None:
    router = Router(replicas(4))
    taken = Counter(ordered(router, "m", f"session-{n}")[0] for n in range(4000))
    # binomial(4000, 1/4): six standard deviations are 164
    assert all(abs(number - 1000) < 164 for number in taken.values())


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=6))
def test_what_is_down_or_draining_gets_nothing_new(
    states: list[tuple[bool, bool]],
) -> None:
    spots = [
        Spot(str(number), is_up=is_up, is_draining=is_draining)
        for number, (is_up, is_draining) in enumerate(states)
    ]
    ready = {spot.name for spot in spots if spot.is_up and not spot.is_draining}
    for session in (None, "a session"):
        router = Router(spots)
        if ready:
            assert set(ordered(router, "m", session)) == ready
        else:
            refusal = refused(router, "m", session.encode() if session else None)
            assert refusal.status == 503
            assert refusal.retry_after_seconds
            assert all(f"{spot.name} is d" in refusal.message for spot in spots)


def test_a_model_goes_only_to_those_that_serve_it() -> None:
    router = Router([Spot("a", ("x",)), Spot("b", ("y",)), Spot("c", ("x", "y"))])
    assert set(ordered(router, "x", None)) == {"a", "c"}
    assert set(ordered(router, "y", "session")) == {"b", "c"}


def test_an_unknown_model_is_told_the_known_ones() -> None:
    refusal = refused(Router([Spot("a", ("x",)), Spot("b", ("y",))]), "z")
    assert (refusal.status, refusal.code) == (404, "model_not_found")
    assert refusal.message == "model 'z' is not served here; known: x, y"


def test_while_models_are_not_known_nothing_is_said_to_be_missing() -> None:
    router = Router([Spot("a", ("x",)), Spot("b", None)])
    refusal = refused(router, "z")
    assert refusal.status == 503
    assert refusal.message == "the models of b are not known yet"
    assert ordered(router, "x", None) == ["a"]


@pytest.mark.parametrize(("default", "expected"), [(None, "a"), ("y", "b")])
def test_a_request_without_a_model_is_for_the_default_one(
    default: str | None, expected: str
) -> None:
    router = Router([Spot("a", ("x",)), Spot("b", ("y",))], default)
    assert ordered(router, None, None) == [expected]


def test_a_client_that_invents_models_fills_no_memory() -> None:
    names = tuple(f"adapter-{number}" for number in range(2 * MAX_MODELS))
    router = Router([Spot("a", names)])
    for name in names:
        ordered(router, name, None)
    assert len(router._turns) <= MAX_MODELS
