"""What the agent does with containers and images, on a real engine and a real registry."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from agent.machine import owner
from agent.spec import GENERATION, OWNER
from tests.integration.agent.conftest import Agent, docker, eventually, has_a_deaf_one
from tests.integration.agent.fixed_hub import FixedHub, task

MakeAgent = Callable[..., Agent]


def beats(hub: FixedHub, status: str) -> list[dict]:  # type: ignore[type-arg] # JSON as it came
    """The heartbeats with a status so far."""
    return [b.body for b in hub.calls("/gridnode/heartbeat") if b.body["status"] == status]


def errors(hub: FixedHub) -> list[dict]:  # type: ignore[type-arg] # JSON as it came
    """Every error that heartbeats brought."""
    return [error for b in hub.calls("/gridnode/heartbeat") for error in b.body.get("errors", [])]


def start_times(containers: dict[str, str]) -> dict[str, str]:
    """When each container was started, by the engine."""
    return {c: docker("inspect", "--format", "{{.State.StartedAt}}", c) for c in containers}


def test_an_image_is_pulled_once_a_node_and_not_once_a_slot(
    hub: FixedHub, images: dict[str, str], make_agent: MakeAgent
) -> None:
    docker("rmi", "-f", images["worker"])
    hub.task = task("pulled", images["worker"])
    agent = make_agent(hub.url).start()
    eventually(lambda: len(agent.containers()) == 2, "two containers run")
    assert agent.output().count("] pulling") == 1
    assert agent.stop() == 0


def test_an_image_that_does_not_exist_shows_as_an_error_and_the_next_task_at_once_interrupts_the_wait(
    hub: FixedHub, images: dict[str, str], registry: str, make_agent: MakeAgent
) -> None:
    hub.task = task("absent", f"{registry}/no-such-image:1")
    agent = make_agent(hub.url).start()
    eventually(lambda: beats(hub, "Error"), "a heartbeat says Error")
    (error,) = eventually(lambda: errors(hub), "the error is reported")
    assert error["kind"] == "image-not-found"
    assert "no-such-image" in error["message"]
    assert agent.output().count("] pulling") == 1
    hub.task = task("present", images["worker"])
    eventually(lambda: agent.containers(running=False), "the 15 s until the next try are not waited for", 13)
    eventually(lambda: len(agent.containers()) == 2, "two containers run")
    assert agent.stop() == 0


def test_images_for_another_architecture_are_told_as_such(
    hub: FixedHub, images: dict[str, str], make_agent: MakeAgent
) -> None:
    hub.task = task("list", images["list"])
    agent = make_agent(hub.url).start()
    eventually(lambda: errors(hub), "the error of the list is reported")
    assert errors(hub)[-1]["kind"] == "wrong-platform"
    hub.task = task("foreign", images["foreign"])
    eventually(lambda: any("foreign" in e["message"] for e in errors(hub)), "the foreign image is reported")
    assert {e["kind"] for e in errors(hub)} == {"wrong-platform"}
    assert agent.containers(running=False) == {}
    assert agent.stop() == 0


def test_a_container_that_exits_is_started_again_and_counted(
    hub: FixedHub, images: dict[str, str], make_agent: MakeAgent
) -> None:
    hub.task = task("squares", images["worker"])
    agent = make_agent(hub.url).start()
    before = eventually(lambda: len(c := agent.containers()) == 2 and c, "two containers run")
    victim = next(iter(before))
    docker("kill", victim)
    eventually(
        lambda: len(c := agent.containers()) == 2 and victim not in c, "another has taken its place", 5
    )
    assert agent.containers(running=False).keys() == agent.containers().keys()
    beat = eventually(
        lambda: next(
            (
                b
                for b in beats(hub, "Running")
                if b["active_containers"] == 2 and any(c["restarts"] == 1 for c in b["containers"])
            ),
            None,
        ),
        "the restart is counted",
    )
    assert [c["state"] for c in beat["containers"]] == ["running", "running"]
    assert errors(hub)[0]["kind"] == "sigkill"  # that nobody asked for
    assert agent.stop() == 0


def test_failures_back_off_and_show_their_text(
    hub: FixedHub, images: dict[str, str], make_agent: MakeAgent
) -> None:
    hub.task = task("failing", images["worker"], env={"MODE": "fail"})
    agent = make_agent(hub.url, parallelism=1).start()
    eventually(lambda: beats(hub, "Error"), "a heartbeat says Error")
    time.sleep(6)
    starts = agent.output().count("started")
    assert 2 <= starts <= 6  # at 0, 0.5-1, 1.5-3, 3.5-7 … seconds
    assert any("exit code 3" in error["message"] for error in errors(hub))
    assert "exit code 3" in beats(hub, "Error")[-1]["reason"]
    assert agent.stop(10) == 0


def test_a_killed_agent_leaves_its_containers_and_the_next_adopts_them(
    hub: FixedHub, images: dict[str, str], make_agent: MakeAgent
) -> None:
    hub.task = task("squares", images["worker"])
    agent = make_agent(hub.url).start()
    before = eventually(lambda: len(c := agent.containers()) == 2 and c, "two containers run")
    times = start_times(before)
    agent.signal(signal.SIGKILL)
    agent.wait()
    assert agent.containers() == before
    hub.seen.clear()
    agent.start()
    eventually(lambda: beats(hub, "Running"), "the next agent says Running")
    time.sleep(2)
    assert agent.containers() == before
    assert start_times(before) == times
    agent.signal(signal.SIGKILL)
    agent.wait()
    hub.task = task("other", images["worker"])
    agent.start()
    eventually(
        lambda: (
            sorted(agent.containers(running=False).values())
            == [f"idm-other-{agent.node_id}-{i}" for i in (0, 1)]
        ),
        "what does not fit the task any more is replaced",
    )
    assert agent.stop() == 0
    assert agent.containers(running=False) == {}


def test_a_hand_over_touches_no_container(
    hub: FixedHub, images: dict[str, str], make_agent: MakeAgent
) -> None:
    hub.task = task("squares", images["worker"])
    agent = make_agent(hub.url).start()
    before = eventually(lambda: len(c := agent.containers()) == 2 and c, "two containers run")
    times = start_times(before)
    agent.signal(signal.SIGUSR1)
    assert agent.wait(10) == 75
    assert agent.containers() == before
    assert "POST /gridnode/deregister" not in hub.extra_calls
    # A changed configuration that does not decide how containers run keeps them running.
    agent.config.write_text(agent.config.read_text().replace("stop_timeout = 5", "stop_timeout = 7"))
    hub.seen.clear()
    agent.start()
    eventually(lambda: beats(hub, "Running"), "the next agent says Running")
    time.sleep(1)
    assert start_times(agent.containers()) == times
    assert agent.stop() == 0
    assert agent.containers(running=False) == {}


def test_a_hand_over_while_starting_finishes_the_calls_under_way(
    hub: FixedHub, images: dict[str, str], make_agent: MakeAgent
) -> None:
    hub.task = task("squares", images["worker"])
    agent = make_agent(hub.url, parallelism=6).start()
    eventually(lambda: agent.containers(running=False), "a first container appears")
    agent.signal(signal.SIGUSR1)
    assert agent.wait(15) == 75
    created = docker("ps", "-aq", "--filter", f"name=-{agent.node_id}-", "--filter", "status=created")
    assert created == ""
    kept = agent.containers()
    hub.seen.clear()
    agent.start()
    eventually(lambda: len(agent.containers()) == 6, "six containers run")
    eventually(lambda: beats(hub, "Running"), "the next agent says Running")
    assert kept.items() <= agent.containers().items()
    assert agent.stop() == 0


def test_a_container_of_an_image_committed_from_one_of_ours_is_left_alone(
    hub: FixedHub, images: dict[str, str], make_agent: MakeAgent
) -> None:
    """The image hands our labels on to every container of it; a volume may carry them too."""
    hub.task = task("squares", images["worker"], stop_timeout=1)
    agent = make_agent(hub.url).start()
    ours = eventually(lambda: len(agent.containers()) == 2 and agent.containers(), "two containers")
    committed, volume = f"committed-{agent.node_id}:1", f"my-{agent.node_id}"
    docker("commit", next(iter(ours)), committed)
    labels = [f"--label={OWNER}={owner(agent.config)}", f"--label={GENERATION}=other"]
    docker("volume", "create", *labels, volume)
    mine = docker("run", "-d", "--name", f"my-debugging-{agent.node_id}", committed)
    try:
        eventually(lambda: f"left alone: my-debugging-{agent.node_id}" in agent.ask("status"), "it is told")
        hub.task = task("cubes", images["worker"], stop_timeout=1)
        eventually(lambda: len(agent.containers()) == 2 and not set(ours) & set(agent.containers()), "cubes")
        time.sleep(2)
        assert agent.stop() == 0
        assert docker("inspect", "--format", "{{.State.Status}}", mine) == "running"
        assert docker("volume", "ls", "-q", "--filter", f"name={volume}") == volume
    finally:
        docker("rm", "-f", mine)
        docker("rmi", committed)
        docker("volume", "rm", volume, check=False)


def test_a_foreign_container_with_our_name_is_left_alone_and_the_other_slots_run(
    hub: FixedHub, images: dict[str, str], make_agent: MakeAgent
) -> None:
    hub.task = task("squares", images["worker"])
    agent = make_agent(hub.url)
    foreign = docker("run", "-d", "--name", f"idm-squares-{agent.node_id}-0", images["worker"])
    agent.start()
    eventually(lambda: any(e["kind"] == "name-taken" for e in errors(hub)), "the slot shows its error")
    eventually(lambda: f"idm-squares-{agent.node_id}-1" in agent.containers().values(), "the other slot runs")
    assert foreign in agent.containers()
    docker("rm", "-f", foreign)
    eventually(lambda: len(agent.containers()) == 2, "the slot starts when the name is free", 40)
    assert agent.stop() == 0


def test_a_container_deaf_to_sigterm_is_killed_after_its_time(
    hub: FixedHub, images: dict[str, str], make_agent: MakeAgent
) -> None:
    hub.task = task("deaf", images["worker"], env={"MODE": "deaf"}, stop_timeout=2)
    agent = make_agent(hub.url, parallelism=1).start()
    eventually(lambda: has_a_deaf_one(agent), "a deaf container runs")
    hub.task = task("polite", images["worker"])
    eventually(
        lambda: list(agent.containers(running=False).values()) == [f"idm-polite-{agent.node_id}-0"],
        "the new task runs",
        25,
    )
    eventually(lambda: any(e["kind"] == "killed" for e in errors(hub)), "the kill is reported")
    assert agent.stop() == 0


def test_a_stop_that_comes_while_the_agent_still_starts_is_graceful_too(
    hub: FixedHub, images: dict[str, str], make_agent: MakeAgent
) -> None:
    hub.task = task("squares", images["worker"])
    agent = make_agent(hub.url).start()
    eventually(lambda: len(agent.containers()) == 2, "two containers run")
    agent.signal(signal.SIGKILL)
    agent.wait()
    agent.start()
    eventually(lambda: "blocked" if agent.blocks(signal.SIGTERM) else None, "the agent minds signals")
    assert agent.stop() == 0
    assert agent.containers(running=False) == {}


def test_one_agent_a_configuration(hub: FixedHub, make_agent: MakeAgent) -> None:
    agent = make_agent(hub.url).start()
    eventually(lambda: hub.calls("/gridnode/register"), "it registers")
    first = agent.process
    agent.start()
    assert agent.wait(10) == 78
    assert "another gridnode runs" in agent.output()
    agent.process = first
    assert agent.stop() == 0


def test_no_child_process_stays_beside_the_agent(
    hub: FixedHub, images: dict[str, str], make_agent: MakeAgent
) -> None:
    hub.task = task("squares", images["worker"])
    agent = make_agent(hub.url, parallelism=4).start()
    eventually(lambda: len(agent.containers()) == 4, "four containers run")
    eventually(lambda: beats(hub, "Running"), "Running")
    assert agent.process is not None

    def children() -> str:
        assert agent.process is not None
        tasks = Path(f"/proc/{agent.process.pid}/task")
        return "".join(file.read_text() for file in tasks.glob("*/children"))

    quiet = [eventually(lambda: children() == "", "no child is left", 10) for _ in range(3)]
    assert all(quiet)
    assert agent.stop() == 0


def test_an_image_is_stopped_by_the_signal_that_it_names(
    hub: FixedHub, images: dict[str, str], make_agent: MakeAgent
) -> None:
    agent = make_agent(hub.url)
    image = f"by-int-{agent.node_id}:1"
    recipe = f"FROM {images['worker']}\nSTOPSIGNAL SIGINT\n".encode()
    classic = os.environ | {"DOCKER_BUILDKIT": "0"}  # which needs no plugin
    subprocess.run(["docker", "build", "-q", "-t", image, "-"], input=recipe, env=classic, check=True)
    script = "trap 'exit 0' INT; trap '' TERM; echo deaf; while :; do sleep 0.1; done"
    hub.task = task("by-int", image, command=["sh", "-c", script], stop_timeout=25)
    try:
        agent.start()
        eventually(lambda: len(agent.containers()) == 2, "two containers run")
        eventually(lambda: all(docker("logs", c) == "deaf" for c in agent.containers()), "they listen")
        began = time.monotonic()
        assert agent.stop() == 0
        assert time.monotonic() - began < 15
        assert "killing" not in agent.output()
    finally:
        docker("rmi", "-f", image)


def test_variables_of_a_persons_shell_for_docker_do_not_hinder_containers(
    hub: FixedHub, images: dict[str, str], make_agent: MakeAgent
) -> None:
    docker("rmi", "-f", images["worker"])  # pulling obeys them too
    hub.task = task("squares", images["worker"])
    agent = make_agent(hub.url).start(
        DOCKER_DEFAULT_PLATFORM="linux/s390x", DOCKER_CONTENT_TRUST="1", DOCKER_API_VERSION="1.12"
    )
    eventually(lambda: len(agent.containers()) == 2, "two containers run")
    assert errors(hub) == []
    assert agent.stop() == 0


def test_containers_of_another_agent_with_this_node_id_are_told_and_left_alone(
    hub: FixedHub, images: dict[str, str], make_agent: MakeAgent
) -> None:
    """A configuration was moved, or copied: the owner label is another one."""
    hub.task = task("squares", images["worker"], stop_timeout=1)
    first = make_agent(hub.url).start()
    theirs = eventually(lambda: len(first.containers()) == 2 and first.containers(), "two containers")
    first.kill()
    second = make_agent(hub.url)
    second.set(node_id=first.node_id)
    second.start()
    name = min(theirs.values())

    def told() -> bool:
        bodies = [b.body for b in hub.calls("/gridnode/heartbeat")]
        return any(name in warning for body in bodies for warning in body.get("warnings", []))

    eventually(told, "a warning names them")
    eventually(lambda: any("another gridnode" in e["message"] for e in errors(hub)), "the conflict is told")
    assert f"docker rm -f {name}" in second.ask("status")
    assert second.stop() == 0
    assert first.containers() == theirs
