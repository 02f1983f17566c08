"""The accounts: what was measured, where every joule went, and what is left.

`measured = prefill + decode + idle share + idle + unattributed` for every
settled interval; `residual_joules` is what the books miss, and is exported.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class RequestEnergy:
    """What one request cost, under the headline policy; joules, or None if unknown."""

    prefill_joules: float | None
    decode_joules: float | None
    idle_share_joules: float | None
    energy_joules: float | None
    """Sum of the three above, the inclusive view; less the idle share: active."""
    policy: str
    quality: str
    """`exact`, `estimated` or `unknown`: how well it is known who ran when."""
    policy_joules: Mapping[str, float] = field(default_factory=dict)
    """Active joules (prefill + decode) under every policy, on the same intervals."""


@dataclass(frozen=True, slots=True)
class RequestRecord:
    """One finished request: what it was, when it ran, what it cost.

    Instants are on the proxy's monotonic clock; None is "did not happen".
    """

    sequence: int
    """Order of settlement, from 1: the cursor of `/requests?since=`."""
    request_id: str
    route: str
    model: str
    kind: str
    tenant: str
    outcome: str
    """`ok`, `error`, `upstream_error`, `aborted` (client left) or `timeout`."""
    error: str | None
    status: int | None
    arrived_seconds: float
    scheduled_seconds: float | None
    first_token_seconds: float | None
    last_token_seconds: float | None
    finished_seconds: float
    prompt_tokens: int | None
    cached_tokens: int | None
    output_tokens: int | None
    energy: RequestEnergy


@dataclass(frozen=True, slots=True)
class Books:
    """The accounts from the first reading up to `settled_seconds`, in joules."""

    settled_seconds: float
    measured_joules: float
    prefill_joules: float
    decode_joules: float
    idle_share_joules: float
    idle_joules: float
    unattributed_joules: Mapping[str, float]
    """By reason; never silently spread over requests."""
    residual_joules: float
    """measured minus all accounts; not 0 means a defect."""
