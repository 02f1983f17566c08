"""Abilities of each backend: options it has none for are refused before the run.

Pure: a run that asks for what every request would be refused for, or would not
get, ends before it begins.
"""

from __future__ import annotations

from loadgen.client.backends import BACKENDS, RequestOptions, Target
from loadgen.errors import UsageError


def length_rule(backend: str, options: RequestOptions) -> str:
    """The meaning of an output length to the server: `forced`, or a `cap`.

    Raises UsageError when forcing was demanded of a backend that has no word for it.
    """
    if not BACKENDS[backend].can_force_length:
        if options.ignore_eos:
            raise UsageError(
                f"--ignore-eos: a {backend} server cannot be made to generate an exact "
                "length; leave it out to run the lengths as caps"
            )
        return "cap"
    return "cap" if options.ignore_eos is False else "forced"


def length_note(rule: str | None, backend: str | None) -> str:
    """A sentence where output lengths were not forced; empty where they were."""
    if rule != "cap":
        return ""
    known = BACKENDS.get(backend or "")
    if known is None or known.can_force_length:
        return "output lengths are caps, as was asked for"
    return f"output lengths are caps: {backend} cannot force them"


def check_options(target: Target, options: RequestOptions) -> None:
    """Raises UsageError for what the backend would refuse in every request."""
    length_rule(target.backend, options)
    if options.n < 1:
        raise UsageError(f"--n is {options.n}, expected a positive integer")
    if options.n > 1 and not BACKENDS[target.backend].honours_copies:
        raise UsageError(
            f"--n is {options.n}, but a {target.backend} server ignores it; use --n 1"
        )
