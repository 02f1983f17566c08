"""NATS, as far as a run of several hosts needs it: who may say what, and how it fails.

Short words (who is there, how far each is, the clock) are plain messages, which may be
lost and are said again. What must arrive, the plan on its way out and the records on
their way back, are pieces of a file in one JetStream stream of the run: a piece names
its place in the file, so that it counts once however often it is sent or read.
"""

from __future__ import annotations

import asyncio
import os
import re
import ssl
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import msgspec

from loadgen.errors import StackError, UsageError
from loadgen.replay.clock_offset import ClockOffset
from loadgen.results.parts import Piece
from loadgen.run.config import WORKER_NAME
from loadgen.run.sender import Counts, Job, Message
from proxy.process.files import os_reason

if TYPE_CHECKING:
    from nats.aio.client import Client
    from nats.aio.msg import Msg
    from nats.js import JetStreamContext

CONNECT_SECONDS = 10
ASK_SECONDS = 2.0
"""For an answer to a short question; it is asked again."""
PING_SECONDS = 5
"""A bus that answers no two of them is taken as away."""
SILENCE_SECONDS = 15.0
"""Of somebody who says something twice a second, while the bus is there. More than
the 10 s that a bus may be away for."""
KEPT_SECONDS = 7 * 24 * 3600
"""The life of a stream that nobody removes, its coordinator having died."""
PIECE_BYTES = 256 * 1024
"""Below the smallest limit of a message that a server is likely to have; a read of it
is a third longer."""

CALL = "loadgen.call"

Answer = TypeVar("Answer")
Name = Annotated[str, msgspec.Meta(pattern=rf"^{WORKER_NAME.pattern}\Z")]
Token = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{16}\Z")]


class Call(msgspec.Struct, frozen=True, kw_only=True):
    """A coordinator asks who is free; all that are answer."""

    run: Token


class Hello(msgspec.Struct, frozen=True, kw_only=True):
    """A free worker."""

    id: Token
    name: Name
    version: str


class Reserve(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Keep yourself free for this run; said again until it begins."""

    run: Token


class Keep(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The coordinator of your run is there; said each second."""

    run: Token


class Assign(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Your part of the plan: get it, get ready, and wait for the start."""

    run: Token
    job: Job
    total: int
    """Of workers."""
    plan_bytes: int
    plan_sha256: str


class Start(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The run's zero, on the coordinator's monotonic clock."""

    run: Token
    zero_seconds: float


class Stop(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """End the run as at Ctrl-C; one that has not begun is over."""

    run: Token


class Rewind(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The bus lost pieces: send the records again from this byte on."""

    run: Token
    offset: int


class Done(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """All of your records are here: you may forget them."""

    run: Token


Order = Reserve | Keep | Assign | Start | Stop | Rewind | Done


class Reply(msgspec.Struct, frozen=True, kw_only=True):
    """What a worker says to an order; `refusal` is why it does not follow it."""

    refusal: str | None = None


class Beat(msgspec.Struct, frozen=True, kw_only=True):
    """A worker in a run, twice a second."""

    number: int
    """Of its part, from 1."""
    is_ready: bool
    has_begun: bool
    clock: ClockOffset | None
    counts: Counts
    failure: str | None = None


class Clock(msgspec.Struct, frozen=True, kw_only=True):
    """The coordinator's monotonic clock, now."""

    at_seconds: float


class End(msgspec.Struct, frozen=True, kw_only=True):
    """The last of a worker's part: how its replay ended."""

    size: int
    """Bytes of its records."""
    message: Message
    death: str | None
    """How its process ended, if not well."""
    clock: ClockOffset | None
    """Anew, for the drift; None: nobody answered."""


class Parcel(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One message of the stream."""

    number: int
    """Of the part, from 1; 0 is the plan."""
    piece: Piece | None = None
    end: End | None = None
    rewinds: int = 0
    """How often its sender had gone back before."""

    @property
    def id(self) -> str:
        """The same for the same content: the bus stores it once.

        But for what is sent again because it was asked for: it may have been read in
        vain.
        """
        what = "end"
        if self.piece is not None:
            what = f"{self.piece.offset}-{len(self.piece.data)}"
        return f"{self.number}-{what}-{self.rewinds}"


class StreamLost(Exception):
    """The run's stream is not there: the bus came back without its store."""


class BusOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Where the bus is, and how one gets in."""

    url: str
    credentials: Path | None = None
    ca: Path | None = None

    @property
    def shown(self) -> str:
        """The URL, which holds no secret: `parse_bus` refuses one."""
        return self.url


class Bus:
    """A connection that comes back by itself; use `connected`."""

    def __init__(self, client: Client, shown: str) -> None:
        self._client = client
        self._shown = shown
        self._stream: JetStreamContext = client.jetstream(timeout=ASK_SECONDS)
        self.refusal = ""
        """Why it did not store the latest that it did not."""
        self.back_at_seconds = time.monotonic()
        """When it was last known to have come back."""

    @property
    def is_there(self) -> bool:
        """Whether it can be heard and spoken to now."""
        return bool(self._client.is_connected)

    def silence_seconds(self, heard_at_seconds: float) -> float:
        """Time in which somebody could have been heard, and was not."""
        if not self.is_there:
            return 0.0
        return time.monotonic() - max(heard_at_seconds, self.back_at_seconds)

    async def close(self) -> None:
        """Close the connection, without waiting for anybody."""
        await self._client.close()

    async def say(self, subject: str, what: msgspec.Struct) -> None:
        """Tell whoever listens; said to nobody while the bus is away."""
        if self.is_there:
            await self._client.publish(subject, msgspec.msgpack.encode(what))

    async def ask(
        self, subject: str, what: msgspec.Struct, kind: type[Answer]
    ) -> Answer | None:
        """One answer; None when there was none in time, or none that can be read."""
        import nats.errors

        if not self.is_there:
            return None
        try:
            message = await self._client.request(
                subject, msgspec.msgpack.encode(what), timeout=ASK_SECONDS
            )
            return msgspec.msgpack.decode(message.data, type=kind)
        except (TimeoutError, nats.errors.Error, msgspec.MsgspecError):
            return None

    async def ask_all(
        self, subject: str, what: msgspec.Struct, kind: type[Answer], seconds: float
    ) -> list[Answer]:
        """All answers that come within a time."""
        answers: list[Answer] = []

        async def heard(message: Msg) -> None:
            with suppress(msgspec.MsgspecError):  # of somebody else, or another version
                answers.append(msgspec.msgpack.decode(message.data, type=kind))

        inbox = self._client.new_inbox()
        listening = await self._client.subscribe(inbox, cb=heard)
        try:
            if self.is_there:
                data = msgspec.msgpack.encode(what)
                await self._client.publish(subject, data, reply=inbox)
            await asyncio.sleep(seconds)
        finally:
            await listening.unsubscribe()
        return answers

    async def listen(
        self,
        subject: str,
        kind: Any,
        answer: Callable[[Any], Awaitable[msgspec.Struct | None]],
    ) -> Callable[[], Awaitable[None]]:
        """Hear what is said, and answer where something is returned; call to stop."""

        async def heard(message: Msg) -> None:
            try:
                what = msgspec.msgpack.decode(message.data, type=kind)
            except msgspec.MsgspecError:
                return  # of somebody else, or of another version
            reply = await answer(what)
            if reply is not None and message.reply:
                await message.respond(msgspec.msgpack.encode(reply))

        listening = await self._client.subscribe(subject, cb=heard)
        await self._client.flush(timeout=CONNECT_SECONDS)
        return listening.unsubscribe

    # -- the stream of a run ---------------------------------------------------

    async def make_stream(self, run: str) -> None:
        """Raises StackError for a bus that keeps nothing."""
        import nats.errors
        from nats.js.api import RetentionPolicy, StorageType, StreamConfig
        from nats.js.errors import ServiceUnavailableError

        try:
            await self._stream.add_stream(
                StreamConfig(
                    name=stream_name(run),
                    subjects=[stream_subject(run)],
                    retention=RetentionPolicy.LIMITS,
                    storage=StorageType.FILE,
                    max_age=KEPT_SECONDS,
                )
            )
        except ServiceUnavailableError:
            raise StackError(
                f"the bus {self._shown} has no JetStream to keep the records of a run: "
                "start nats-server with -js -sd DIR"
            ) from None
        except (TimeoutError, nats.errors.Error) as error:
            raise StackError(
                f"the bus {self._shown} cannot keep the records of a run: "
                f"{_reason(error)}"
            ) from None

    async def remove_stream(self, run: str) -> bool:
        """False when it could not be, or was not there."""
        import nats.errors

        try:
            return bool(await self._stream.delete_stream(stream_name(run)))
        except (TimeoutError, nats.errors.Error):
            return False

    async def store(self, run: str, parcel: Parcel) -> bool:
        """Put a message into the stream; False: not known to be there, try again.

        Raises StreamLost, also while a bus that has just started looks for its store.
        """
        import nats.errors
        from nats.js.errors import NoStreamResponseError

        if not self.is_there:
            return False
        try:
            await self._stream.publish(
                stream_subject(run),
                msgspec.msgpack.encode(parcel),
                headers={"Nats-Msg-Id": parcel.id},
            )
        except NoStreamResponseError:
            raise StreamLost from None
        except (TimeoutError, nats.errors.Error) as error:
            self.refusal = _reason(error)
            return False
        return True

    async def read(self, run: str, sequence: int) -> Parcel | None:
        """A message of the stream, the first is 1; None: not there yet, try again.

        Raises StreamLost.
        """
        import nats.errors
        from nats.js.errors import NotFoundError

        if not self.is_there:
            return None
        try:
            found = await self._stream.get_msg(stream_name(run), sequence)
        except NotFoundError as error:
            if error.err_code == _NO_STREAM:
                raise StreamLost from None
            return None
        except (TimeoutError, nats.errors.Error):
            return None
        try:
            return msgspec.msgpack.decode(found.data or b"", type=Parcel)
        except msgspec.MsgspecError:
            return Parcel(number=_NOBODY)

    async def first(self, run: str) -> int:
        """Number of the oldest message that is kept, or would be."""
        import nats.errors

        try:
            info = await self._stream.stream_info(stream_name(run))
        except (TimeoutError, nats.errors.Error):
            return 1
        return max(info.state.first_seq, 1)


_NO_STREAM = 10059
_NOBODY = -1
"""Part of what somebody else put into the stream."""


async def connected(options: BusOptions, name: str, note: Callable[[str], None]) -> Bus:
    """A connection to the bus; `note` hears when it goes and comes back.

    Raises UsageError where NATS' client is not installed or a file cannot be read,
    StackError where the bus is not there or does not let us in.
    """
    try:
        import nats.errors
        from nats.aio.client import Client
    except ImportError:
        raise UsageError("--bus needs nats-py: pip install 'servewatt[bus]'") from None
    secrets = _credentials(options.credentials)
    tls = _tls(options)
    client = Client()
    failures: list[Exception] = []
    found: list[Bus] = []

    async def failed(error: Exception) -> None:
        if not found:
            failures.append(error)

    async def gone() -> None:
        if found and not client.is_closed:
            note(f"the bus {options.shown} is away")

    async def back() -> None:
        for bus in found:
            bus.back_at_seconds = time.monotonic()
            note(f"the bus {options.shown} is back")

    try:
        async with asyncio.timeout(CONNECT_SECONDS):
            await client.connect(
                options.url,
                name=name,
                error_cb=failed,
                disconnected_cb=gone,
                reconnected_cb=back,
                max_reconnect_attempts=-1,
                reconnect_time_wait=0.25,  # type: ignore[arg-type]
                ping_interval=PING_SECONDS,
                tls=tls,
                **secrets,
            )
    except (TimeoutError, OSError, nats.errors.Error) as error:
        await client.close()
        # its own words, such as a refusal, outweigh how it hung up
        said = [each for each in failures if "violation" in str(each).lower()]
        reason = _reason([error, *failures, *said][-1])
        raise StackError(
            f"the bus {options.shown} cannot be reached: {reason}"
        ) from None
    bus = Bus(client, options.shown)
    found.append(bus)
    return bus


def worker_subject(id: str) -> str:
    """Where one worker takes its orders."""
    return f"loadgen.worker.{id}"


def beat_subject(run: str) -> str:
    """Where the workers of a run tell how far they are."""
    return f"loadgen.run.{run}.beat"


def clock_subject(run: str) -> str:
    """Where the coordinator of a run tells the time."""
    return f"loadgen.run.{run}.clock"


def stream_name(run: str) -> str:
    """The stream of a run."""
    return f"loadgen-{run}"


def stream_subject(run: str) -> str:
    """The one subject of the stream."""
    return f"loadgen.stream.{run}"


def _credentials(path: Path | None) -> dict[str, Any]:
    """A .creds file of NATS, or one line: a token, or USER:PASSWORD."""
    if path is None:
        return {}
    try:
        text = path.read_text(encoding="ascii").strip()
    except OSError as error:
        raise UsageError(f"--bus-creds {path}: {os_reason(error)}") from None
    except UnicodeDecodeError:
        raise UsageError(f"--bus-creds {path}: not ASCII text") from None
    if "-----BEGIN NATS USER JWT-----" in text:
        try:
            import nkeys  # noqa: F401  the client loads it only as it connects
        except ImportError:
            raise UsageError(
                "--bus-creds of NATS' own form needs nkeys: pip install "
                "'nats-py[nkeys]'"
            ) from None
        return {"user_credentials": str(path)}
    if not text or not text.isprintable():
        raise UsageError(
            f"--bus-creds {path} is neither a .creds file of NATS nor one line: a "
            "token, or USER:PASSWORD"
        )
    user, colon, password = text.partition(":")
    return {"user": user, "password": password} if colon else {"token": text}


def _tls(options: BusOptions) -> ssl.SSLContext | None:
    if options.ca is None and not options.url.startswith("tls:"):
        return None
    try:
        return ssl.create_default_context(cafile=options.ca and os.fspath(options.ca))
    except OSError as error:  # SSLError is one
        reason = os_reason(error) if error.errno and error.strerror else str(error)
        raise UsageError(f"--bus-ca {options.ca}: {reason}") from None


def _reason(error: BaseException) -> str:
    """Why, for the end of a line of ours."""
    if isinstance(error, TimeoutError | asyncio.TimeoutError):
        return "no answer in time"
    text = re.sub(r"^\[Errno -?\d+\] |^nats: ", "", str(error)) or type(error).__name__
    return " ".join(text.split()).lower()[:200]
