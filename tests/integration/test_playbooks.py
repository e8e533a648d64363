"""The playbooks that operate a fleet, run by a real `ansible-playbook` against a real hub process."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.integration.hub_process import TOKEN, HubProcess
from tests.servers.children import wait_until
from tests.servers.redis_server import RedisServer

PROJECT = Path(__file__).resolve().parents[2]
LOCAL = {"ansible_connection": "local", "ansible_python_interpreter": sys.executable}


class Operator:
    """Somebody with an inventory whose only host is the hub, which is this machine."""

    environment: dict[str, str]

    def __init__(self, hub: HubProcess, directory: Path, **secrets: str) -> None:
        self.environment = {}
        self._inventory = directory / "inventory.json"
        self._secrets = [TOKEN, *secrets.values()]
        variables = {
            **LOCAL,
            "gridcore_api_url": f"http://127.0.0.1:{hub.port}",
            **(secrets or {"gridcore_token": TOKEN}),
        }
        self.write(variables)

    def write(self, variables: dict[str, Any], **groups: Any) -> None:
        """The inventory: the hub with these variables, and more groups."""
        self._inventory.write_text(json.dumps({"gridcore_hub": {"hosts": {"hub": variables}}, **groups}))

    def play(
        self, *playbooks: str, check: bool = False, fails: bool = False, warns: bool = False, **variables: Any
    ) -> str:
        """What playbooks said, one after the other in one run."""
        binaries = Path(sys.executable).parent
        words: list[str | Path] = [binaries / "ansible-playbook", "-vv", "-i", self._inventory]
        words += ["--check"] if check else []
        words += [word for key, value in variables.items() for word in ("-e", _variable(key, value))]
        words += [f"ansible/playbooks/{name}.yml" for name in playbooks]
        environment = {
            **os.environ,
            **self.environment,
            "PATH": f"{binaries}:{os.environ['PATH']}",
            "ANSIBLE_NOCOLOR": "1",
            "ANSIBLE_CALLBACK_RESULT_FORMAT": "json",  # YAML would wrap long lines
        }
        done = subprocess.run(
            words, cwd=PROJECT, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, timeout=300, check=False,
        )  # fmt: skip
        assert (done.returncode != 0) == fails, done.stdout
        assert not [secret for secret in self._secrets if secret in done.stdout]
        assert ("WARNING" in done.stdout) == warns, done.stdout
        assert "DEPRECATED" not in done.stdout
        return done.stdout

    def changes(self, *playbooks: str, check: bool = False, **variables: Any) -> int:
        """How many changes playbooks reported."""
        return changed(self.play(*playbooks, check=check, **variables))


def changed(said: str) -> int:
    """All changes: there is a recap after each playbook, and each counts those before it, too."""
    return int(re.findall(r" changed=(\d+) ", said)[-1])


def shown(said: str) -> list[str]:
    """The lines that a playbook showed at its end."""
    lines: list[str] = json.JSONDecoder().raw_decode(said, said.rindex("ok: [hub] => {") + 13)[0]["msg"]
    return lines


def _variable(name: str, value: object) -> str:
    """Text as a person types it on a command line, anything else as JSON."""
    return f"{name}={value}" if isinstance(value, str) else json.dumps({name: value})


class Node(threading.Thread):
    """A node that says every moment how it is, and obeys."""

    def __init__(self, hub: HubProcess, name: str, **beat: object) -> None:
        super().__init__()
        self._hub = hub
        self._over = threading.Event()
        self._beat = {"node_id": name, "status": "Running", "active_containers": 2, **beat}
        register(hub, name)

    def __enter__(self) -> Node:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self.join(10)

    def run(self) -> None:
        while not self._over.wait(0.1):
            told = self._hub.post("/gridnode/heartbeat", self._beat).json
            if told["drain"]:
                self._beat |= {"status": "Idle", "active_containers": 0}
            for order in told.get("logs", []):
                text = f"{json.dumps(order, sort_keys=True)}\n{{{{ 6 * 7 }}}}\n\x1b[31mred\n"
                self._hub.post("/gridnode/logs", {**self._beat, "id": order["id"], "text": text})
            if told["stop_requested"]:
                self._hub.post("/gridnode/deregister", self._beat)
                return


def register(hub: HubProcess, name: str, hostname: str | None = None, **more: object) -> None:
    message = {
        "node_id": name,
        "hostname": hostname or f"{name}-host",
        "architecture": "x86_64",
        "cpu_count": 2,
        "agent_version": "1",
        **more,
    }
    assert hub.post("/gridnode/register", message).status == 200


def beat(hub: HubProcess, name: str, **more: object) -> Any:
    return hub.post(
        "/gridnode/heartbeat", {"node_id": name, "status": "Idle", "active_containers": 0, **more}
    ).json


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubProcess]:
    process = HubProcess(tmp_path_factory.mktemp("hub")).start()
    yield process
    process.end()


@pytest.fixture
def operator(hub: HubProcess, tmp_path: Path) -> Operator:
    return Operator(hub, tmp_path)


def test_a_task_is_added_once_with_all_its_fields(hub: HubProcess, operator: Operator) -> None:
    typed: dict[str, Any] = {
        "task_name": "full",
        "task_image": "registry:5000/full:1",
        "task_images": {"linux/arm64": "registry:5000/full-arm:1"},
        "task_input_redis": "redis://10.0.0.1:6379/0",
        "task_output_redis": "redis://10.0.0.2:6379/0",
        "task_input_queue": "in",
        "task_output_queue": "out",
        "task_env": {"LEVEL": "3"},
        "task_command": ["worker", "--fast"],
        "task_memory": "512",
        "task_parallelism": "2",
        "task_gpus": 1,
        "task_stop_timeout": "2.5",
        "task_pull_policy": "always",
        "task_auto_finish": {"idle": 300},
    }
    assert operator.changes("task_add", check=True, **typed) == 0
    assert hub.get("/api/tasks/full").status == 404
    said = operator.play("task_add", "task_add", **typed)
    assert changed(said) == 1
    assert "no Redis that they are in" not in said
    task = hub.get("/api/tasks/full").json
    expected = {name.removeprefix("task_"): value for name, value in typed.items()}
    expected |= {"env": {"LEVEL": "***"}, "memory": 512, "parallelism": 2, "stop_timeout": 2.5}
    assert {name: task[name] for name in expected} == expected


def test_queues_without_a_redis_are_added_and_told(hub: HubProcess, operator: Operator) -> None:
    said = operator.play("task_add", task_name="bare", task_image="a:1", task_input_queue="in")
    assert "bare names queues, and no Redis that they are in" in said
    assert hub.get("/api/tasks/bare").json["input_queue"] == "in"


def test_a_redis_that_is_no_url_is_added_and_told(hub: HubProcess, operator: Operator) -> None:
    told = "tells the hub nothing: of its queues no progress is shown"
    named: dict[str, Any] = {"task_name": "host", "task_image": "a:1", "task_input_redis": "localhost"}
    assert told in operator.play("task_add", **named)
    assert hub.get("/api/tasks/host").json["input_redis"] == "localhost"
    named |= {"task_name": "url", "task_input_redis": "rediss://10.0.0.1:6379/0"}
    assert told not in operator.play("task_add", **named)


def test_a_task_with_a_wrong_value_is_refused_in_the_hubs_words(hub: HubProcess, operator: Operator) -> None:
    said = operator.play(
        "task_add", fails=True, task_name="odd", task_image="a:1", task_memory="1", task_pull_policy="never"
    )
    assert '"field": "memory"' in said.replace("\\", "")
    assert '"field": "pull_policy"' in said.replace("\\", "")
    assert hub.get("/api/tasks/odd").status == 404


def test_a_value_of_the_wrong_kind_and_a_misspelt_name_are_refused_before_the_hub_is_asked(
    hub: HubProcess, operator: Operator
) -> None:
    good: dict[str, Any] = {"task_name": "bent", "task_image": "a:1"}
    for name, value, said in [
        ("task_memory", "2g", "task_memory is '2g', and must be a whole number of MB"),
        ("task_parallelism", "many", "task_parallelism is 'many', and must be a whole number"),
        ("task_stop_timeout", "30s", "task_stop_timeout is '30s', and must be a number of seconds"),
        ("task_gpus", True, "task_gpus is true, and must be a whole number"),
        ("task_env", "LEVEL=3", "task_env is a text (not shown), and must be a table"),
        (
            "task_input_queu",
            "x",
            "task_input_queu is no variable of GridCore: did you mean task_input_queue?",
        ),
        (
            "gridcore_hub_bnd",
            "x",
            "gridcore_hub_bnd is no variable of GridCore: did you mean gridcore_hub_bind?",
        ),
        ("taks_name", "x", "taks_name is no variable of GridCore's playbooks: did you mean task_name?"),
    ]:
        given: dict[str, Any] = {**good, name: value}
        assert said in operator.play("task_add", fails=True, **given)
    assert hub.get("/api/tasks/bent").status == 404
    said = operator.play("node_drain", fails=True, node="all", node_drain_wait="5m")
    assert "node_drain_wait is '5m', and must be a whole number of seconds, 1 to 86400" in said
    assert not any(node["draining"] for node in hub.get("/api/nodes").json)


def test_a_node_is_drained_and_resumed_once(hub: HubProcess, operator: Operator) -> None:
    with Node(hub, "drained"):
        assert operator.changes("node_drain", "node_drain", node="drained-host") == 1
        node = hub.get("/api/nodes/drained").json
        assert (node["draining"], node["active_containers"]) == (True, 0)
        assert operator.changes("node_resume", "node_resume", node="drained") == 1
        assert hub.get("/api/nodes/drained").json["draining"] is False


def test_check_mode_gives_no_order(hub: HubProcess, operator: Operator) -> None:
    with Node(hub, "asked"):
        assert operator.changes("node_drain", "node_stop", "node_resume", check=True, node="asked") == 0
        node = hub.get("/api/nodes/asked").json
    assert (node["draining"], node["stop_requested"], node["status"]) == (False, False, "Online")


def test_a_stop_is_taken_back_only_while_the_node_does_not_know(hub: HubProcess, operator: Operator) -> None:
    register(hub, "untold")
    assert hub.post("/api/nodes/untold/stop").status == 200
    assert operator.changes("node_resume", node="untold") == 1
    assert hub.get("/api/nodes/untold").json["stop_requested"] is False

    assert hub.post("/api/nodes/untold/stop").status == 200
    assert beat(hub, "untold")["stop_requested"] is True
    said = operator.play("node_resume", node="untold")
    assert changed(said) == 0
    assert "has been told to stop" in said


def test_a_node_is_stopped_once(hub: HubProcess, operator: Operator) -> None:
    # Its old entry, of before somebody copied a new disk for it.
    register(hub, "before", hostname="stopped-host")
    assert hub.post("/gridnode/deregister", {"node_id": "before"}).status == 204
    with Node(hub, "stopped"):
        assert operator.changes("node_stop", "node_stop", node="stopped-host") == 1
    assert hub.get("/api/nodes/stopped").json["status"] == "Offline"
    # With what would change something later, nobody guesses.
    said = operator.play("node_drain", fails=True, node="stopped-host")
    assert "give one of the ids: before, stopped" in said


def test_a_node_that_does_not_exist_is_told_with_those_that_do(hub: HubProcess, operator: Operator) -> None:
    register(hub, "there")
    said = operator.play("node_stop", fails=True, node="elsewhere")
    assert "there-host" in said
    assert "Give node" in operator.play("node_logs", fails=True)


def test_the_end_of_a_log_is_shown_as_it_is(hub: HubProcess, operator: Operator) -> None:
    with Node(hub, "logging"):
        said = operator.play(
            "node_logs", check=True, node="logging-host", instance="1", lines="7", previous="2"
        )
    order, *lines = shown(said)
    assert json.loads(order).items() >= {"instance": 1, "lines": 7, "previous": 2}.items()
    assert lines == ["{{ 6 * 7 }}", "\x1b[31mred"]
    assert "\x1b" not in said, "a log does not command the terminal"
    assert changed(said) == 0


def test_why_there_is_no_log_is_told_in_the_hubs_words(hub: HubProcess, operator: Operator) -> None:
    register(hub, "silent")
    assert hub.post("/gridnode/deregister", {"node_id": "silent"}).status == 204
    assert "Offline" in operator.play("node_logs", fails=True, node="silent")
    said = operator.play("node_logs", fails=True, node="silent", lines="0")
    assert '"field": "lines"' in said.replace("\\", "")


def test_the_status_says_what_each_node_does_and_what_goes_wrong(hub: HubProcess, operator: Operator) -> None:
    why = "could not start: /worker is for another architecture (exec format error)"
    for number in range(7):
        error = {"instance": 0, "kind": "wrong-platform", "message": f"idm-x-bad{number}-0: {why}"}
        register(hub, f"bad{number}")
        said_now = {"reason": why, "reason_kind": "wrong-platform"}
        beat(hub, f"bad{number}", status="Error", errors=[error], **said_now)
    register(hub, "older")
    one = {"instance": 0, "kind": "failed", "message": "idm-x-older-0: exit code 1"}
    beat(hub, "older", status="Error", reason="in other words", errors=[one])
    register(hub, "paused")
    beat(
        hub, "paused", paused=True, reason="paused by its owner", warnings=["memory limits\nare not enforced"]
    )
    register(hub, "leaving")
    assert hub.post("/api/nodes/leaving/drain").status == 200
    beat(hub, "leaving", reason="drained: the hub wants no containers here")
    said = operator.play("status", check=True)
    assert changed(said) == 0
    lines = shown(said)

    def below(node: str) -> list[str]:
        (place,) = (place for place, line in enumerate(lines) if line.startswith(f"{node}-host "))
        rest = lines[place + 1 :]
        return rest[: next(place for place, line in enumerate(rest) if not line.startswith("  "))]

    assert below("paused") == ["    paused by its owner", "    ! memory limits are not enforced"]
    assert below("leaving") == ["    draining; drained: the hub wants no containers here"]
    (told,) = below("bad3")
    assert re.fullmatch(r"    [\dT:-]+Z wrong-platform: " + re.escape(why), told)
    assert below("older")[0] == "    in other words"
    assert re.fullmatch(r"    [\dT:-]+Z failed: idm-x-older-0: exit code 1", below("older")[1])
    (place,) = (
        place for place, line in enumerate(lines) if re.match(r"7 of \d+ nodes: could not start", line)
    )
    names = ", ".join(f"bad{number}-host" for number in range(5))
    assert lines[place + 1] == f"    wrong-platform: {names} and 2 more"


def test_the_status_says_how_far_the_task_is_and_nothing_of_what_a_node_was(
    switched: HubProcess, tmp_path: Path
) -> None:
    register(switched, "off")
    beat(switched, "off", status="Running", active_containers=2, reason="was busy")
    assert switched.post("/gridnode/deregister", {"node_id": "off"}).status == 204
    lines = shown(Operator(switched, tmp_path).play("status"))
    assert lines[0] == "current    first"
    assert lines[1].strip() == "names no queues, so nobody knows how far it is; 0 containers on 0 nodes"
    (place,) = (place for place, line in enumerate(lines) if line.startswith("off-host "))
    assert lines[place].split()[:6] == ["off-host", "x86_64", "Offline", "-", "2", "-"]
    assert re.fullmatch(r"    last heard [\dT:-]+Z", lines[place + 1])
    assert not any("was busy" in line for line in lines)


def test_the_status_shows_what_waits_and_what_is_done(switched: HubProcess, tmp_path: Path) -> None:
    with RedisServer(tmp_path / "redis") as server, server.client() as client:
        client.rpush("in", *range(7))
        client.rpush("out", *range(3))
        queues = {"input_queue": "in", "output_queue": "out"}
        urls = {"input_redis": server.url, "output_redis": server.url}
        assert switched.request("PATCH", "/api/tasks/first", {**queues, **urls}).status == 200
        lines = shown(Operator(switched, tmp_path).play("status"))
        assert lines[1].strip().startswith("7 items wait, 3 are done")
        assert switched.request("PATCH", "/api/tasks/first", {"output_redis": ""}).status == 200
        lines = shown(Operator(switched, tmp_path).play("status"))
        said = "7 items wait, how many are done is unknown (the task does not name output_redis"
        assert lines[1].strip().startswith(said)


def test_the_status_says_which_node_still_runs_what_a_change_replaced(
    switched: HubProcess, tmp_path: Path
) -> None:
    """By the task's name nobody could tell: it is the same, as after a new password of the fleet's Redis."""
    before = switched.get("/gridnode/task").json["generation"]
    assert switched.request("PATCH", "/api/tasks/first", {"env": {"LEVEL": "2"}}).status == 200
    after = switched.get("/gridnode/task").json["generation"]
    for name, generation in (("slow", before), ("quick", after)):
        register(switched, name)
        told = {"status": "Running", "active_containers": 2, "task": "first", "generation": generation}
        beat(switched, name, **told)
    lines = shown(Operator(switched, tmp_path).play("status"))
    quick, slow = (
        next(place for place, line in enumerate(lines) if line.startswith(f"{name}-host "))
        for name in ("quick", "slow")
    )
    assert slow == quick + 1, "nothing is said of the quick one"
    assert lines[slow + 1] == "    still ends what ran before the last change"


def test_a_hub_that_is_away_is_named_with_what_to_do(tmp_path: Path, hub: HubProcess) -> None:
    operator = Operator(hub, tmp_path)
    operator.write({**LOCAL, "gridcore_api_url": "http://127.0.0.1:9", "gridcore_token": TOKEN})
    said = operator.play("status", fails=True)
    assert "The hub at http://127.0.0.1:9 does not answer" in said
    assert "Connection refused" in said
    assert "systemctl status computehub" in said
    operator.write({"ansible_host": "127.0.0.1", "ansible_port": 9, "gridcore_token": TOKEN})
    said = operator.play("status", fails=True)
    assert "hub, which asks the hub, is not reached (" in said
    assert "gridcore_api_host" in said
    operator.write({**LOCAL, "ansible_python_interpreter": "/no/python3", "gridcore_token": TOKEN})
    said = operator.play("status", fails=True)
    assert "hub, which asks the hub, is reached but runs no Python for Ansible" in said
    assert "/no/python3" in said
    assert "ansible_python_interpreter" in said


def test_what_a_hub_says_of_a_refusal_commands_no_terminal(tmp_path: Path, hub: HubProcess) -> None:
    class Lying(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = json.dumps({"detail": "no \x1b[31m\x1b]0;title\x07 {{ 6 * 7 }}\x9b2J"}).encode()
            self.send_response(409)
            self.send_header("Content-Type", "application/problem+json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    operator = Operator(hub, tmp_path)
    with ThreadingHTTPServer(("127.0.0.1", 0), Lying) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        operator.write({**LOCAL, "gridcore_api_url": url, "gridcore_token": TOKEN})
        said = operator.play("status", fails=True)
        server.shutdown()
    assert "{{ 6 * 7 }}" in said
    assert not re.search("[\x1b\x07\x9b]", said)


def test_a_colleague_needs_no_vault_but_a_token_of_his_own(switched: HubProcess, tmp_path: Path) -> None:
    made = switched.post("/api/tokens", {"role": "operator", "ttl": 3600, "name": "bob"}).json
    bob = Operator(switched, tmp_path, gridcore_operator_token=made["token"])
    # The inventory that docs/ansible.md gives; the only other thing there is the name.
    url = f"http://127.0.0.1:{switched.port}"
    bob.write({"gridcore_api_host": "localhost", "gridcore_api_url": url})
    assert "There is no token to show to the hub" in bob.play("task_next", fails=True)
    bob.environment = {"GRIDCORE_TOKEN": made["token"]}
    assert bob.changes("task_next", task="first") == 1
    (event,) = switched.get("/api/events?limit=1").json["events"]
    assert event["who"] == "bob"


def test_a_task_is_changed_moved_and_dropped_once(switched: HubProcess, tmp_path: Path) -> None:
    operator = Operator(switched, tmp_path)
    change: dict[str, Any] = {"task": "second", "task_image": "registry:5000/second:2", "task_memory": "512"}
    assert operator.changes("task_change", check=True, **change) == 0
    assert operator.changes("task_change", "task_change", **change) == 1
    task = switched.get("/api/tasks/second").json
    assert (task["image"], task["memory"]) == ("registry:5000/second:2", 512)
    assert operator.changes("task_change", task="second", task_memory="") == 1
    assert switched.get("/api/tasks/second").json["memory"] is None
    assert "Give what to change" in operator.play("task_change", fails=True, task="second")

    assert operator.changes("task_move", "task_move", task="third", to="first") == 1
    assert switched.get("/api/tasks").json["pending"] == ["third", "second"]
    assert "give one of" in operator.play("task_move", fails=True, task="third")
    assert "to is 'top', and must be one of first, last" in operator.play(
        "task_move", fails=True, task="third", to="top"
    )

    assert operator.changes("task_change", task="second", task_auto_finish="") == 0
    assert operator.changes("task_drop", "task_drop", task="third") == 1
    # A slip in the name is not taken for a task that was dropped before.
    said = operator.play("task_drop", task="secnod")
    assert "There is no task secnod, so none was dropped; there are: first, second" in said
    assert switched.get("/api/tasks").json["pending"] == ["second"]
    said = operator.play("task_drop", fails=True, task="first")
    assert "Task first is current" in said
    assert "As a playbook: task_finish.yml" in said


def test_a_task_is_queued_again_and_a_change_taken_back_once(switched: HubProcess, tmp_path: Path) -> None:
    operator = Operator(switched, tmp_path)
    said = operator.play("task_next", "task_requeue", "task_requeue", task="first")
    assert changed(said) == 2
    assert "first is pending already" in said
    assert switched.get("/api/tasks").json["pending"] == ["third", "first"]
    assert "is current" in operator.play("task_requeue", fails=True, task="second")

    before = switched.get("/api/tasks/first").json["image"]
    change: dict[str, Any] = {"task": "first", "task_image": "registry:5000/first:2"}
    assert operator.changes("task_change", "task_revert", **change) == 2
    assert switched.get("/api/tasks/first").json["image"] == before
    assert "earlier" in operator.play("task_revert", fails=True, task="first")


@pytest.mark.parametrize("playbook", ["status", "hub", "site"])
def test_an_inventory_without_the_hosts_that_a_playbook_is_for_is_an_error(
    playbook: str, hub: HubProcess, tmp_path: Path
) -> None:
    operator = Operator(hub, tmp_path)
    (tmp_path / "inventory.json").write_text(json.dumps({"others": {"hosts": {"other": LOCAL}}}))
    said = operator.play(playbook, fails=True, warns=True)
    assert re.search("has no host in (the group|any of the groups) gridcore_", said)


def test_a_node_is_found_by_its_name_in_the_inventory_and_forgotten_for_good(
    switched: HubProcess, tmp_path: Path
) -> None:
    operator = Operator(switched, tmp_path)
    operator.write(
        {**LOCAL, "gridcore_api_url": f"http://127.0.0.1:{switched.port}", "gridcore_token": TOKEN},
        others={"hosts": {"pi-07": {"gridcore_agent_hostname": "leaving-host"}}},
    )
    register(switched, "before", hostname="leaving-host")
    assert switched.post("/gridnode/deregister", {"node_id": "before"}).status == 204
    with Node(switched, "leaving"):
        assert operator.changes("node_forget", check=True, node="pi-07") == 0
        assert operator.changes("node_forget", node="pi-07") == 3
    assert switched.get("/api/nodes").json == []
    assert operator.changes("node_forget", node="pi-07") == 0
    assert (
        "The hub knows no node with the id, hostname or inventory name pi-7; it knows: none"
        in operator.play("node_forget", fails=True, node="pi-7")
    )


def test_an_old_entry_is_forgotten_without_touching_the_host_of_the_node_that_is_called_the_same(
    switched: HubProcess, tmp_path: Path
) -> None:
    operator = Operator(switched, tmp_path)
    operator.write(
        {**LOCAL, "gridcore_api_url": f"http://127.0.0.1:{switched.port}", "gridcore_token": TOKEN},
        gridcore_agents={"hosts": {"pi-07": {"ansible_host": "127.0.0.1", "ansible_port": 1}}},
    )
    register(switched, "old", hostname="pi-07")
    assert switched.post("/gridnode/deregister", {"node_id": "old"}).status == 204
    register(switched, "new", hostname="pi-07")
    said = operator.play("node_forget", check=True, node="old")
    assert "old would be forgotten" in said
    said = operator.play("node_forget", node="old")
    assert "old is forgotten, and no host was touched, since another node is called pi-07, too" in said
    assert "is not reached" not in said
    assert [node["id"] for node in switched.get("/api/nodes").json] == ["new"]


def test_who_may_not_have_a_node_forgotten_is_told_before_anything_is_changed(
    switched: HubProcess, tmp_path: Path
) -> None:
    made = switched.post("/api/tokens", {"role": "operator", "ttl": 3600, "name": "bob"}).json
    operator = Operator(switched, tmp_path, gridcore_operator_token=made["token"])
    with Node(switched, "staying"):
        said = operator.play("node_forget", fails=True, node="staying")
        assert "a token of the role admin" in said
        assert changed(said) == 0
        assert switched.get("/api/nodes/staying").json["status"] == "Online"
        both = Operator(switched, tmp_path, gridcore_operator_token=made["token"], gridcore_token=TOKEN)
        assert both.changes("node_forget", node="staying") == 2


@pytest.fixture
def switched(tmp_path: Path) -> Iterator[HubProcess]:
    """A hub of one's own with the tasks `first` (current), `second` and `third`."""
    process = HubProcess(tmp_path).start()
    for name in ("first", "second", "third"):
        assert process.post("/api/tasks", {"name": name, "image": f"registry:5000/{name}:1"}).status == 201
    assert process.post("/api/tasks/next").status == 200
    yield process
    process.end()


def test_a_task_names_the_fleets_redis_and_a_new_password_reaches_it(tmp_path: Path) -> None:
    old, new = (f"redis://:{word}-password@10.0.0.1:6379/0" for word in ("old", "new"))
    hub = HubProcess(tmp_path)
    plain = hub.config.read_text()
    hub.config.write_text(f'{plain}fleet_redis = "{old}"\n')
    hub.start()
    try:
        operator = Operator(hub, tmp_path)
        added: dict[str, Any] = {"task_name": "named", "task_image": "a:1", "task_output_redis": "fleet:/2"}
        assert operator.changes("task_add", "task_add", "task_next", **added) == 2
        assert hub.get("/api/tasks/named").json["input_redis"] == "fleet"
        before = hub.get("/gridnode/task?platform=linux/amd64").json
        assert (before["input_redis"], before["output_redis"]) == (old, old.replace("/0", "/2"))
        hub.stop()
        hub.config.write_text(f'{plain}fleet_redis = "{new}"\n')
        hub.start()
        wait_until(
            lambda: hub.get("/gridnode/task").json["input_redis"] == new, "nodes are given the new one"
        )
        after = hub.get("/gridnode/task?platform=linux/amd64").json
        assert after["generation"] != before["generation"]
        hub.stop()
        hub.start()
        assert hub.get("/gridnode/task?platform=linux/amd64").json == after, "once, and not at each start"
        shown = json.dumps(
            [hub.get(f"/api/{what}").json for what in ("tasks", "events", "tasks/named/progress")]
        )
        assert "password" not in shown + hub.log
    finally:
        hub.end()


def test_a_misspelt_task_is_told_with_those_that_there_are(switched: HubProcess, tmp_path: Path) -> None:
    operator = Operator(switched, tmp_path)
    for playbook in ("task_finish", "task_next", "task_promote", "task_abort"):
        said = operator.play(playbook, fails=True, task="nosuch")
        assert "There is no task nosuch; there are: first, second, third" in said
        assert changed(said) == 0
    assert switched.get("/api/tasks").json["current"] == "first"


def test_the_status_says_what_may_be_lost_and_where_the_last_words_are(
    switched: HubProcess, tmp_path: Path
) -> None:
    register(switched, "crashing")
    ended = {"kind": "failed", "exit_code": 1}
    slot = {"instance": 3, "state": "waiting", "restarts": 2, "last_exit": ended}
    error = {"instance": 3, "kind": "failed", "message": "exit code 1", "task": "first"}
    why = {"reason": "exit code 1", "reason_kind": "failed"}
    now = {"status": "Error", "task": "first", "containers": [slot]}
    beat(switched, "crashing", **now, errors=[error], **why)
    told = switched.get("/api/tasks/first/progress").json["may_be_lost"]
    assert told
    lines = [line.strip() for line in shown(Operator(switched, tmp_path).play("status"))]
    assert lines[2] == f"! {told}"
    assert "its last words: node_logs.yml -e node=crashing -e instance=3 -e previous=1" in lines
    beat(switched, "crashing", **now, errors=[{**error, "instance": None, "kind": "disk"}], **why)
    lines = [line.strip() for line in shown(Operator(switched, tmp_path).play("status"))]
    assert "its last words: node_logs.yml -e node=crashing -e instance=0 -e previous=1" in lines


def try_second(hub: HubProcess) -> None:
    register(hub, "trying")
    beat(hub, "trying")
    assert hub.post("/api/tasks/next", {"canary": 1}).status == 200


def test_the_next_task_is_tried_aborted_and_promoted_with_a_token_for_operators(
    switched: HubProcess, tmp_path: Path
) -> None:
    made = switched.post("/api/tokens", {"role": "operator", "ttl": 3600, "name": "alice"}).json
    alice = Operator(switched, tmp_path, gridcore_operator_token=made["token"])
    register(switched, "trying")
    beat(switched, "trying")
    said = alice.play("task_next", "task_next", "task_abort", "status", canary="1", healthy_after="300.5")
    assert changed(said) == 2
    assert "aborted    second was tried on 1 node: aborted by alice" in shown(said)
    assert "second is tried on trying (starting)" in said
    now = switched.get("/api/tasks").json
    assert (now["current"], now["canary"], now["pending"]) == ("first", None, ["second", "third"])

    try_second(switched)
    assert alice.changes("task_promote", "task_promote", task="second") == 1
    assert switched.get("/api/tasks").json["current"] == "second"
    events = switched.get("/api/events?kind=canary-promoted").json["events"]
    assert [event["who"] for event in events] == ["alice"]


def test_the_fleet_is_held_and_released_once_and_the_status_says_so(
    switched: HubProcess, tmp_path: Path
) -> None:
    try_second(switched)
    said = Operator(switched, tmp_path).play(
        "fleet_hold", "fleet_hold", "status", "fleet_release", "fleet_release"
    )
    assert changed(said) == 2
    lines = shown(said[: said.index("PLAY [Let the fleet go on]")])
    assert any(line.startswith("held  ") for line in lines)
    assert "trying     second (starting): trying-host" in lines
    events = switched.get("/api/events?limit=2").json["events"]
    assert [event["kind"] for event in events] == ["fleet-released", "fleet-held"]


def test_a_selection_of_nodes_is_drained_and_resumed_once(switched: HubProcess, tmp_path: Path) -> None:
    operator = Operator(switched, tmp_path)
    cellar: dict[str, Any] = {"architecture": "aarch64", "labels": {"room": "cellar"}}
    register(switched, "cellar-off", **cellar)
    assert switched.post("/gridnode/deregister", {"node_id": "cellar-off"}).status == 204
    register(switched, "office", architecture="aarch64", labels={"room": "office"})

    def draining() -> set[str]:
        return {node["id"] for node in switched.get("/api/nodes").json if node["draining"]}

    with Node(switched, "cellar"):
        register(switched, "cellar", **cellar)
        said = operator.play("node_drain", "node_drain", **cellar)
        assert changed(said) == 1
        assert "2 nodes were told, 0 had been before" in said
        assert draining() == {"cellar", "cellar-off"}
        assert switched.get("/api/nodes/cellar").json["active_containers"] == 0
    assert operator.changes("node_resume", "node_resume", node="all") == 1
    assert draining() == set()


def test_a_selection_that_no_node_is_in_is_an_error(switched: HubProcess, tmp_path: Path) -> None:
    operator = Operator(switched, tmp_path)
    assert "the hub knows no node" in operator.play("node_drain", fails=True, node="all")
    register(switched, "office", labels={"room": "office"})
    said = operator.play("node_resume", fails=True, labels={"room": "cellar"})
    assert '{"labels": {"room": "cellar"}}' in said.replace("\\", "")
    assert operator.changes("node_resume", labels={"room": "office"}) == 0


def test_check_mode_tries_holds_and_drains_nothing(switched: HubProcess, tmp_path: Path) -> None:
    register(switched, "asked")
    playbooks = "task_next", "fleet_hold", "node_drain"
    assert Operator(switched, tmp_path).changes(*playbooks, check=True, canary="1", node="all") == 0
    tasks = switched.get("/api/tasks").json
    assert (tasks["current"], tasks["canary"], tasks["held"]) == ("first", None, False)
    assert switched.get("/api/nodes/asked").json["draining"] is False


def test_nonsense_is_refused_in_the_hubs_words(switched: HubProcess, tmp_path: Path) -> None:
    operator = Operator(switched, tmp_path)
    assert '"field": "canary"' in operator.play("task_next", fails=True, canary="-1").replace("\\", "")
    assert switched.get("/api/tasks").json["current"] == "first"
    assert "labels is 'room=cellar', and must be a table" in operator.play(
        "node_drain", fails=True, labels="room=cellar"
    )
    assert "not both" in operator.play("node_drain", fails=True, node="pi", architecture="aarch64")
