"""Whether what a Redis holds can be what became of the state that a hub saw. Pure.

A state has an *epoch*, made when it began, and everything in it that counts only ever grows: the versions of
the list and of the keys, and the logical clock. So a hub that knows one sees when it is given another: an
empty Redis, an old copy, a list that somebody began because there was none. None of them is taken for it,
unless somebody said so on purpose (`computehub restore`, `computehub accept-loss`), which makes a later
epoch.

A replica that is promoted may lack the last seconds, which is no loss of what was acknowledged: where it is
the list that lacks them, the hub that knows it writes it again.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto

from hub.redis_rows import number_of

LAST_SECONDS = 20.0
"""Of the logical clock: what a failover may lose, and twice what that clock may go on between two sweeps."""

FIRST, ON_PURPOSE = "first", "purpose"
"""How an epoch began: by the first hub that found nothing, or because somebody wanted it."""


@dataclass(frozen=True, slots=True)
class Standing:
    """How far a state has come. A list without a version is none at all."""

    epoch: str = ""
    list_version: str = ""
    access_version: str = ""
    clock: float = 0.0

    @property
    def is_untouched(self) -> bool:
        """Whether nobody has done anything yet that would be missed."""
        return number_of(self.list_version) <= 1 and number_of(self.access_version) == 0


@dataclass(frozen=True, slots=True)
class Found:
    """What a Redis holds now."""

    standing: Standing
    began: str = ""
    """FIRST or ON_PURPOSE; empty where an older GridCore began it."""
    lost: str = ""
    """Why a hub that knew more has refused it."""
    missing: str = ""
    """What of it is gone, in words; empty where it is whole."""


class Verdict(Enum):
    """What to do with it."""

    TAKE = auto()
    WRITE_AGAIN = auto()
    """Take it, and write the list again that this hub knows."""
    BEGIN = auto()
    """There is none, and none is missed."""
    REFUSE = auto()


@dataclass(frozen=True, slots=True)
class Judgement:
    """A verdict; of one that refuses also why, and whether other hubs must be told."""

    verdict: Verdict
    why: str = ""
    tells: bool = False


def judge(known: Standing | None, found: Found, *, is_promoted: bool) -> Judgement:
    """Whether to take what was found; `known` is what this hub saw, if it saw any, and `is_promoted` says
    that the server was a replica of the one where it saw that."""
    there = found.standing
    is_wanted = (
        found.began == ON_PURPOSE
        and bool(there.list_version)
        and (known is None or number_of(there.epoch) > number_of(known.epoch))
    )
    if found.lost:
        return Judgement(Verdict.REFUSE, found.lost)
    if found.missing:
        return Judgement(Verdict.REFUSE, f"a part of what Redis kept is gone: {found.missing}")
    if known is None or known.is_untouched:
        return Judgement(Verdict.TAKE if there.list_version else Verdict.BEGIN)
    if not there.list_version:
        return Judgement(Verdict.REFUSE, "Redis is empty, and the hubs know a task list", tells=True)
    if there.epoch != known.epoch and (there.epoch or there.list_version != known.list_version):
        if is_wanted:
            return Judgement(Verdict.TAKE)
        # Who began anew and has been at work since is not stopped by a hub that was away.
        is_in_use = not there.is_untouched and number_of(there.epoch) > number_of(known.epoch)
        return Judgement(
            Verdict.REFUSE, "Redis holds another state than the one that the hubs know", tells=not is_in_use
        )
    return _compare(known, there, is_promoted)


def _compare(known: Standing, there: Standing, is_promoted: bool) -> Judgement:
    """The same state: has it come at least as far?"""
    behind = known.clock - there.clock
    is_list_older = _is_older(there.list_version, known.list_version)
    if not (is_list_older or _is_older(there.access_version, known.access_version) or behind > LAST_SECONDS):
        return Judgement(Verdict.TAKE)
    if is_promoted and behind <= LAST_SECONDS:
        is_behind = number_of(there.list_version) < number_of(known.list_version)
        return Judgement(Verdict.WRITE_AGAIN if is_behind else Verdict.TAKE)
    return Judgement(
        Verdict.REFUSE, "Redis holds an older copy of the state than the hubs have seen", tells=True
    )


def _is_older(version: str, known: str) -> bool:
    """Whether this cannot have come after the other: a smaller number, or the same one of another hub's."""
    return version != known and number_of(version) <= number_of(known)
