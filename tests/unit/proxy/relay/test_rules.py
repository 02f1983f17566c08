"""The pure rules of the relay: headers, routes, labels, the usage filter."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.engines import DIALECTS
from proxy.process.options import settings_of
from proxy.relay import event_search
from proxy.relay.client.request import is_host
from proxy.relay.client.response import Refusal
from proxy.relay.config import RelayConfig, parse_upstream, share_of
from proxy.relay.event_search import MAX_HELD_BYTES, UsageFilter
from proxy.relay.routing.labels import MAX_LEARNED_MODELS, LabelReader
from proxy.relay.routing.routing import Admission, admit, passes_unmetered
from proxy.wire.facts import RequestFacts
from proxy.wire.headers import HOP_BY_HOP, Headers, end_to_end, request_id_of
from proxy.wire.http1 import chunk_of
from tests.support.profiles import examples

TOKENS = st.text("abcxyz-", min_size=1, max_size=8).map(str.encode)
VALUES = st.text("abc 123,", max_size=8).map(str.encode)
HEADERS = st.lists(st.tuples(TOKENS, VALUES), max_size=8)


@given(headers=HEADERS, named=st.lists(TOKENS, max_size=3))
def test_what_passes_is_a_subsequence_without_hops(
    headers: Headers, named: list[bytes]
) -> None:
    nomination = (b"CONNECTION", b" , ".join(named))
    passed = end_to_end([*headers, nomination])
    assert passed == [
        field
        for field in headers
        if field[0] not in HOP_BY_HOP and field[0] not in named
    ]


@given(value=st.binary(min_size=1, max_size=300))
def test_a_request_id_is_always_one_printable_line(value: bytes) -> None:
    request_id = request_id_of([(b"X-Request-Id", value)])
    assert request_id.decode("ascii").isprintable()
    assert 0 < len(request_id) <= 200


@pytest.mark.parametrize(
    ("method", "path", "passes"),
    [
        ("GET", "/health", True),
        ("HEAD", "/v1/models", True),
        ("GET", "/v1/models/org/name", True),
        ("GET", "/v1/models/org/v1..2", True),
        ("GET", "/v1/models/../../pause", False),
        ("GET", "/v1/models/a/%2E%2e/%2e./pause", False),
        ("GET", "/v1/models/..%2F..%5cpause", False),
        ("GET", "/v1/models/..\\..\\pause", False),
        ("OPTIONS", "/v1/chat/completions", True),
        ("POST", "/tokenize", True),
        ("POST", "/health", False),
        ("DELETE", "/v1/models", False),
        ("POST", "/pause", False),
        ("POST", "/pause/", False),
        ("POST", "/tokenize/", True),
        ("GET", "/ping/", True),
        ("GET", "/health//", False),
        ("POST", "/v1/%63hat/completions", False),
        ("POST", "//v1/chat/completions", False),
        ("GET", "/docs", False),
    ],
)
def test_routes_pass_by_list_only(method: str, path: str, passes: bool) -> None:
    assert passes_unmetered(method, path) == passes


@pytest.mark.parametrize(
    ("method", "target", "passes", "is_work"),
    [
        ("POST", "/start_profile", True, True),
        ("POST", "/start_profile/?a=1", True, True),
        ("GET", "/start_profile", True, False),
        ("POST", "/start_profile//", False, False),
        ("POST", "/start_profile/x", False, False),
        ("POST", "/START_PROFILE", False, False),
        ("POST", "/pause", False, False),
        ("POST", "/tokenize", True, False),
        ("OPTIONS", "/pause", True, False),
    ],
)
def test_an_allowed_route_passes_and_no_other_does(
    method: str, target: str, passes: bool, is_work: bool
) -> None:
    found = admitted(method, target, allowed=("/start_profile",))
    assert isinstance(found, Admission) == passes
    if isinstance(found, Admission):
        assert (found.facts, found.is_work) == (None, is_work)


@pytest.mark.parametrize("slash", ["", "/"])
def test_a_metered_route_is_metered_with_a_trailing_slash(slash: str) -> None:
    found = admitted("POST", f"/v1/completions{slash}", b'{"model":"m"}')
    assert isinstance(found, Admission)
    assert found.facts is not None
    assert found.facts.model == "m"


def admitted(
    method: str, target: str, body: bytes = b"", allowed: tuple[str, ...] = ()
) -> Admission | Refusal:
    return admit(
        DIALECTS["vllm"], method, target, body,
        asks_for_usage=True, allow_unknown=False, allowed=allowed,
    )  # fmt: skip


@pytest.mark.parametrize("path", ["start_profile", "", "/a?b=1", "/a b", "/a\n"])
def test_an_allowed_route_is_a_path(path: str) -> None:
    (setting,) = [s for s in settings_of(RelayConfig) if s.name == "allow-route"]
    with pytest.raises(ValueError, match="is not a path, such as /start_profile"):
        setting.value((path,))


def test_a_model_that_nobody_vouches_for_has_no_label() -> None:
    reader = LabelReader(None, frozenset())
    for number in range(1000):
        junk = RequestFacts("chat", model=f"junk-{number}")
        labels = reader.read(junk, [], listed=("llama",))
        assert (labels.model, labels.stored_model) == ("other", f"junk-{number}")
        assert labels.is_provisional
        assert reader.settled(labels, junk.model, False).model == "other"
    served = reader.read(RequestFacts("chat", model="llama"), [], listed=("llama",))
    assert (served.model, served.is_provisional) == ("llama", False)
    assert reader.read(RequestFacts("chat"), []).model == "unknown"


def test_models_that_answered_are_learned_up_to_a_bound() -> None:
    reader = LabelReader(None, frozenset())
    facts = [RequestFacts("chat", model=f"m{number}") for number in range(100)]
    settled = [
        reader.settled(reader.read(fact, []), fact.model, True).model for fact in facts
    ]
    most = MAX_LEARNED_MODELS
    assert settled[:most] == [f"m{number}" for number in range(most)]
    assert set(settled[most:]) == {"other"}
    assert reader.read(facts[0], []).model == "m0"
    assert not reader.read(facts[0], []).is_provisional


@pytest.mark.parametrize(
    ("headers", "kind", "tenant"),
    [
        ([], "other", "none"),
        ([(b"X-ServeWatt-Kind", b"code"), (b"x-team", b"a")], "code", "a"),
        ([(b"x-servewatt-kind", b"<script>"), (b"X-Team", b"z")], "other", "other"),
    ],
)
def test_labels_come_from_known_values_only(
    headers: Headers, kind: str, tenant: str
) -> None:
    labels = LabelReader("X-Team", frozenset(["a"])).read(RequestFacts("chat"), headers)
    assert (labels.kind, labels.tenant) == (kind, tenant)


@pytest.mark.parametrize(
    ("url", "host", "port", "authority", "prefix"),
    [
        ("http://h:8000", "h", 8000, b"h:8000", b""),
        ("http://h:8000/", "h", 8000, b"h:8000", b""),
        ("http://h/a/b/", "h", 80, b"h", b"/a/b"),
        ("http://h:8000/v1", "h", 8000, b"h:8000", b""),
        ("http://h:8000/v1/", "h", 8000, b"h:8000", b""),
        ("http://h/a/v1", "h", 80, b"h", b"/a"),
        ("http://h/av1", "h", 80, b"h", b"/av1"),
        ("https://h", "h", 443, b"h", b""),
        ("http://[::1]:9", "::1", 9, b"[::1]:9", b""),
    ],
)
def test_an_upstream_url_is_taken_apart(
    url: str, host: str, port: int, authority: bytes, prefix: bytes
) -> None:
    upstream = parse_upstream(url)
    assert (upstream.host, upstream.port) == (host, port)
    assert (upstream.authority, upstream.prefix) == (authority, prefix)
    assert upstream.is_tls == url.startswith("https")
    assert upstream.url.endswith(authority.decode() + prefix.decode())


# --- the usage filter ---------------------------------------------------------

USAGE = json.dumps(
    {"choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 1}}
).encode()
OTHERS = st.sampled_from(
    [
        b'{"choices":[{"index":0,"text":"a"}]}',
        b'{"choices":[{"index":0,"text":"\\"choices\\":[] \xc3\xa9"}]}',
        b'{"choices":[]}',
        b'{"choices":[],"prompt_filter_results":[1]}',
        b"[DONE]",
        b"not json",
    ]
)


@given(
    before=st.lists(OTHERS, max_size=6),
    after=st.lists(OTHERS, max_size=3),
    has_usage=st.booleans(),
    end=st.sampled_from([b"\n\n", b"\r\n\r\n"]),
    positions=st.lists(st.integers(0, 2000), max_size=8),
    are_chunks=st.booleans(),
)
def test_exactly_the_usage_event_is_removed_however_the_stream_is_cut(
    before: list[bytes],
    after: list[bytes],
    has_usage: bool,
    end: bytes,
    positions: list[int],
    are_chunks: bool,
) -> None:
    def stream(events: list[bytes]) -> bytes:
        return b"".join(b"data: " + event + end for event in events)

    usage = [USAGE] if has_usage else []
    whole = stream(before + usage + after)
    edges = [0, *sorted(p % (len(whole) + 1) for p in positions), len(whole)]
    usage_filter = UsageFilter(DIALECTS["vllm"])
    out = b""
    for a, b in pairwise(edges):
        data = whole[a:b]
        passes = are_chunks and usage_filter.passes(chunk_of(data))
        out += data if passes else usage_filter.feed(data)
    out += usage_filter.flush()
    assert out == stream(before + after)


def test_a_whole_event_is_never_held() -> None:
    usage_filter = UsageFilter(DIALECTS["vllm"])
    event = b'data: {"choices":[{"text":"a"}]}\n\n'
    assert usage_filter.feed(event + b"data: {") == event
    assert usage_filter.feed(event[7:]) == event


def test_only_the_first_usage_event_is_removed() -> None:
    usage_filter = UsageFilter(DIALECTS["vllm"])
    event = b"data: " + USAGE + b"\n\n"
    assert usage_filter.feed(event + event) == event
    assert usage_filter.feed(event) == event


def test_an_endless_event_is_passed_on_and_the_next_is_filtered() -> None:
    usage_filter = UsageFilter(DIALECTS["vllm"])
    large = b"data: " + b"x" * MAX_HELD_BYTES
    assert usage_filter.feed(large) == large
    assert usage_filter.feed(b"y\n") == b"y"
    assert usage_filter.feed(b"\ndata: " + USAGE + b"\n\n") == b"\n\n"


def test_an_unfinished_tail_is_passed_on_at_the_end() -> None:
    usage_filter = UsageFilter(DIALECTS["vllm"])
    assert usage_filter.feed(b"data: half") == b""
    assert usage_filter.flush() == b"data: half"


@pytest.mark.parametrize(
    ("value", "is_one"),
    [
        (b"engine", True), (b"engine:8000", True), (b"", True), (b"[::1]:80", True),
        (b"10.0.0.1", True), (b"my_host.local:", True), (b" engine ", True),
        (b"user:pw@evil", False), (b"a b/c?d", False), (b"x:99999999", False),
        (b"x:65536", False), (b"[::1", False), (b"a,b", False), (b"a\x00", False),
        (b"h\xc3\xb6st", False), (b"a#b", False), (b"x:8a", False),
    ],
)  # fmt: skip
def test_a_host_is_a_name_or_an_address_and_a_port(value: bytes, is_one: bool) -> None:
    assert is_host(value) is is_one


@examples(200)
@given(st.text("a\n", max_size=40).map(str.encode))
def test_blank_lines_without_carriage_returns_are_found_as_any(data: bytes) -> None:
    ends = [match.end() for match in event_search._END_OF_EVENT.finditer(data)]
    assert list(event_search._ends_of_events(data)) == ends


@given(
    relays=st.integers(1, 64),
    connections=st.integers(1, 10_000),
    buffered=st.integers(1, 2**33),
    per_client=st.integers(0, 2**33),
    body=st.integers(1, 2**30),
)
def test_several_relays_have_the_limits_of_one_between_them(
    relays: int, connections: int, buffered: int, per_client: int, body: int
) -> None:
    whole = RelayConfig(
        upstream_url="http://127.0.0.1:1",
        max_connections=connections,
        max_buffered_bytes=buffered,
        max_buffered_bytes_per_client=per_client,
        max_body_bytes=body,
        max_connections_per_client=7,
    )
    each = share_of(whole, relays)
    assert connections <= relays * each.max_connections < connections + relays
    assert buffered <= relays * each.max_buffered_bytes < buffered + relays
    assert each.max_connections_per_client == 7
    assert each.max_buffered_bytes_per_client >= min(body, each.max_buffered_bytes)
