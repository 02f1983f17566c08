"""Which upstreams are in use, and what a file that is read again changes of them.

Rule: an upstream whose settings changed is one that is gone and one that is new. Where
a proxy is several processes all of them go from plan to plan, so that each means the
same one by its name and the plan that brought it.

Pure: lists of upstreams in, their difference out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from proxy.serve.config import ServeConfig, UpstreamConfig, differences


@dataclass(frozen=True, slots=True)
class Changes:
    """The difference between two lists of upstreams, by name."""

    kept: tuple[UpstreamConfig, ...]
    """They stay, some with other models."""
    new: tuple[UpstreamConfig, ...]
    """They have to be built, some in place of one of that name."""
    gone: tuple[str, ...]
    """Of that name nothing stays."""
    names: tuple[str, ...]
    """All names afterwards, in order."""

    @property
    def text(self) -> str:
        """One line; empty where nothing changes but models."""
        names = {config.name for config in self.new}
        changed = sorted(names & set(self.gone))
        parts = {
            "new": sorted(names - set(self.gone)),
            "changed": changed,
            "gone": sorted(set(self.gone) - names),
        }
        return "; ".join(
            f"{what}: {', '.join(which)}" for what, which in parts.items() if which
        )

    def said(self, new: ServeConfig, old: ServeConfig) -> str:
        """What of the new configuration is used, and what waits for a restart."""
        taken = f"upstreams {self.text}" if self.text else "upstreams as named"
        waiting = differences(new, old)
        if waiting:
            taken += f"; not before a restart: {', '.join(waiting)}"
        return taken


def changes_of(
    before: Sequence[UpstreamConfig], after: Sequence[UpstreamConfig]
) -> Changes:
    """What stays, what is new and what is gone.

    A single upstream whose sensor shows the host's other GPUs as idle is built anew
    beside others: those GPUs may be theirs.
    """
    was_alone, is_alone = len(before) == 1, len(after) == 1
    known = {config.name: config for config in before}

    def stays(config: UpstreamConfig) -> bool:
        old = known.get(config.name)
        may_stay = old is not None and replace(old, models=config.models) == config
        shows_others = was_alone and not is_alone and config.gpus != ()
        return may_stay and not shows_others

    return _changes(before, after, stays)


def _changes(
    before: Sequence[UpstreamConfig],
    after: Sequence[UpstreamConfig],
    stays: Callable[[UpstreamConfig], bool],
) -> Changes:
    kept = tuple(config for config in after if stays(config))
    new = tuple(config for config in after if config not in kept)
    stay = {config.name for config in kept}
    gone = tuple(config.name for config in before if config.name not in stay)
    return Changes(kept, new, gone, tuple(config.name for config in after))


@dataclass(frozen=True, slots=True)
class Plan:
    """The upstreams that all processes of a proxy use at one time."""

    upstreams: tuple[UpstreamConfig, ...]
    number: int
    """Plans that were used before it."""
    brought_by: Mapping[str, int]
    """Number of the plan that brought each upstream, by its name."""

    @classmethod
    def first(cls, upstreams: Sequence[UpstreamConfig]) -> Plan:
        """The one that a proxy starts with."""
        return cls(tuple(upstreams), 0, dict.fromkeys((up.name for up in upstreams), 0))

    def then(self, upstreams: Sequence[UpstreamConfig]) -> Plan:
        """The one that follows, with these upstreams."""
        number = self.number + 1
        stay = {each.name for each in changes_of(self.upstreams, upstreams).kept}
        return Plan(
            tuple(upstreams),
            number,
            {
                each.name: self.brought_by[each.name] if each.name in stay else number
                for each in upstreams
            },
        )

    def changes_from(self, before: Plan) -> Changes:
        """What whoever uses another plan has to do; some in between may be missed."""
        return _changes(
            before.upstreams,
            self.upstreams,
            lambda config: (
                before.brought_by.get(config.name) == self.brought_by[config.name]
            ),
        )
