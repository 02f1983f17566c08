from __future__ import annotations

import json
from typing import Any

import pytest

from loadgen.client.abilities import check_options, length_note, length_rule
from loadgen.client.backends import (
    BACKENDS,
    RequestOptions,
    Target,
    write_get,
    write_request,
)
from loadgen.errors import UsageError

URL = "http://127.0.0.1:8000"
CAPPED = RequestOptions(ignore_eos=False)
HELLO = [{"role": "user", "content": "hello"}]
TALK = [
    {"role": "user", "content": "hello"},
    {"role": "assistant", "content": "hi"},
    {"role": "user", "content": "bye"},
]


def written(
    target: Target,
    options: RequestOptions | None = None,
    *,
    messages: list[dict[str, Any]] = HELLO,
    request_id: str = "r1",
    output_tokens: int | None = 7,
) -> tuple[str, dict[str, str], Any]:
    """First line, headers and decoded body of a request."""
    raw = write_request(
        target,
        options or RequestOptions(),
        messages,
        request_id=request_id,
        kind="code",
        output_tokens=output_tokens,
    )
    head, _, body = raw.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    headers = dict(line.split(": ", 1) for line in lines)
    assert headers["content-length"] == str(len(body))
    return first, headers, json.loads(body)


@pytest.mark.parametrize("backend", BACKENDS)
def test_every_request_says_who_it_is_and_wants_no_compression(backend: str) -> None:
    first, headers, _ = written(Target(URL, backend))
    assert first == f"POST {BACKENDS[backend].path} HTTP/1.1"
    assert headers["x-request-id"] == "r1"
    assert headers["x-servewatt-kind"] == "code"
    assert headers["accept-encoding"] == "identity"
    assert headers["host"] == "127.0.0.1:8000"
    assert "authorization" not in headers


def test_the_turns_of_a_conversation_name_it() -> None:
    raw = write_request(
        Target(URL, "vllm"), RequestOptions(), HELLO, request_id="r", kind="code",
        output_tokens=1, session_id="talk 7\r\n",
    )  # fmt: skip
    assert b"\r\nx-session-id: talk%207%0D%0A\r\n" in raw
    assert "x-session-id" not in written(Target(URL, "vllm"))[1]


def test_vllm_is_made_to_generate_the_traces_length_and_to_count() -> None:
    body = written(Target(URL, "vllm", model="m"))[2]
    assert body == {
        "model": "m",
        "messages": HELLO,
        "stream": True,
        "stream_options": {"include_usage": True, "continuous_usage_stats": True},
        "max_tokens": 7,
        "min_tokens": 7,
        "ignore_eos": True,
    }


def test_without_ignore_eos_the_length_is_only_a_cap() -> None:
    body = written(Target(URL, "vllm"), RequestOptions(ignore_eos=False))[2]
    assert body["max_tokens"] == 7
    assert "ignore_eos" not in body
    assert "min_tokens" not in body


def test_a_turn_without_a_length_ends_where_the_model_ends() -> None:
    body = written(Target(URL, "vllm"), output_tokens=None)[2]
    assert not {"max_tokens", "min_tokens", "ignore_eos"} & set(body)


def test_an_openai_server_gets_only_standard_fields() -> None:
    body = written(Target(URL, "openai", model="m"))[2]
    assert body == {
        "model": "m",
        "messages": HELLO,
        "stream": True,
        "stream_options": {"include_usage": True},
        "max_tokens": 7,
    }


def test_transformers_gets_nothing_it_would_refuse() -> None:
    body = written(Target(URL, "transformers", model="m"), CAPPED)[2]
    assert set(body) == {"model", "messages", "stream", "max_tokens"}


@pytest.mark.parametrize(
    ("temperature", "sampling"),
    [(None, {}), (0.0, {"do_sample": False}), (0.7, {"do_sample": True})],
)
def test_transformers_gets_an_end_token_that_no_model_has(
    temperature: float | None, sampling: dict[str, bool]
) -> None:
    options = RequestOptions(temperature=temperature)
    body = written(Target(URL, "transformers"), options)[2]
    assert body["max_tokens"] == 7
    assert json.loads(body["generation_config"]) == {"eos_token_id": -1} | sampling


def test_tgi_gets_its_native_body_with_counts_asked_for() -> None:
    body = written(Target(URL, "tgi"), messages=TALK)[2]
    assert body == {
        "inputs": "hello\n\nhi\n\nbye",
        "parameters": {"details": True, "max_new_tokens": 7},
    }


def test_tgi_greedy_decoding_is_said_by_silence() -> None:
    body = written(Target(URL, "tgi"), RequestOptions(temperature=0.0, top_p=1.0))[2]
    assert set(body["parameters"]) == {"details", "max_new_tokens"}


def test_tgi_speaks_openai_when_its_endpoint_does() -> None:
    body = written(Target(URL, "tgi", endpoint="/v1/chat/completions"))[2]
    assert body["messages"] == HELLO
    assert body["stream_options"] == {"include_usage": True}


@pytest.mark.parametrize("backend", ["vllm", "openai", "transformers"])
def test_the_completions_endpoint_gets_one_text(backend: str) -> None:
    target = Target(URL, backend, endpoint="/v1/completions")
    first, _, body = written(target, messages=TALK)
    assert first.startswith("POST /v1/completions ")
    assert body["prompt"] == "hello\n\nhi\n\nbye"
    assert "messages" not in body


def test_sampling_options_are_passed_on() -> None:
    options = RequestOptions(temperature=0.5, top_p=0.9, n=2, output_tokens=3)
    body = written(Target(URL, "openai"), options)[2]
    assert (body["temperature"], body["top_p"], body["n"]) == (0.5, 0.9, 2)
    assert body["max_tokens"] == 3


def test_extra_body_wins_and_merges_into_nested_objects() -> None:
    extra = {"max_tokens": 1, "stream_options": {"x": 1}, "priority": 3}
    body = written(Target(URL, "openai"), RequestOptions(extra_body=extra))[2]
    assert body["max_tokens"] == 1
    assert body["stream_options"] == {"include_usage": True, "x": 1}
    assert body["priority"] == 3


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("http://h", "/v1/chat/completions"),
        ("http://h/", "/v1/chat/completions"),
        ("http://h/v1", "/v1/chat/completions"),
        ("http://h/v1/", "/v1/chat/completions"),
        ("http://h/base/v1", "/base/v1/chat/completions"),
        ("http://h/base", "/base/v1/chat/completions"),
    ],
)
def test_a_base_path_is_kept_and_v1_is_not_doubled(url: str, path: str) -> None:
    assert Target(url, "vllm").path == path


def test_models_are_asked_for_below_the_base_path() -> None:
    first = write_get(Target("http://h/base/v1", "vllm"), "/v1/models")
    assert first.startswith(b"GET /base/v1/models HTTP/1.1\r\nhost: h\r\n")


def test_key_and_headers_are_sent_and_the_users_header_wins() -> None:
    target = Target(URL, "vllm", api_key="sk-1", headers={"X-Team": "a", "Accept": "*"})
    headers = written(target)[1]
    assert headers["authorization"] == "Bearer sk-1"
    assert headers["x-team"] == "a"
    assert headers["accept"] == "*"


@pytest.mark.parametrize(
    ("name", "value"),
    [("a b", "x"), ("", "x"), ("a", "x\r\ny: z"), ("Host", "x"), ("a", "☃")],
)
def test_a_header_that_would_break_the_request_is_refused(
    name: str, value: str
) -> None:
    with pytest.raises(UsageError):
        Target(URL, "vllm", headers={name: value})


def test_a_request_id_cannot_smuggle_a_header() -> None:
    headers = written(Target(URL, "vllm"), request_id="a\r\nx: y ü")[1]
    assert headers["x-request-id"] == "a%0D%0Ax:%20y%20%C3%BC"


def test_an_ordinary_request_id_is_sent_as_it_is() -> None:
    name = "conv-12/3:turn#4+x=~(y)"
    assert written(Target(URL, "vllm"), request_id=name)[1]["x-request-id"] == name


@pytest.mark.parametrize(
    "url", ["", "localhost:8000", "ftp://h", "http://", "http://h:port"]
)
def test_a_url_that_is_none_is_named(url: str) -> None:
    with pytest.raises(UsageError, match="--url"):
        Target(url, "vllm")


def test_a_password_in_the_url_is_refused_and_not_repeated() -> None:
    with pytest.raises(UsageError, match="--header") as caught:
        Target("http://me:hush@h", "vllm")
    assert "hush" not in str(caught.value)


def test_an_unknown_backend_is_answered_with_those_known() -> None:
    with pytest.raises(UsageError, match="openai, tgi, transformers, vllm"):
        Target(URL, "vlm")


@pytest.mark.parametrize("backend", ["openai", "tgi"])
def test_forcing_a_length_where_none_can_be_forced_is_refused(backend: str) -> None:
    with pytest.raises(UsageError, match=f"--ignore-eos: a {backend} .*as caps"):
        check_options(Target(URL, backend), RequestOptions(ignore_eos=True))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("asked", [None, False])
def test_lengths_are_forced_where_the_body_says_so_and_caps_elsewhere(
    backend: str, asked: bool | None
) -> None:
    options = RequestOptions(ignore_eos=asked)
    rule = length_rule(backend, options)
    body = written(Target(URL, backend), options)[2]
    is_forced = body.get("ignore_eos") or "generation_config" in body
    assert rule == ("forced" if is_forced else "cap")


def test_a_run_with_caps_says_why_they_are_caps() -> None:
    assert length_note("cap", "tgi") == "output lengths are caps: tgi cannot force them"
    assert length_note("cap", "vllm") == "output lengths are caps, as was asked for"
    assert length_note("forced", "vllm") == length_note(None, "tgi") == ""


def test_several_outputs_are_refused_where_they_would_be_ignored() -> None:
    with pytest.raises(UsageError, match="--n is 2, but a transformers server ignores"):
        check_options(Target(URL, "transformers"), RequestOptions(n=2))
    check_options(Target(URL, "openai"), RequestOptions(n=2))


@pytest.mark.parametrize("endpoint", [None, "/v1/chat/completions"])
def test_several_outputs_of_tgi_are_refused(endpoint: str | None) -> None:
    with pytest.raises(UsageError, match="--n"):
        check_options(Target(URL, "tgi", endpoint=endpoint), RequestOptions(n=2))


def test_secrets_never_show() -> None:
    target = Target(
        URL,
        "vllm",
        api_key="sk-123",
        headers={"X-Api-Key": "abc", "Authorization": "Token xyz"},
    )
    assert "sk-123" not in repr(target)
    assert "abc" not in repr(target)
    echoed = target.redact("bad key sk-123, abc, xyz, sent 'Bearer other'")
    assert echoed == (
        "bad key [redacted], [redacted], [redacted], sent 'Bearer [redacted]'"
    )


@pytest.mark.parametrize("endpoint", ["/generate_stream", "/v1/chat/completions"])
@pytest.mark.parametrize("top_p", [0.9, 1.0])
def test_tgi_is_not_sent_the_top_p_it_refuses(endpoint: str, top_p: float) -> None:
    target = Target(URL, "tgi", endpoint=endpoint)
    body = written(target, RequestOptions(top_p=top_p))[2]
    sent = {**body, **body.get("parameters", {})}
    assert sent.get("top_p") == (top_p if top_p < 1 else None)
