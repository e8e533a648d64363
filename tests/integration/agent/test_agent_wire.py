"""The agent, as a process on a real engine, against a hub that speaks only the fixed rows of the protocol."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from tests.integration.agent.conftest import Agent, docker, eventually, has_a_deaf_one
from tests.integration.agent.fixed_hub import FixedHub, task

MakeAgent = Callable[..., Agent]


def inspect(container: str) -> dict:  # type: ignore[type-arg] # whatever the engine says
    return json.loads(docker("inspect", container))[0]  # type: ignore[no-any-return]


def test_registers_beats_runs_one_container_a_slot_and_stops_without_a_trace(
    hub: FixedHub, images: dict[str, str], make_agent: MakeAgent
) -> None:
    hub.task = task(
        "squares",
        images["worker"],
        input_redis="redis://:pass%20word@10.0.0.1:6379/0",
        input_queue="in",
        output_queue="",
    )
    agent = make_agent(hub.url).start()
    running = eventually(lambda: len(c := agent.containers()) == 2 and c, "two containers run")
    assert sorted(running.values()) == [f"idm-squares-{agent.node_id}-{i}" for i in (0, 1)]

    (registration,) = hub.calls("/gridnode/register")
    assert registration.body["node_id"] == agent.node_id
    assert registration.body["architecture"] == "x86_64"
    assert registration.body["cpu_count"] >= 1
    assert registration.body["hostname"]
    assert {q.query["platform"] for q in hub.calls("/gridnode/task")} == {"linux/amd64"}
    assert all(seen.token_ok for seen in hub.seen)
    eventually(
        lambda: any(
            b.body["status"] == "Running" and b.body["active_containers"] == 2
            for b in hub.calls("/gridnode/heartbeat")
        ),
        "a heartbeat says Running with two containers",
    )

    for container, name in running.items():
        seen = inspect(container)
        env = dict(line.split("=", 1) for line in seen["Config"]["Env"])
        assert env["TASK_NAME"] == "squares"
        assert env["NODE_ID"] == agent.node_id
        assert env["INSTANCE_ID"] == name[-1]
        assert env["INPUT_REDIS_URL"] == "redis://:pass%20word@10.0.0.1:6379/0"
        assert env["INPUT_QUEUE"] == "in"
        assert "OUTPUT_QUEUE" not in env
        assert "OUTPUT_REDIS_URL" not in env
        assert seen["HostConfig"]["Memory"] == 32 * 2**20
        assert seen["HostConfig"]["RestartPolicy"]["Name"] in ("no", "")
        assert seen["HostConfig"]["CpusetCpus"].isdecimal()
    assert len({inspect(c)["HostConfig"]["CpusetCpus"] for c in running}) == 2

    assert agent.stop() == 0
    assert agent.containers(running=False) == {}
    assert hub.extra_calls == ["POST /gridnode/deregister"]  # and its 404 was no error


def test_a_new_id_from_the_hub_is_written_back_with_comments_and_order_kept(
    hub: FixedHub, make_agent: MakeAgent
) -> None:
    agent = make_agent(hub.url, node_id=None)
    text = (
        "# my node\n"
        + agent.config.read_text()
        + "\n# node_id = \"…\"  assigned\n[labels]  # where\nroom = 'cellar'\n"
    )
    agent.config.write_text(text)
    agent.start()
    eventually(lambda: hub.calls("/gridnode/heartbeat"), "a heartbeat arrives")
    written = agent.config.read_text()
    node_id = hub.calls("/gridnode/heartbeat")[0].body["node_id"]
    assert f'node_id = "{node_id}"\n' in written
    kept = [line for line in written.splitlines() if line and node_id not in line]
    assert kept == [line for line in text.splitlines() if line]
    assert agent.config.stat().st_mode & 0o777 == 0o600
    assert agent.stop() == 0
    agent.start()
    eventually(lambda: len(hub.calls("/gridnode/register")) == 2, "it registers again")
    assert hub.calls("/gridnode/register")[1].body["node_id"] == node_id
    assert agent.stop() == 0


def test_a_switch_ends_the_old_containers_before_the_new_ones_start(
    hub: FixedHub, images: dict[str, str], make_agent: MakeAgent
) -> None:
    hub.task = task("one", images["worker"])
    agent = make_agent(hub.url).start()
    eventually(lambda: len(agent.containers()) == 2, "two containers run")
    hub.task = task("two", images["worker"])
    eventually(
        lambda: (
            sorted(agent.containers(running=False).values())
            == [f"idm-two-{agent.node_id}-{i}" for i in (0, 1)]
        ),
        "only containers of the new task",
        25,
    )
    hub.task = None
    eventually(lambda: not agent.containers(running=False), "no container without a task", 25)
    assert agent.stop() == 0


def test_a_stop_by_heartbeat_is_a_graceful_stop(
    hub: FixedHub, images: dict[str, str], make_agent: MakeAgent
) -> None:
    hub.task = task("squares", images["worker"])
    agent = make_agent(hub.url).start()
    eventually(lambda: len(agent.containers()) == 2, "two containers run")
    registrations = len(hub.calls("/gridnode/register"))
    hub.stop = True
    assert agent.wait() == 0
    assert agent.containers(running=False) == {}
    assert len(hub.calls("/gridnode/register")) == registrations


def test_waits_for_a_hub_that_boots_later_and_keeps_computing_when_it_goes(
    images: dict[str, str], make_agent: MakeAgent
) -> None:
    placeholder = FixedHub()
    port = placeholder.port
    placeholder.close()
    agent = make_agent(f"http://127.0.0.1:{port}").start()
    time.sleep(2)
    assert agent.process is not None
    assert agent.process.poll() is None
    hub = FixedHub(port)
    try:
        hub.task = task("squares", images["worker"])
        before = eventually(lambda: len(c := agent.containers()) == 2 and c, "two containers run")
    finally:
        hub.close()
    time.sleep(3)
    assert agent.containers() == before
    hub = FixedHub(port)
    try:
        hub.task = task("squares", images["worker"])
        # This hub never says `known`: the node registers again because contact was lost.
        eventually(lambda: hub.calls("/gridnode/register"), "it registers again", 40)
        assert agent.containers() == before
        hub.status = 500
        time.sleep(2)
        assert agent.containers() == before
        assert agent.stop() == 0
        assert agent.containers(running=False) == {}
    finally:
        hub.close()


def test_a_second_signal_hastens(hub: FixedHub, images: dict[str, str], make_agent: MakeAgent) -> None:
    hub.task = task("deaf", images["worker"], env={"MODE": "deaf"}, stop_timeout=60)
    agent = make_agent(hub.url, parallelism=1).start()
    eventually(lambda: has_a_deaf_one(agent), "a deaf container runs")
    agent.signal(signal.SIGINT)
    time.sleep(2)
    assert len(agent.containers()) == 1
    agent.signal(signal.SIGTERM)
    assert agent.wait(10) == 0
    assert agent.containers(running=False) == {}


def test_secrets_stand_on_no_command_line(
    hub: FixedHub, images: dict[str, str], make_agent: MakeAgent, tmp_path: Path
) -> None:
    hub.task = task("squares", images["worker"], env={"KEY": "s3cr3t-value"})
    agent = make_agent(hub.url)
    trace = tmp_path / "trace"
    agent.start()
    assert agent.process is not None
    tracer = subprocess.Popen(
        ["strace", "-f", "-qq", "-s4096", "-e", "execve", "-o", str(trace), "-p", str(agent.process.pid)]
    )
    try:
        eventually(lambda: len(agent.containers()) == 2, "two containers run")
    finally:
        # Asked to detach, strace may wait for a child that is just being born; ending it detaches, too.
        tracer.kill()
        tracer.wait()
    assert "docker" in trace.read_text()
    assert "s3cr3t-value" not in trace.read_text()
    assert agent.stop() == 0
    assert "s3cr3t-value" not in agent.output()
