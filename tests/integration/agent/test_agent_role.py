"""What the role `agent` makes of an inventory and of the file that a host has, by a real ansible-playbook."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from agent.settings import write_back

PROJECT = Path(__file__).resolve().parents[3]
ROLE = PROJECT / "ansible/roles/agent"
SHARED, JOIN, OWN = "shared-token", "join-token", "own-token"

Render = Callable[..., tuple[str, list[str]]]


@pytest.fixture
def render(tmp_path: Path) -> Render:
    """Render the configuration for the fleet's variables over the text `now`; and the problems found."""
    (tmp_path / "templates").symlink_to(ROLE / "templates")
    steps = {
        "hosts": "node",
        "gather_facts": False,
        "vars_files": [str(ROLE / "vars/main.yml"), str(ROLE / "defaults/main.yml")],
        "tasks": [
            {
                "ansible.builtin.copy": {"content": "{{ item[1] }}", "dest": f"{tmp_path}/{{{{ item[0] }}}}"},
                "loop": [["problems", "{{ agent_problems | to_json }}"], ["config", "{{ agent_config }}"]],
                "loop_control": {"label": "{{ item[0] }}"},
            }
        ],
    }
    (tmp_path / "play.json").write_text(json.dumps([steps]))

    def run(now: str = "", hub: dict[str, Any] | None = None, **variables: Any) -> tuple[str, list[str]]:
        local = {"ansible_connection": "local", "ansible_python_interpreter": sys.executable}
        hosts = {
            "gridcore_hub": {"hosts": {"hub.example": hub or {}}},
            "gridcore_agents": {"hosts": {"node": local}},
        }
        (tmp_path / "inventory.json").write_text(json.dumps(hosts))
        found = {"agent_config_file": {"content": base64.b64encode(now.encode()).decode()}}
        (tmp_path / "variables.json").write_text(json.dumps(found | variables))
        play, inventory, more = (tmp_path / f"{name}.json" for name in ("play", "inventory", "variables"))
        done = subprocess.run(
            [Path(sys.executable).parent / "ansible-playbook", "-i", inventory, "-e", f"@{more}", play],
            cwd=PROJECT, env=os.environ | {"ANSIBLE_NOCOLOR": "1"}, stdin=subprocess.DEVNULL,
            capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return (tmp_path / "config").read_text(), json.loads((tmp_path / "problems").read_text())

    return run


def test_a_node_that_has_joined_keeps_its_id_and_token_over_rollouts(render: Render, tmp_path: Path) -> None:
    first, problems = render(gridcore_join_token=JOIN)
    assert problems == []
    assert tomllib.loads(first)["join_token"] == JOIN
    assert "token" not in tomllib.loads(first)
    file = tmp_path / "gridnode.toml"
    file.write_text(first)
    write_back(file, "n1", OWN)
    assert render(file.read_text(), gridcore_join_token=JOIN)[0] == file.read_text()
    changed = tomllib.loads(
        render(file.read_text(), gridcore_join_token="next", gridcore_agent_parallelism=3)[0]
    )
    assert (changed["node_id"], changed["token"], changed["join_token"]) == ("n1", OWN, "next")
    assert changed["parallelism"] == 3


def test_a_node_goes_by_its_name_in_the_inventory_unless_it_is_told_another(render: Render) -> None:
    def name(calls_itself: str, **variables: Any) -> Any:
        text, _ = render(gridcore_token=SHARED, ansible_facts={"nodename": calls_itself}, **variables)
        return tomllib.loads(text).get("hostname")

    assert name("raspberrypi") == "node"
    assert name("node") is None, "a copied disk would take the line along"
    assert name("raspberrypi", gridcore_agent_hostname="pi-7") == "pi-7"
    assert name("raspberrypi", gridcore_agent_hostname="") is None


def test_a_shared_token_from_the_inventory_replaces_a_nodes_own(render: Render) -> None:
    now = f'server_url = "http://x"\nnode_id = "n1"\ntoken = "{OWN}"\njoin_token = "{JOIN}"\n'
    config = tomllib.loads(render(now, gridcore_token=SHARED)[0])
    assert (config["node_id"], config["token"], config.get("join_token")) == ("n1", SHARED, None)
    explicit = tomllib.loads(render(now, gridcore_join_token="next", agent_token=SHARED)[0])
    assert (explicit["token"], explicit["join_token"]) == (SHARED, "next")


def test_a_join_token_takes_the_shared_secret_off_a_node(render: Render) -> None:
    now, _ = render(gridcore_token=SHARED)
    assert tomllib.loads(now)["token"] == SHARED
    for variables in ({"gridcore_token": SHARED}, {"hub": {"gridcore_token": SHARED}}):
        config, problems = render(now, gridcore_join_token=JOIN, **variables)
        assert SHARED not in config
        assert (tomllib.loads(config)["join_token"], problems) == (JOIN, [])


def test_a_ca_file_makes_the_hub_https_and_must_be_one(render: Render, tmp_path: Path) -> None:
    ca = tmp_path / "ca.pem"
    ca.write_text("-----BEGIN CERTIFICATE-----\n")
    config, problems = render(gridcore_token=SHARED, gridcore_ca_file=str(ca))
    assert problems == []
    assert tomllib.loads(config)["ca_file"] == "/etc/idm-gridcore/ca.pem"
    assert tomllib.loads(config)["server_url"] == "https://hub.example:8080"
    ca.write_text("-----BEGIN PRIVATE KEY-----\n")
    for path in (ca, tmp_path / "none.pem"):
        _, (problem,) = render(gridcore_token=SHARED, gridcore_ca_file=str(path))
        assert problem.startswith(f"gridcore_ca_file is {path}, and must be a PEM file")


def test_without_any_token_it_is_said_which_variables_are_meant(render: Render) -> None:
    _, (problem,) = render()
    assert problem.startswith("Set gridcore_token (it is the hub's) or gridcore_join_token")
