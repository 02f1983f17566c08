"""What an event loop calls on a connection, as a class that can be compiled.

A class below `asyncio.Protocol` stays an interpreted one, with a dictionary for its
attributes. Loops ask for these methods and for no base class.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import cast


class NativeProtocol:
    """The methods of `asyncio.Protocol`; those that may be left out do nothing."""

    __slots__ = ()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The connection is there."""

    def data_received(self, data: bytes) -> None:
        """One read."""

    def eof_received(self) -> None:
        """The other side will send no more; the transport closes."""

    def pause_writing(self) -> None:
        """The other side is behind."""

    def resume_writing(self) -> None:
        """It has caught up."""

    def connection_lost(self, error: Exception | None) -> None:
        """The connection is gone."""


def factory_of(protocol: NativeProtocol) -> Callable[[], asyncio.Protocol]:
    """The factory that a loop wants, of a protocol that is made already."""
    return lambda: cast(asyncio.Protocol, protocol)
