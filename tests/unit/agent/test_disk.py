"""When the disk is measured, and who has to go."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from structlog.testing import capture_logs

from agent import disk
from agent.disk import LOG_LOOK, MB, DiskWatch, LogPatience, Pace, over_layer, over_scratch
from agent.engine_api import EngineApi
from agent.errors import EngineError, EngineUnreachable
from agent.limits import Breach, Limit
from agent.planner import Container
from agent.settings import Settings
from tests.unit.agent.until import until


def a_container(name: str, status: str = "running", scratch: str | None = None) -> Container:
    return Container(id=name, name=name, status=status, scratch=scratch)


def measured(pace: Pace, began: float, took: float, free: int | None) -> None:
    pace.measured(began, began + took, free)


def test_the_first_measurement_is_made_at_once() -> None:
    assert Pace(100, 10).due(0.0, 1000)
    assert Pace(100, 10).due(0.0, None)


def test_a_fall_of_the_free_space_calls_for_a_measurement() -> None:
    pace = Pace(100, 10)
    measured(pace, 0.0, 0.1, 1000)
    assert not pace.due(10.0, 950)
    assert not pace.due(11.0, 901)
    assert pace.due(12.0, 900)


def test_what_one_container_frees_does_not_hide_what_another_writes() -> None:
    pace = Pace(100, 10)
    measured(pace, 0.0, 0.1, 1000)
    assert not pace.due(10.0, 5000)
    assert pace.due(11.0, 4900)


def test_without_a_fall_five_minutes_pass() -> None:
    pace = Pace(100, 10)
    measured(pace, 0.0, 0.0, 1000)
    assert not pace.due(299.0, 1000)
    assert pace.due(300.0, 1000)


def test_where_the_free_space_cannot_be_seen_half_a_minute_passes() -> None:
    pace = Pace(100, 10)
    measured(pace, 0.0, 0.0, None)
    assert not pace.due(29.0, None)
    assert pace.due(30.0, None)


def test_a_long_measurement_is_followed_by_a_longer_rest() -> None:
    pace = Pace(100, 10)
    measured(pace, 0.0, 5.0, 1000)
    assert not pace.due(54.0, 0)
    assert pace.due(55.0, 0)


def test_a_measurement_that_failed_is_still_called_for() -> None:
    pace = Pace(100, 10)
    measured(pace, 0.0, 0.0, 1000)
    assert pace.due(1.0, 800)
    pace.failed(1.0, 1.1)
    assert not pace.due(10.0, 800)
    assert pace.due(11.2, 800)


def test_steady_writing_is_measured_a_tenth_of_the_time_at_most() -> None:
    pace, now, free, busy = Pace(100, 10), 0.0, 10**9, 0.0
    while now < 3600:
        if pace.due(now, free):
            measured(pace, now, 3.0, free)
            busy += 3.0
            now += 3.0
        now, free = now + 1, free - 10**5
    assert 200 < busy < 360


def test_a_layer_over_the_limit_is_told_in_megabytes() -> None:
    containers = [a_container("a"), a_container("b"), a_container("new")]
    sizes = {"a": 2310 * MB + 5, "b": 2048 * MB, "somebody's": 9000 * MB}
    [(who, breach)] = over_layer(sizes, containers, 2048)
    assert (who, breach.limit) == ("a", Limit.LAYER)
    assert str(breach) == "wrote 2310 MB outside of /scratch, the limit is 2048 MB"


def test_a_scratch_over_the_limit_condemns_the_container_that_has_it() -> None:
    containers = [a_container("a", scratch="v1"), a_container("b", scratch="v2"), a_container("c")]
    sizes = {"v1": 1024 * MB, "v2": 1100 * MB, "v3": 5000 * MB}
    [(who, breach)] = over_scratch(sizes, containers, 1024)
    assert (who, breach.limit) == ("b", Limit.SCRATCH)
    assert str(breach) == "its /scratch holds 1100 MB, the limit is 1024 MB"


def test_three_looks_in_a_row_over_the_limit_condemn() -> None:
    logs = LogPatience(limit=1000.0)
    assert logs.due(["a"], 0.0) == []
    verdicts = []
    for step, rate in enumerate([2000.0, 2000.0, 10.0, 2000.0, 2000.0, 2000.0], 1):
        now = step * LOG_LOOK
        assert logs.due(["a"], now) == ["a"]
        verdicts.append(logs.looked("a", rate, now))
    assert verdicts == [False, False, False, False, False, True]


def test_a_log_that_stays_quiet_is_looked_at_once_a_minute() -> None:
    logs, looks = LogPatience(limit=1000.0), []
    for second in range(601):
        for container in logs.due(["a"], float(second)):
            looks.append(second)
            logs.looked(container, 0.0, float(second))
    assert looks[:4] == [10, 30, 70, 130]
    assert looks[-1] - looks[-2] == 60
    logs.looked("a", 500.0, 601.0)  # it talks again, below the limit
    assert logs.due(["a"], 611.0) == ["a"]


def test_containers_that_are_gone_are_forgotten() -> None:
    logs = LogPatience(limit=1000.0)
    logs.due(["a", "b"], 0.0)
    assert logs.due(["b"], 10.0) == ["b"]
    assert not logs.looked("a", 5000.0, 10.0)
    assert list(logs._watched) == ["b"]


class Api(EngineApi):
    """Answers as told, without an engine."""

    def __init__(self) -> None:
        super().__init__("unix:///nowhere")
        self.layers: dict[str, int] = {}
        self.volumes: dict[str, int] = {}
        self.rates: dict[str, float] = {}
        self.error: Exception | None = None
        self.calls: list[str] = []

    async def sizes(self, owner: str) -> dict[str, int]:
        self.calls.append("sizes")
        if self.error:
            raise self.error
        return self.layers

    async def volume_sizes(self, owner: str) -> dict[str, int]:
        self.calls.append("volumes")
        return self.volumes

    async def log_rate(self, container_id: str, seconds: float, enough: float) -> float:
        self.calls.append("log")
        if container_id not in self.rates:
            raise EngineError("gone", "no such container")
        return self.rates[container_id]


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> Api:
    """With looks a thousand times faster."""
    for name in ("LOOK", "LOG_LOOK", "LOG_QUIET_MOST", "RETRY"):
        monkeypatch.setattr(disk, name, getattr(disk, name) / 1000)
    return Api()


async def watched(
    api: Api,
    containers: list[Container],
    is_done: Callable[[list[tuple[str, Breach]]], bool] = lambda _condemned: True,
    **settings: Any,
) -> list[tuple[str, Breach]]:
    """What is condemned within a while, and until something has happened, however busy the machine is."""
    condemned: list[tuple[str, Breach]] = []
    values = {"server_url": "http://hub:8080", "token": "x" * 20, **settings}
    watch = DiskWatch(
        api,
        Settings.model_validate(values),
        "owner",
        lambda: containers,
        lambda container, breach: condemned.append((container, breach)),
        lambda: 10**12,
    )
    task = asyncio.create_task(watch.run())
    await asyncio.sleep(0.3)
    await until(lambda: is_done(condemned))
    assert not task.done()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    return condemned


async def test_each_kind_of_filling_is_condemned_once(api: Api) -> None:
    containers = [
        a_container("fat"),
        a_container("hoard", scratch="v"),
        a_container("spew"),
        a_container("x"),
    ]
    api.layers, api.volumes = {"fat": 3000 * MB}, {"v": 2000 * MB}
    api.rates = {"spew": 12.4 * MB, "hoard": 0.0}

    def all_three(condemned: list[tuple[str, Breach]]) -> bool:
        return len(condemned) == 3

    assert sorted((who, str(breach)) for who, breach in await watched(api, containers, all_three)) == [
        ("fat", "wrote 3000 MB outside of /scratch, the limit is 2048 MB"),
        ("hoard", "its /scratch holds 2000 MB, the limit is 1024 MB"),
        ("spew", "writes 12.4 MB/s to its log, the limit is 1 MB/s"),
    ]


async def test_nothing_is_asked_where_nothing_runs(api: Api) -> None:
    assert await watched(api, [a_container("a", "exited", "v"), a_container("b", "created", "w")]) == []
    assert api.calls == []


async def test_volumes_are_not_walked_where_nobody_has_one(api: Api) -> None:
    await watched(api, [a_container("a")])
    assert "volumes" not in api.calls
    assert api.calls.count("sizes") == 1  # nothing fell


async def test_an_error_is_told_once_and_ends_nothing(api: Api) -> None:
    api.error = EngineUnreachable("engine", "is dockerd running?")
    api.rates = {"spew": 2.0 * MB}
    with capture_logs() as logs:
        condemned = await watched(api, [a_container("spew")], lambda _: api.calls.count("sizes") > 3)
    assert [entry["error"] for entry in logs] == ["is dockerd running?"]
    assert [container for container, _ in condemned] == ["spew"]


async def test_a_limit_that_is_watched_again_is_told_once_too(api: Api) -> None:
    api.error = EngineUnreachable("engine", "is dockerd running?")

    async def heal() -> None:
        while api.calls.count("sizes") < 3:  # noqa: ASYNC110  # it has no event
            await asyncio.sleep(0.005)
        api.error = None

    with capture_logs() as logs:
        await asyncio.gather(watched(api, [a_container("a")], lambda _: len(logs) == 2), heal())
    assert [entry["event"] for entry in logs] == [
        "the limit of layers is not watched",
        "the limit of layers is watched again",
    ]
    assert logs[1]["times"] == 3


async def test_without_the_engines_socket_it_says_so_and_returns() -> None:
    settings = Settings(server_url="http://hub:8080", token="x" * 20)
    with capture_logs() as logs:
        await DiskWatch(EngineApi("ssh://x"), settings, "o", list, lambda i, t: None).run()
    assert len(logs) == 1
