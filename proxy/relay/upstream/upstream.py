"""One upstream: its address, dialect, meter, connections and state."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum, auto

import msgspec

from proxy.engines.dialect import Dialect
from proxy.engines.unstreamed import Kind, Pattern
from proxy.relay.config import RelayConfig, UpstreamAddress, parse_upstream
from proxy.relay.counters import RelayCounters
from proxy.relay.energy_trailer import Provenance
from proxy.relay.tap import MeterGuard, RequestMeter
from proxy.relay.upstream.connection import UpstreamPool
from proxy.wire.events import RequestOpened
from proxy.wire.facts import RequestFacts
from proxy.wire.headers import Headers
from proxy.wire.outline import Buffer

log = logging.getLogger(__name__)

Record = Callable[[RequestOpened, Headers, Buffer], list[str] | None]


class UsageAsking(Enum):
    """Whether streams are asked for usage where their clients did not ask."""

    LEARNING = auto()
    """One stream goes as written: does usage come all the same?"""
    ALWAYS = auto()
    """It comes only where asked: it is asked for, and taken out again."""
    FORCED = auto()
    """It comes anyway, and is the engine's own: it is never taken out."""
    NEVER = auto()
    """The engine refuses to be asked, or the operator wants it left alone."""


BOUNDED_ROUTES = frozenset(
    ["chat", "completions", "generate", "messages", "embeddings"]
)
"""Routes whose sequences are counted; others compute for several turns or pairs."""

LEG_ROUTES = frozenset(["chat", "completions", "generate", "messages", "responses"])
"""Routes that write: only their requests are ever served by two engines."""

MAY_FORCE_USAGE = frozenset(["vllm", "openai"])
"""Dialects of which some servers send usage unasked: vLLM with
`--enable-force-include-usage`, and whoever has no option for it."""


def first_asking(config: RelayConfig, dialect: Dialect) -> UsageAsking:
    """How an upstream begins: as configured, or by what its dialect may do."""
    if config.usage_event == "keep":
        return UsageAsking.NEVER
    may_force = config.usage_event == "auto" and dialect.name in MAY_FORCE_USAGE
    return UsageAsking.LEARNING if may_force else UsageAsking.ALWAYS


@dataclass(slots=True, eq=False)
class Upstream:
    """One upstream as exchanges see it; made by `open_upstream`."""

    name: str
    address: UpstreamAddress
    dialect: Dialect
    guard: MeterGuard
    counters: RelayCounters
    pool: UpstreamPool
    provenance: Callable[[], Provenance]
    """The boundary of the joules that its meter counts, now."""
    clock: Callable[[], float]
    on_opened: Callable[[RequestOpened], None] = lambda _: None
    """Told of each metered request before the engine gets it."""
    on_closed: Callable[[int, float], None] = lambda _, __: None
    """Told its key once it has ended, and when."""
    record: Record | None = None
    """Told of each metered request with its headers and body; the list it gives, if
    any, gets the text of the reply."""
    brought_by: int = 0
    """Number of the plan that brought it, where several processes have one."""
    role: str | None = None
    """The leg that a request is of which does not say it; None: it is a whole one."""
    models: tuple[str, ...] | None = None
    """Those it serves; None while that is not known."""
    cards: Mapping[str, msgspec.Raw] = field(default_factory=dict)
    """The engine's own descriptions of its models, by name."""
    context_tokens: Mapping[str, int] = field(default_factory=dict)
    """The longest that each model takes, where the engine tells."""
    first_asking: UsageAsking = UsageAsking.ALWAYS
    """How usage is asked for until something is known of this engine."""
    usage_asking: UsageAsking = UsageAsking.ALWAYS
    has_witness: bool = False
    """A stream that was not asked for usage is under way, to learn from."""
    whole_replies: dict[Kind, Pattern] = field(default_factory=dict)
    """A whole reply of the engine's own for each kind, to write others like it."""
    in_flight: int = 0
    is_draining: bool = False
    is_up: bool = True
    """Until it cannot be reached: the first request finds out."""
    down_reason: str | None = None
    since_seconds: float = 0.0
    """When it went up, down, or into draining."""

    @property
    def id(self) -> str:
        """What processes call it: another one may have had its name before."""
        return f"{self.name}/{self.brought_by}"

    def with_context(self, facts: RequestFacts) -> RequestFacts:
        """The facts with the model's context, where a count cannot go beyond it, and
        with the leg that this engine serves, where the body told none."""
        if self.role is not None and facts.leg is None and facts.route in LEG_ROUTES:
            facts = msgspec.structs.replace(facts, leg=self.role)
        if facts.route not in BOUNDED_ROUTES or not self.context_tokens:
            return facts
        context_tokens = self.context_tokens.get(facts.model or "")
        if context_tokens is None:
            context_tokens = max(self.context_tokens.values())
        return msgspec.structs.replace(facts, context_tokens=context_tokens)

    def mark_up(self) -> None:
        """It answered."""
        if not self.is_up:
            self.is_up, self.down_reason = True, None
            self.since_seconds = self.clock()
            # it may be another version, with other options
            self.usage_asking = self.first_asking
            self.whole_replies.clear()

    def mark_down(self, reason: str) -> None:
        """It cannot be reached: nothing new goes there until it answers."""
        if self.is_up:
            self.is_up = False
            self.since_seconds = self.clock()
        self.down_reason = reason

    def takes_usage_out(self) -> bool:
        """Whether usage that comes was asked for by this proxy alone, as known now."""
        return self.usage_asking is not UsageAsking.FORCED

    def refuse_stream_options(self) -> None:
        """It takes requests only without: their usage is not asked for any more."""
        if self.usage_asking is not UsageAsking.NEVER:
            self.usage_asking = UsageAsking.NEVER
            log.warning(
                "upstream %s refuses stream_options: its streams are not asked for "
                "usage, and their token counts are unknown",
                self.name,
            )

    def learn_from_witness(self, has_usage: bool | None) -> None:
        """A stream that nobody asked for usage ended, with it or not; None: badly."""
        self.has_witness = False
        if has_usage:
            self.learn_it_forces_usage()
        elif has_usage is not None and self.usage_asking is UsageAsking.LEARNING:
            self.usage_asking = UsageAsking.ALWAYS

    def learn_it_forces_usage(self) -> None:
        """A stream had usage that was not asked for."""
        if self.usage_asking is UsageAsking.LEARNING:
            self.usage_asking = UsageAsking.FORCED
            log.info("upstream %s sends usage unasked: it stays", self.name)

    def drain(self, is_draining: bool) -> None:
        """Give it nothing new, or again; what it has goes on."""
        if is_draining != self.is_draining:
            self.is_draining = is_draining
            self.since_seconds = self.clock()


def open_upstream(
    name: str,
    config: RelayConfig,
    meter: RequestMeter,
    dialect: Dialect,
    clock: Callable[[], float],
    *,
    provenance: Callable[[], Provenance] = Provenance,
    on_opened: Callable[[RequestOpened], None] = lambda _: None,
    on_closed: Callable[[int, float], None] = lambda _, __: None,
    record: Record | None = None,
    keys: Iterator[int] | None = None,
) -> Upstream:
    """The upstream at `config.upstream_url`. Raises ConfigError for a bad URL.

    `keys` identify its requests where others count with it.
    """
    address = parse_upstream(config.upstream_url)
    counters = RelayCounters()
    asking = first_asking(config, dialect)
    return Upstream(
        name=name,
        address=address,
        dialect=dialect,
        guard=MeterGuard(meter, counters, keys),
        counters=counters,
        pool=UpstreamPool(config, address, counters, clock),
        provenance=provenance,
        clock=clock,
        on_opened=on_opened,
        on_closed=on_closed,
        record=record,
        first_asking=asking,
        usage_asking=asking,
        since_seconds=clock(),
    )
