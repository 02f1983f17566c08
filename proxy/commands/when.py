"""The type of an option that is an instant."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from typing import Any

import click


class Instant(click.ParamType[float]):
    """Unix seconds, or a date and time of ISO 8601, UTC where it names no zone."""

    name = "time"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Unix seconds."""
        if isinstance(value, float):
            return value
        try:
            seconds = float(value)
        except ValueError:
            seconds = self._unix_seconds(value)
        if not math.isfinite(seconds):
            self.fail(f"{value!r} is not finite", param, ctx)
        return seconds

    def _unix_seconds(self, value: str) -> float:
        try:
            found = datetime.fromisoformat(value)
            return (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp()
        except (ValueError, OverflowError):
            self.fail(f"{value!r} is no time, such as 2026-11-28 or 1767225600")


INSTANT = Instant()
