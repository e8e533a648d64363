"""What the log is told of the Redis that keeps the state: once when it begins, once when it ends."""

from __future__ import annotations

import structlog

from gridcore.condition import Condition
from gridcore.errors import ConfigError
from hub.errors import StateLost, StoreUnavailable

log = structlog.get_logger()


class RedisConditions:
    """What is wrong with it, of this hub's link."""

    def __init__(self, target: str) -> None:
        """`target` is where Redis is looked for, without what is secret."""
        self._target = target
        self._place = ""
        self._away = Condition(
            "the state's Redis is away",
            "the state's Redis answers again",
            do="see to that Redis; meanwhile hubs answer 503 and nodes go on computing",
        )
        self._lost = Condition("the state is lost", "the hub has its state again", level="error")
        self._bug = Condition(
            "the way to Redis has a bug", "the way to Redis is open all the same", level="error"
        )
        self._full = Condition(
            "the state's Redis has no memory left",
            "the state's Redis has memory again",
            do="raise its maxmemory, or drop tasks and nodes that nobody needs; new ones are refused",
        )
        self._refuses = Condition(
            "the state's Redis refuses what the hub asks",
            "the state's Redis does what the hub asks",
            level="error",
        )

        self._unconfirmed = Condition(
            "no replica confirms what operators change",
            "replicas confirm what operators change",
            do="see to the replicas of the state's Redis; changes are done, and answered outcome-unknown",
        )

    def fails(self, error: StoreUnavailable | ConfigError) -> None:
        """There is no session."""
        if isinstance(error, StateLost):
            self._away.over()
            self._lost.meet(error.why, why=error.why, do=error.do, redis=self._target)
        else:
            self._away.meet(str(type(error)), why=str(error), redis=self._target)

    def breaks(self, error: Exception) -> None:
        """We have a bug: what went wrong is nothing that can."""
        self._bug.meet(type(error).__name__, exc_info=error)

    def answers(self, place: str) -> None:
        """There is a session with this server."""
        is_news = place != self._place and not (self._away.is_met or self._lost.is_met)
        self._place = place
        self._bug.over()
        self._away.over(redis=place)
        self._lost.over(redis=place)
        if is_news:
            log.info("the state's Redis answers", redis=place)

    def is_full(self) -> None:
        """What needs memory was not done."""
        self._full.meet(redis=self._place)

    def refuses(self, why: str, kind: str) -> None:
        """Something was refused, or failed there."""
        self._refuses.meet(kind, why=why, redis=self._place)

    def is_confirmed(self, by_enough: bool) -> None:
        """Replicas were asked whether they have an operator's change."""
        if by_enough:
            self._unconfirmed.over()
        else:
            self._unconfirmed.meet(redis=self._place)

    def wrote(self, *, took_memory: bool = False) -> None:
        """Something was done."""
        self._refuses.over()
        if took_memory:
            self._full.over()
