"""What can go wrong in the proxy.

ProxyError              one line for the user, exit code 1
├── ConfigError         a bad option or combination, exit code 2
├── CommandError        a command to be metered cannot be started, exit code 126 or 127
├── SensorError         a power source cannot be read (now, or at all)
├── StoreError          records that only the store has, while it does not answer
├── SseError            a stream that is not SSE, or an event beyond the bound
└── LinkError           bytes between a relay and its meter that are no messages

The proxy fails open: after start, none of these stops a request.
"""

from __future__ import annotations


class ProxyError(Exception):
    """A failure worth one clear line to the user."""

    exit_code = 1


class ConfigError(ProxyError):
    """A bad option or combination of options."""

    exit_code = 2


class CommandError(ProxyError):
    """A command that cannot be started; `exit_code` as a shell gives it."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class SensorError(ProxyError):
    """A power source cannot be read; while it lasts, energy is unknown, not zero."""


class StoreError(ProxyError):
    """Records cannot be read from the store now; they are not lost."""


class SseError(ProxyError):
    """A stream that is not SSE, or an event larger than the buffer's bound."""


class LinkError(ProxyError):
    """Bytes from a relay's process, or from its meter's, that are no messages."""
