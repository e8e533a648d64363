"""Containers that fill the node's disk, each in its way, are stopped for it; the disk stays bounded."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest

from tests.integration.agent.conftest import Agent, docker, eventually
from tests.integration.agent.fixed_hub import TalkingHub, task

MakeAgent = Callable[..., Agent]
MakeHub = Callable[[], TalkingHub]

MB = 2**20
HOARDS = "i=0; while :; do dd if=/dev/zero of={where}/$i bs=1048576 count=4 2>/dev/null; i=$((i+1)); done"
"""Writes as fast as the disk allows, in files that are each below every limit."""
WORKERS = {
    "layer": "busybox mkdir /hoard; " + HOARDS.format(where="/hoard"),
    "one-file": "exec dd if=/dev/zero of=/one bs=1048576 count=100",
    "one-file-deaf": "trap '' XFSZ; exec dd if=/dev/zero of=/one bs=1048576 count=100",
    "scratch": "echo found $(busybox ls /scratch); " + HOARDS.format(where="/scratch"),
    "spewer": "exec busybox yes a line that nobody reads",
    "decent": "dd if=/dev/zero of=/x bs=1048576 count=8 2>/dev/null; "
    "dd if=/dev/zero of=/scratch/x bs=1048576 count=8 2>/dev/null; "
    "while :; do echo working on an item; sleep 0.1; done",
}
SAYS = {
    "layer": "MB outside of /scratch, the limit is 24 MB",
    "one-file": "wrote a file larger than the limit",
    "scratch": "MB, the limit is 24 MB",
    "spewer": "MB/s to its log, the limit is 0.05 MB/s",
}


@contextmanager
def watched(agents: dict[str, Agent], most: dict[str, int]) -> Iterator[None]:
    """While it is open, the most bytes that each agent's containers held in their layers go into `most`."""
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.5):
            for name, agent in agents.items():
                for row in docker(
                    *("ps", "--all", "--size", "--format", "{{.Size}}", "--filter", f"name=-{agent.node_id}-")
                ).splitlines():
                    most[name] = max(most.get(name, 0), as_bytes(row.split(" ")[0]))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()


def as_bytes(text: str) -> int:
    """`24.1MB`, as docker writes it, in bytes."""
    number = text.rstrip("kMGB")
    return int(float(number) * {"B": 1, "kB": 1000, "MB": 10**6, "GB": 10**9}[text[len(number) :]])


@pytest.mark.slow
def test_each_way_to_fill_the_disk_ends_with_its_reason_and_decent_work_goes_on(
    make_hub: MakeHub, images: dict[str, str], make_agent: MakeAgent
) -> None:
    hubs = {name: make_hub() for name in WORKERS}
    agents: dict[str, Agent] = {}
    for name, script in WORKERS.items():
        hubs[name].task = task(name, images["worker"], command=["sh", "-c", script])
        agents[name] = make_agent(
            hubs[name].url, parallelism=1, container_disk=24, scratch_size=24, log_rate=0.05
        ).start()
    decent = eventually(agents["decent"].containers, "the decent one runs")
    began = time.monotonic()
    most: dict[str, int] = {}
    with watched({name: agents[name] for name in ("layer", "one-file", "spewer")}, most):
        for name, words in SAYS.items():
            last = eventually(hubs[name].last_exit, f"the {name} one ends", began + 75 - time.monotonic())
            assert last["kind"] == "disk", name
            assert words in last["message"], name
            told = [error for error in hubs[name].errors() if error["kind"] == "disk"]
            assert words in told[0]["message"], name
    # A program that ignores the kernel's signal ends as it likes; its log says why.
    deaf = eventually(hubs["one-file-deaf"].last_exit, "the deaf one ends", 30)
    assert (deaf["kind"], deaf["message"]) == ("failed", "exit code 1")
    print(f"after {time.monotonic() - began:.0f} s, at most: {most}")
    assert most["one-file"] <= 25 * MB
    assert most["layer"] < 3000 * MB
    # What overflowed is gone, so that the next container has a chance.
    eventually(lambda: hubs["scratch"].beats()[-1]["containers"][0]["restarts"] >= 1, "it was started again")
    assert hubs["scratch"].log(previous=1)["text"] == "found\n"
    assert agents["decent"].containers() == decent
    assert hubs["decent"].errors() == []
    for agent in agents.values():
        agent.signal(signal.SIGTERM)
    assert [agent.wait() for agent in agents.values()] == [0] * len(agents)


@pytest.mark.slow
def test_a_layer_over_its_limit_costs_the_container_and_leaves_the_slots_scratch(
    make_hub: MakeHub, images: dict[str, str], make_agent: MakeAgent
) -> None:
    hub = make_hub()
    begins = "echo begun >>/scratch/runs; echo $(cat /scratch/runs); busybox mkdir /hoard; "
    hub.task = task("hoards", images["worker"], command=["sh", "-c", begins + HOARDS.format(where="/hoard")])
    agent = make_agent(hub.url, parallelism=1, container_disk=24, scratch_size=24).start()

    def slot_after(runs: int) -> list[dict[str, Any]]:
        return [slot for beat in hub.beats()[-1:] for slot in beat["containers"] if slot["restarts"] >= runs]

    for runs in (1, 2):
        [slot] = eventually(partial(slot_after, runs), f"run {runs} is stopped and told", 60)
        assert slot["last_exit"]["kind"] == "disk"
        assert "outside of /scratch" in slot["last_exit"]["message"]
    assert hub.log(previous=1)["text"] == "begun begun\n"
    agent.signal(signal.SIGTERM)
    assert agent.wait() == 0
