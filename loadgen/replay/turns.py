"""One turn: prepared, awaited, sent, read, recorded.

Whatever happens to it, a turn that fell due leaves exactly one record: also when
the server fails, when its time is up and when the run is stopped.
"""

from __future__ import annotations

import asyncio
from collections.abc import Generator
from contextlib import suppress
from dataclasses import dataclass

from loadgen.client.backends import Messages, RequestOptions, Target, write_request
from loadgen.client.client import Client
from loadgen.client.connection import Response
from loadgen.client.conversation import messages_of, prompt_tokens_of, with_reply
from loadgen.client.replies import Reply, read_in_steps
from loadgen.plan.plan import PlannedSession
from loadgen.replay.clock import Clock
from loadgen.results.progress import Progress
from loadgen.results.recorder import Recorder
from loadgen.results.results import Result
from proxy.engines import DIALECTS

AHEAD_SECONDS = 0.5  # texts, bodies and connections are ready this long before

_ERROR_CHARACTERS = 400


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """State that all turns of a run share."""

    target: Target
    options: RequestOptions
    recorder: Recorder
    progress: Progress
    clock: Clock
    client: Client
    zero: float
    """The run's zero on the clock; records count from it."""
    slots: asyncio.Semaphore | None
    """Limit of requests in flight; None for none."""
    prepared: asyncio.Semaphore
    """Sessions that may be ready and waiting for their first send."""
    timeout_seconds: float
    seed: int
    is_closed_loop: bool = False
    """A request is meant to start when a slot is free, and not before."""


async def run_session(run: Run, session: PlannedSession) -> None:
    """Send the turns of one session, each after the reply to the one before."""
    history: Messages = []
    history_tokens: int | None = 0
    planned_seconds = session.start_seconds
    is_broken = False
    for number, turn in enumerate(session.turns):
        if number > 0:
            planned_seconds = max(
                turn.at_seconds or 0.0, planned_seconds + turn.think_seconds
            )
        sending = _Turn(run, session, number, planned_seconds, history_tokens)
        if is_broken:
            sending.drop("the previous turn failed")
            continue
        result, history = await sending.perform(history)
        history_tokens = sending.conversation_tokens
        is_broken = result.outcome != "ok"
        planned_seconds = result.finished_seconds


class _Turn:
    """One request, from its preparation to its record."""

    def __init__(
        self,
        run: Run,
        session: PlannedSession,
        number: int,
        planned_seconds: float,
        history_tokens: int | None,
    ) -> None:
        self._run = run
        self._session_id = session.session_id
        # One request alone has no reason to wait for a certain replica.
        is_shared = len(session.turns) > 1
        self._shared_session = session.session_id if is_shared else None
        self._number = number
        self._turn = session.turns[number]
        self._planned_seconds = planned_seconds
        self._due = run.zero + planned_seconds
        self._response = Response()
        self._prompt_tokens = prompt_tokens_of(self._turn, history_tokens)
        self._asked = run.options.output_tokens or self._turn.output_tokens

    @property
    def conversation_tokens(self) -> int | None:
        """Tokens of the conversation up to its reply, by the plan."""
        prompt, reply = self._prompt_tokens, self._asked
        return None if prompt is None or reply is None else prompt + reply

    async def perform(self, history: Messages) -> tuple[Result, Messages]:
        """Its record, and the history for the next turn."""
        run = self._run
        await run.clock.sleep_about(self._due - AHEAD_SECONDS)
        messages, request = self._prepare(history)
        outcome, error = "ok", None
        try:
            await self._wait_until_due()
            outcome, error = await self._send(request)
        except asyncio.CancelledError:
            self._record_stop()
            raise
        steps = self._steps()
        try:
            while True:
                next(steps)
                await run.clock.pause()
        except StopIteration as end:
            reply: Reply = end.value
        except asyncio.CancelledError:
            self._record(_rest(steps), outcome, error)
            raise
        return self._record(reply, outcome, error), with_reply(messages, reply.text)

    def drop(self, reason: str) -> None:
        """Record that it is never sent."""
        self._record(Reply(), "dropped", reason)

    def _prepare(self, history: Messages) -> tuple[Messages, bytes]:
        run, turn = self._run, self._turn
        messages = messages_of(turn, history, seed=run.seed, options=run.options)
        request = write_request(
            run.target,
            run.options,
            messages,
            request_id=turn.request_id,
            kind=turn.kind,
            output_tokens=turn.output_tokens,
            session_id=self._shared_session,
        )
        return messages, request

    async def _wait_until_due(self) -> None:
        run = self._run
        left_seconds = self._due - run.clock.now()
        # With a limit, connections are handed on from one request to the next.
        if run.slots is None and left_seconds > 0:
            with suppress(TimeoutError):
                async with asyncio.timeout(left_seconds):
                    await run.client.reserve()
        await run.clock.sleep_until(self._due)
        if run.slots is not None:
            await run.slots.acquire()
            if run.is_closed_loop:
                self._planned_seconds = max(
                    self._planned_seconds, self._run.clock.now() - run.zero
                )

    async def _send(self, request: bytes) -> tuple[str, str | None]:
        """Send and receive; the outcome as far as the clock can tell."""
        run = self._run
        if self._number == 0:
            run.prepared.release()
        run.progress.note_send(run.clock.now() - run.zero)
        try:
            async with asyncio.timeout(run.timeout_seconds):
                await run.client.send(request, self._response)
        except TimeoutError:
            return "timeout", f"no whole reply within {run.timeout_seconds:g} s"
        finally:
            run.progress.in_flight -= 1
            if self._response.sent_at is None:  # there was nobody to send it to
                run.progress.sent -= 1
            if run.slots is not None:
                run.slots.release()
        return "ok", None

    def _steps(self) -> Generator[None, None, Reply]:
        response, run = self._response, self._run
        return read_in_steps(
            DIALECTS[run.target.backend],
            response.status,
            response.headers,
            response.stamps,
            response.pieces,
            sequences=run.options.n,
        )

    def _record_stop(self) -> None:
        """The run was stopped: nothing more will come."""
        if self._response.sent_at is not None:
            self._record(_rest(self._steps()), "aborted", "the run was stopped")
        elif self._run.clock.now() >= self._due:
            self._record(Reply(), "dropped", "the run was stopped before it was sent")

    def _record(self, reply: Reply, outcome: str, error: str | None) -> Result:
        response, run, turn = self._response, self._run, self._turn
        if outcome == "ok":
            error = response.failure or reply.error
            outcome = "ok" if error is None else "error"
        if response.finished_at is None:
            response.finished_at = run.clock.now()
        stamps = [self._seconds(stamp) for stamp in reply.chunk_stamps]
        result = Result(
            request_id=turn.request_id,
            session_id=self._session_id,
            turn=self._number,
            kind=turn.kind,
            planned_seconds=round(self._planned_seconds, 6),
            sent_seconds=self._seconds_or_none(response.sent_at),
            first_token_seconds=stamps[0] if stamps else None,
            first_visible_seconds=self._seconds_or_none(reply.first_visible_stamp),
            last_token_seconds=stamps[-1] if stamps else None,
            finished_seconds=self._seconds(response.finished_at),
            prompt_tokens=reply.prompt_tokens,
            cached_tokens=reply.cached_tokens,
            output_tokens=reply.output_tokens,
            requested_input_tokens=turn.input_tokens,
            requested_prompt_tokens=self._prompt_tokens,
            requested_output_tokens=self._asked and self._asked * run.options.n,
            chunk_seconds=stamps,
            chunk_tokens=reply.chunk_tokens,
            outcome=outcome,
            status=response.status,
            error=error and run.target.redact(error)[:_ERROR_CHARACTERS],
            connection_reused=response.is_reused,
            connect_seconds=None
            if response.sent_at is None
            else round(response.connect_seconds, 6),
            send_seconds=_between(response.sent_at, response.written_at),
            wait_seconds=_between(response.sent_at, response.first_byte_at),
            reply_id=None if reply.request_id == turn.request_id else reply.request_id,
        )
        if result.status == 200:
            # reads so far were taken for a token each
            counted = result.output_tokens or sum(result.chunk_tokens)
            run.progress.tokens += counted - len(response.pieces)
        run.recorder.record(result)
        run.progress.note_end(result)
        return result

    def _seconds(self, stamp: float) -> float:
        # Whole microseconds: the clock is no better, and a line half as long.
        return round(stamp - self._run.zero, 6)

    def _seconds_or_none(self, stamp: float | None) -> float | None:
        return None if stamp is None else self._seconds(stamp)


def _between(begin: float | None, end: float | None) -> float | None:
    return None if begin is None or end is None else round(end - begin, 6)


def _rest(steps: Generator[None, None, Reply]) -> Reply:
    """Finish reading at once."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            reply: Reply = end.value
            return reply
