"""What the wire and the sensors say, in the field's words: the types events carry.

All are immutable msgspec structs, so that an event can be written down and read back.
`Usage` and `Update` are made for every stream event: one costs 0.2 us where a frozen
dataclass of ten fields costs 1.9 us.
"""

from __future__ import annotations

import msgspec


class Usage(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """Token counts from the engine, cumulative over all choices of a request."""

    prompt_tokens: int | None = None
    output_tokens: int | None = None
    cached_tokens: int | None = None


class PhaseSeconds(msgspec.Struct, frozen=True, gc=False):
    """Durations on the engine's own clock; anchor them on the caller's stamps."""

    queue_seconds: float | None = None
    prefill_seconds: float | None = None
    """From scheduled to first token."""
    decode_seconds: float | None = None
    inference_seconds: float | None = None
    """Prefill and decode together, where the engine tells only their sum."""


UNMETERED = "unmetered"
"""Route of a request that passes unread: the meter books the time it took, and
nothing else of it."""


class RequestFacts(msgspec.Struct, frozen=True, gc=False):
    """What a request body says before the engine has seen it."""

    route: str
    """`chat`, `completions`, `generate`, `responses`, ...: bounded, fit for a label."""
    model: str | None = None
    is_stream: bool = False
    sequences: int = 1
    """Outputs asked for: prompts x n (or best_of)."""
    prompts: int = 1
    """Those that the request has, each for itself."""
    context_tokens: int | None = None
    """The longest that the model takes, prompt and output: no count is beyond it."""
    max_output_tokens: int | None = None
    wants_usage: bool = False
    """The client itself asked for the usage event."""
    has_running_usage: bool = False
    """The client asked for usage on every event: counts are exact as they come."""
    leg: str | None = None
    """`prefill` or `decode`: its half of a request that two engines serve."""


class Update(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """What one stream event, or one unstreamed reply, says.

    `tokens` is what this event alone carries where the event says so (one per
    TGI event, the length of `token_ids`), else None: then the count comes from
    `usage`, which is cumulative. An error inside a 200 is an error.
    """

    carries_token: bool = False
    is_visible: bool = False
    """It has text a person would see (not a reasoning channel, not empty)."""
    tokens: int | None = None
    usage: Usage | None = None
    phases: PhaseSeconds | None = None
    finish_reason: str | None = None
    error: str | None = None
    is_usage_only: bool = False
    is_end: bool = False
    text: str = ""
    has_own_usage: bool = False
    """`usage` is of one sequence of the request; the request's is their sum."""
    was_computed: bool = False
    """An error by status that comes after work: the request keeps what it consumed."""


def well_formed(text: str) -> str:
    """A text that can be written down: surrogates are joined, or replaced if alone."""
    if text.isascii():
        return text
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


LEGS = ("prefill", "decode")
"""Halves of a request that two engines serve, in the order in which they come."""
KINDS = (
    "conversation", "code", "reasoning", "summarization", "embedding", "other",
)  # fmt: skip
"""Kinds of requests, as traces name them and `x-servewatt-kind` does."""


class Labels(msgspec.Struct, frozen=True, gc=False):
    """Bounded labels of a request, for books by class and for metrics."""

    model: str = "unknown"
    kind: str = "other"
    tenant: str = "none"
    stored_tenant: str | None = None
    """Tenant of the record, where it may say more than a label."""
    stored_model: str | None = None
    """Model of the record, where it may say more than a label."""
    is_provisional: bool = False
    """The model is one that nobody has vouched for: its label is known when the
    request has ended, see `RequestClosed.labels`."""


class EngineGauges(msgspec.Struct, frozen=True, gc=False):
    """One scrape of an engine's own `/metrics`. A request with n=2 counts as two.

    The tokens and steps are counters since the engine started, over all of its ranks;
    None: not told. One that fell, or rose faster than any engine computes, tells
    nothing of the time between two scrapes.
    """

    running: int
    waiting: int
    preemptions: int | None = None
    """Sequences set aside for others since the engine started; None: not told."""
    progress: float | None = None
    """Tokens or batches since the start, rising whenever anything is computed.

    It tells a gauge that was left standing: vLLM does not bring its gauges to 0
    when all requests are aborted at once (vllm-project/vllm issue 29928).
    """
    prompt_tokens: float | None = None
    """Of prompts whose first token has come, cached tokens included: vLLM adds the
    whole prompt at that step, once for each of `n` outputs."""
    cached_tokens: float | None = None
    """The part of them that was not computed but found in a cache."""
    output_tokens: float | None = None
    """Generated, also for clients that have left."""
    drafts: float | None = None
    """How often a step of a sequence was speculated on."""
    draft_tokens: float | None = None
    """Tokens drafted by speculation: each is computed like one of a prompt."""
    accepted_tokens: float | None = None
    """Drafted tokens that became output."""
    steps: float | None = None
    """Steps of the engine, whatever each computed."""
    step_tokens: float | None = None
    """Tokens in those steps: whole prompts at their first token, and output."""


class Reading(msgspec.Struct, frozen=True, gc=False):
    """One device of a power source at one moment. A missing figure is None, never 0."""

    device: str
    joules: float | None = None
    """Cumulative counter since an arbitrary start; a fall means a reset."""
    watts: float | None = None
    at_seconds: float | None = None
    """When the sensor measured it, monotonic; None: while it was read."""
    is_outside: bool = False
    """A device of the host but not of the engine: `--gpus` left it out."""


class HardwareState(msgspec.Struct, frozen=True, gc=False):
    """How one board works at one moment, beside its power; None: it does not tell."""

    device: str
    sm_clock_hertz: float | None = None
    memory_clock_hertz: float | None = None
    temperature_celsius: float | None = None
    throttle_reasons: tuple[str, ...] | None = None
    """Why its clocks are below what they could be; empty: they are not."""
    power_limit_watts: float | None = None
    """The limit that is enforced now."""
    corrected_ecc_errors: int | None = None
    """Errors of its memory since the driver was loaded."""
    uncorrected_ecc_errors: int | None = None
    last_xid: int | None = None
    """The driver's number of its last fault; 0: there was none."""
    process_ids: tuple[int, ...] | None = None
    """Processes with a compute context on it, in the driver's own numbering."""
    model: str | None = None
    """Its name as its maker sells it."""
    driver: str | None = None
    """Version of the driver."""

    @property
    def other_processes(self) -> int | None:
        """Processes beside the engine's, which has one on each of its boards.

        None where the list is empty, as inside a container: one that lacks the engine
        itself tells nothing of others.
        """
        return len(self.process_ids) - 1 if self.process_ids else None
