"""Real containers that fill the disk, each in its way, and one that does not."""

from __future__ import annotations

import asyncio
import re
import time
import uuid
from collections.abc import Iterator

import pytest

from agent import spec
from agent.disk import DiskWatch
from agent.engine_api import EngineApi
from agent.limits import Breach
from agent.planner import Container
from agent.settings import Settings
from tests.integration.agent.conftest import docker

WRITE = "dd if=/dev/zero of={path} bs=1048576 count={mb} 2>/dev/null; sleep 300"
SCRIPTS = {
    "fat": "sleep 3; " + WRITE.format(path="/fat", mb=90),
    "hoard": "sleep 3; " + WRITE.format(path="/scratch/hoard", mb=90),
    "spew": "busybox yes a line that nobody reads",
    "good": "dd if=/dev/zero of=/scratch/x bs=1048576 count=5; while :; do echo working; sleep 0.2; done",
}


@pytest.fixture
def owner() -> str:
    """An owner of this test's own."""
    return f"test-{uuid.uuid4().hex[:12]}"


@pytest.fixture
def containers(images: dict[str, str], owner: str) -> Iterator[dict[str, Container]]:
    """One of each kind, with its own /scratch; removed at the end."""
    made: dict[str, Container] = {}
    label = f"{spec.OWNER}={owner}"
    for name, script in SCRIPTS.items():
        volume = f"scratch-{owner}-{name}"
        docker("volume", "create", "--label", label, volume)
        logs = ("--log-driver", "json-file", "--log-opt", "max-size=10m", "--log-opt", "max-file=2")
        where = ("--label", label, "--memory", "64m", "-v", f"{volume}:/scratch")
        container = docker("run", "-d", *logs, *where, images["worker"], "sh", "-c", script)
        made[name] = Container(id=container, name=name, status="running", scratch=volume)
    yield made
    docker("rm", "-f", *(c.id for c in made.values()), check=False)
    docker("volume", "rm", "-f", *(c.scratch or "" for c in made.values()), check=False)


@pytest.mark.slow
async def test_each_is_condemned_for_what_it_does_and_the_good_one_never(
    containers: dict[str, Container], owner: str
) -> None:
    settings = Settings(
        server_url="http://hub:8080", token="x" * 20, container_disk=64, scratch_size=64, log_rate=0.5
    )
    names = {c.id: name for name, c in containers.items()}
    told: dict[str, str] = {}
    all_told = asyncio.Event()
    took: dict[str, float] = {}
    api, began = EngineApi(), time.monotonic()

    def condemn(container_id: str, breach: Breach) -> None:
        name = names[container_id]
        assert name not in told
        told[name], took[name] = str(breach), time.monotonic() - began
        docker("kill", container_id)
        if len(told) == 3:
            all_told.set()

    running = list(containers.values())
    watch = asyncio.create_task(DiskWatch(api, settings, owner, lambda: running, condemn).run())
    try:
        await asyncio.wait_for(all_told.wait(), 60)
        await asyncio.sleep(1)
    finally:
        watch.cancel()
        await asyncio.gather(watch, return_exceptions=True)
        await api.close()
    assert told.keys() == {"fat", "hoard", "spew"}
    assert re.fullmatch(r"wrote [6-9]\d MB outside of /scratch, the limit is 64 MB", told["fat"])
    assert re.fullmatch(r"its /scratch holds [6-9]\d MB, the limit is 64 MB", told["hoard"])
    assert re.fullmatch(r"writes [\d.]+ MB/s to its log, the limit is 0.5 MB/s", told["spew"])
    assert took["fat"] < 20  # the free space fell: nobody waited five minutes
