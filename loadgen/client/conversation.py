"""The messages of a turn, with the history it carries.

Pure. A turn with `history` "append" sends the earlier turns and the replies
they really got before its own text; one with "total" brings its whole prompt.
"""

from __future__ import annotations

from loadgen.client.backends import Messages, RequestOptions
from loadgen.errors import PlanError
from loadgen.plan.plan import PlannedTurn
from loadgen.plan.prompts import DEFAULT_BLOCK_TOKENS, prompt_text


def messages_of(
    turn: PlannedTurn, history: Messages, *, seed: int, options: RequestOptions
) -> Messages:
    """The chat that `turn` sends; `history` is the conversation before it.

    Raises PlanError for a turn with neither text nor length.
    """
    own: Messages
    if turn.messages is not None:
        own = list(turn.messages)
    else:
        own = [{"role": "user", "content": _text_of(turn, seed, options)}]
    return history + own if turn.history == "append" else own


def with_reply(messages: Messages, text: str) -> Messages:
    """The history for the next turn: what was sent, and what came back."""
    return [*messages, {"role": "assistant", "content": text}]


def prompt_tokens_of(turn: PlannedTurn, before: int | None) -> int | None:
    """Length of the whole prompt by the plan; `before` is the conversation's so far.

    None where the plan has text without its length.
    """
    if turn.history != "append" or turn.input_tokens is None:
        return turn.input_tokens
    return None if before is None else before + turn.input_tokens


def _text_of(turn: PlannedTurn, seed: int, options: RequestOptions) -> str:
    if turn.prompt is not None:
        return turn.prompt
    if not turn.input_tokens or turn.input_tokens < 0:
        raise PlanError(
            f"request {turn.request_id}: no prompt, no messages and input_tokens is "
            f"{turn.input_tokens}, one of them is needed"
        )
    return prompt_text(
        seed,
        turn.request_id,
        turn.input_tokens,
        turn.hash_ids,
        options.hash_block_size or DEFAULT_BLOCK_TOKENS,
    )
