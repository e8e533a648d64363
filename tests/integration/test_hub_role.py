"""What the roles `hub`, `redis` and `preflight` make of an inventory, by a real ansible-playbook."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import redis
import yaml  # type: ignore[import-untyped] # its stubs are a package that nothing else needs

from gridcore import config
from hub.redis_place import DURABLE
from hub.settings import HubSettings
from tests.servers.authority import Authority
from tests.servers.children import Child, accepts, find, free_port

PROJECT = Path(__file__).resolve().parents[2]
ROLES = PROJECT / "ansible/roles"
EXAMPLE = PROJECT / "inventory/example-hubs"
BINARIES = Path(sys.executable).parent
TOKEN, OLD, PASSWORD = "a-shared-secret-of-length", "the-shared-secret-before", "p@ss/w%rd of the hubs"
FOUND = ["python=3.11.2", "interpreter=/usr/bin/python3", "machine=x86_64/64", "engine=linux/amd64"]
FOUND += ["docker=1", "apt=1", "systemd=1", "memory=4000"]

Play = Callable[..., str]


@pytest.fixture
def play(tmp_path: Path) -> Play:
    """Run tasks with a role's variables and templates for some hosts, all of which are this machine."""

    def run(
        role: str,
        tasks: list[dict[str, Any]],
        inventory: Path | dict[str, Any],
        hosts: str = "gridcore_hub",
        fails: bool = False,
        **variables: Any,
    ) -> str:
        files = [str(ROLES / role / part / "main.yml") for part in ("defaults", "vars")]
        files = [file for file in files if Path(file).exists()]
        steps = {"hosts": hosts, "gather_facts": False, "vars_files": files, "tasks": tasks}
        templates = tmp_path / "templates"
        templates.unlink(missing_ok=True)
        if (ROLES / role / "templates").exists():
            templates.symlink_to(ROLES / role / "templates")
        (tmp_path / "play.json").write_text(json.dumps([steps]))
        if isinstance(inventory, dict):
            (tmp_path / "inventory.json").write_text(json.dumps(inventory))
            inventory = tmp_path / "inventory.json"
        local = {"ansible_connection": "local", "ansible_python_interpreter": sys.executable}
        (tmp_path / "variables.json").write_text(json.dumps(local | variables))
        more = f"@{tmp_path}/variables.json"
        done = subprocess.run(
            [BINARIES / "ansible-playbook", "-i", inventory, "-e", more, tmp_path / "play.json"],
            cwd=PROJECT, env=os.environ | {"ANSIBLE_NOCOLOR": "1"}, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=120, check=False,
        )  # fmt: skip
        assert (done.returncode != 0) == fails, done.stdout
        return done.stdout

    return run


def write(directory: Path, **texts: str) -> list[dict[str, Any]]:
    """The task that writes each of these, as the host sees it, to a file `host.name`."""
    return [
        {
            "ansible.builtin.copy": {
                "content": text,
                "dest": f"{directory}/{{{{ inventory_hostname }}}}.{name}",
            },
            "no_log": True,
        }
        for name, text in texts.items()
    ]


def hubs(count: int, **variables: Any) -> dict[str, Any]:
    names: dict[str, Any] = {f"hub-{number}": {} for number in range(1, count + 1)}
    return {"gridcore_hub": {"hosts": names, "vars": variables}}


CONFIG = {
    "config": "{{ lookup('ansible.builtin.template', 'computehub.toml.j2') }}",
    "problems": "{{ hub_problems | to_json }}",
}


def read(directory: Path, host: str, name: str) -> Any:
    text = (directory / f"{host}.{name}").read_text()
    return json.loads(text) if name == "problems" else text


def test_one_hub_needs_nothing_but_a_token(play: Play, tmp_path: Path) -> None:
    play("hub", write(tmp_path, **CONFIG), hubs(1, gridcore_token=TOKEN))
    assert read(tmp_path, "hub-1", "problems") == []
    settings = config.load(HubSettings, tmp_path / "hub-1.config", {})
    assert settings == HubSettings(token=TOKEN)


def test_all_that_a_fleet_can_set_arrives_as_the_hub_reads_it(play: Play, tmp_path: Path) -> None:
    pair = Authority(tmp_path).issue("hub")
    notify = [
        {"url": "https://chat.example/hooks?secret", "events": ["canary"], "min_interval": 60},
        {"url": "http://127.0.0.1:9/x", "secret": 'a"secret\\with quotes', "ca_file": None},
    ]
    variables = {
        "gridcore_token": TOKEN,
        "gridcore_hub_previous_token": OLD,
        "gridcore_hub_bind": "127.0.0.1:8443",
        "gridcore_hub_store": "rediss://:x@10.0.0.1:6379/0?ca=/etc/idm-gridcore/redis-ca.pem",
        "gridcore_hub_trusted_proxies": ["127.0.0.1", "10.0.0.0/8"],
        "gridcore_hub_cors_origins": ["https://grid.example"],
        "gridcore_hub_event_retention_days": "7.5",
        "gridcore_hub_prefetch": "true",
        "gridcore_hub_tls_certificate": str(pair.certificate),
        "gridcore_hub_tls_key": str(pair.key),
        "gridcore_hub_notify": notify,
        "gridcore_hub_settings": {"node_retention_days": 3, "log_format": "json", "bind": "0.0.0.0:9000"},
    }
    play("hub", write(tmp_path, **CONFIG), hubs(1, **variables))
    assert read(tmp_path, "hub-1", "problems") == []
    found = tomllib.loads(read(tmp_path, "hub-1", "config"))
    assert config.load(HubSettings, tmp_path / "hub-1.config", {}).redis is not None
    assert found["notify"] == [notify[0], {"url": "http://127.0.0.1:9/x", "secret": 'a"secret\\with quotes'}]
    assert (found["bind"], found["previous_token"]) == ("0.0.0.0:9000", OLD)
    assert (found["event_retention_days"], found["prefetch"], found["log_format"]) == (7.5, True, "json")
    assert (found["trusted_proxies"], found["cors_origins"]) == (
        ["127.0.0.1", "10.0.0.0/8"],
        ["https://grid.example"],
    )
    assert found["tls_certificate"] == found["tls_key"] == "/etc/idm-gridcore/hub.pem"


def test_the_example_with_three_hubs_is_one_fleet(play: Play, tmp_path: Path) -> None:
    secrets = {"gridcore_token": TOKEN, "gridcore_hub_redis_password": PASSWORD}
    play("hub", write(tmp_path, **CONFIG), EXAMPLE, **secrets)
    texts = {read(tmp_path, f"hub-0{number}", "config") for number in (1, 2, 3)}
    assert len(texts) == 1
    settings = config.load(HubSettings, tmp_path / "hub-01.config", {})
    assert settings.redis is not None
    assert (settings.redis.hosts, settings.redis.password) == ((("192.168.1.22", 6379),), PASSWORD)
    assert (settings.trusted_proxies, read(tmp_path, "hub-01", "problems")) == (("192.168.1.10",), [])
    checks = write(
        tmp_path,
        problems="{{ (preflight_inventory_checks + preflight_checks) | selectattr('wrong') | to_json }}",
    )
    hosts = "gridcore_hub:gridcore_redis:pc-01"
    play("preflight", checks, EXAMPLE, hosts, preflight_probe={"stdout_lines": FOUND}, **secrets)
    for host in ("hub-01", "hub-02", "hub-03", "state-01", "data-01", "pc-01"):
        assert read(tmp_path, host, "problems") == []


def test_a_split_fleet_is_refused_before_anything_is_changed(play: Play, tmp_path: Path) -> None:
    tasks = yaml.safe_load((ROLES / "preflight/tasks/main.yml").read_text())
    tasks = [task for task in tasks if "ansible.builtin.raw" not in task]

    def refuse(inventory: dict[str, Any]) -> str:
        inventory["gridcore_agents"] = {"hosts": {"pi": {}}}
        return play("preflight", tasks, inventory, "all", fails=True, preflight_probe={"stdout_lines": FOUND})

    said = refuse(hubs(2))
    assert "hub-1 is one of 2 hosts in gridcore_hub and would keep a fleet of its own" in said
    assert "pi would know one of the 2 hubs only: set gridcore_hub_url" in said
    said = refuse(hubs(2, gridcore_hub_store="redis://:hushhush@127.0.0.1:6379/0"))
    assert "is a Redis on the host" in said
    assert "hushhush" not in said
    other = hubs(2, gridcore_hub_store="redis://:hushhush@10.0.0.1/0")
    other["gridcore_hub"]["hosts"]["hub-2"] = {"gridcore_hub_store": "redis+cluster://10.0.0.2"}
    said = refuse(other)
    assert "hub-2 has another gridcore_hub_store" in said
    assert "hushhush" not in said


def test_the_role_itself_refuses_what_cannot_work(play: Play, tmp_path: Path) -> None:
    (tmp_path / "none.pem").write_text("nothing")
    variables = {
        "gridcore_hub_tls_certificate": f"{tmp_path}/none.pem",
        "gridcore_hub_tls_key": f"{tmp_path}/x",
    }
    play("hub", write(tmp_path, problems=CONFIG["problems"]), hubs(2, **variables))
    token, split, certificate, key = read(tmp_path, "hub-2", "problems")
    assert token.startswith("Set gridcore_token")
    assert split.startswith("gridcore_hub has 2 hosts, and each would keep a fleet of its own")
    assert certificate.startswith(f"gridcore_hub_tls_certificate is {tmp_path}/none.pem, and must be a PEM")
    assert key.startswith(f"gridcore_hub_tls_key is {tmp_path}/x, and must be a PEM")


@pytest.mark.parametrize(
    ("token", "previous", "named"),
    [
        ("change-me-in-production", "", ["gridcore_token"]),
        ("your-secret-token-change-this", "hunter2", ["gridcore_token", "gridcore_hub_previous_token"]),
        ("x" * 40, "", ["gridcore_token"]),
        (TOKEN, "Super-Secret-Password-1", ["gridcore_hub_previous_token"]),
        (TOKEN, OLD, []),
        ("83920174659283746501", "8f14e45fceea167a", []),
    ],
)
def test_the_role_refuses_a_token_that_can_be_guessed_by_its_variable(
    play: Play, tmp_path: Path, token: str, previous: str, named: list[str]
) -> None:
    look = {"idm.gridcore.check_variables": {"role": "hub", "refuse": False}, "register": "looked"}
    tasks = [look, *write(tmp_path, problems="{{ looked.problems | to_json }}")]
    play("hub", tasks, hubs(1, gridcore_token=token, gridcore_hub_previous_token=previous))
    told = read(tmp_path, "hub-1", "problems")
    assert sorted(why.split()[0] for why in told) == sorted(named)
    assert not any(secret in why for why in told for secret in (token, previous) if secret)


def test_a_certificate_takes_the_place_of_the_old_one_only_if_the_hub_takes_it(
    play: Play, tmp_path: Path
) -> None:
    """By the role's own task, without the owner, for whom the test would have to be root."""
    blocks = yaml.safe_load((ROLES / "hub/tasks/main.yml").read_text())
    (block,) = (block for block in blocks if block["name"] == "Bring the certificate")
    (task,) = block["block"]
    assert task.pop("notify") == "Reload the hub's certificate"
    del task["ansible.builtin.copy"]["owner"], task["ansible.builtin.copy"]["group"]
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/computehub").symlink_to(BINARIES / "computehub")
    authority, target = Authority(tmp_path), tmp_path / "placed.pem"
    first, second = authority.issue("first"), authority.issue("second")

    def bring(certificate: Path, key: Path, fails: bool = False) -> str:
        return play(
            "hub", [task], hubs(1), fails=fails, program_release=str(tmp_path), hub_tls_file=str(target),
            gridcore_hub_tls_certificate=str(certificate), gridcore_hub_tls_key=str(key),
        )  # fmt: skip

    bring(first.certificate, first.key)
    placed = target.read_text()
    assert target.stat().st_mode & 0o777 == 0o600
    assert placed == first.certificate.read_text() + first.key.read_text()
    bring(second.certificate, first.key, fails=True)
    assert target.read_text() == placed
    assert "changed=0" in bring(first.certificate, first.key)
    assert "changed=1" in bring(second.certificate, second.key)


def test_playbooks_ask_the_host_itself_unless_they_are_told_where_and_verify_then(
    play: Play, tmp_path: Path
) -> None:
    hosts: dict[str, dict[str, str]] = {
        "plain": {},
        "own": {"gridcore_hub_bind": "10.0.0.1:9", "gridcore_hub_tls_certificate": "x.pem"},
        "given": {"gridcore_api_url": "https://hub.example", "gridcore_hub_tls_certificate": "x.pem"},
        "shared": {"gridcore_operator_token": ""},
    }
    variables = {"gridcore_token": TOKEN, "gridcore_operator_token": "alices"}
    inventory = {"gridcore_hub": {"hosts": hosts, "vars": variables}}
    asked = "{{ [api_url, api_verify | bool, api_token] | to_json }}"
    here = {"ansible.builtin.include_vars": str(PROJECT / "ansible/playbooks/vars/hub.yml")}
    play("hub", [here, *write(tmp_path, problems=asked)], inventory)
    assert {name: read(tmp_path, name, "problems") for name in hosts} == {
        "plain": ["http://127.0.0.1:8080", False, "alices"],
        "own": ["https://10.0.0.1:9", False, "alices"],
        "given": ["https://hub.example", True, "alices"],
        "shared": ["http://127.0.0.1:8080", False, TOKEN],
    }


def test_a_redis_for_the_hubs_is_what_they_ask_for(play: Play, tmp_path: Path) -> None:
    port = free_port()
    texts = {"conf": "{{ lookup('ansible.builtin.template', 'gridcore.conf.j2') }}"}
    variables = {"gridcore_redis_bind": "127.0.0.1", "gridcore_redis_port": port}
    variables |= {"gridcore_hub_redis_password": "hush", "redis_maxmemory": "64mb"}
    play("redis", write(tmp_path, **texts), EXAMPLE, "state-01", **variables)
    conf = tmp_path / "state-01.conf"
    command = [find("redis-server"), str(conf), "--dir", str(tmp_path), "--save", ""]
    child = Child("redis-server", command, tmp_path / "log")
    child.start(lambda: accepts(port))
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=5) as link:
            link.sendall(b"AUTH hush\r\n" + b"".join(f"CONFIG GET {name}\r\n".encode() for name in DURABLE))
            answer = ""
            while answer.count("*2\r\n") < len(DURABLE) or not answer.endswith("noeviction\r\n"):
                answer += link.recv(4096).decode()
    finally:
        child.kill()
    words = answer.split("\r\n")
    assert {name: words[words.index(name) + 2] for name in DURABLE} == DURABLE


def test_while_its_password_changes_redis_takes_both(play: Play, tmp_path: Path) -> None:
    port = free_port()
    texts = {"conf": "{{ lookup('ansible.builtin.template', 'gridcore.conf.j2') }}"}
    first, second = 'of "before" \\é', "of 'now' #>$é"
    variables = {"gridcore_redis_bind": "127.0.0.1", "gridcore_redis_port": port, "redis_maxmemory": "64mb"}
    play(
        "redis", write(tmp_path, **texts), hubs(1), **variables,
        gridcore_redis_password=second, gridcore_redis_previous_password=first,
    )  # fmt: skip
    command = [find("redis-server"), str(tmp_path / "hub-1.conf"), "--dir", str(tmp_path), "--save", ""]
    child = Child("redis-server", command, tmp_path / "log")
    child.start(lambda: accepts(port))
    try:
        for password in (first, second):
            with redis.Redis(port=port, password=password) as client:
                assert client.ping()
                assert client.publish("channel", "x") == 0
        with redis.Redis(port=port, password="another") as client, pytest.raises(redis.AuthenticationError):
            client.ping()
    finally:
        child.kill()


def test_the_hub_is_told_the_fleets_redis_with_the_password_of_its_host(play: Play, tmp_path: Path) -> None:
    inventory = hubs(1, gridcore_token=TOKEN)
    data = {"ansible_host": "10.0.0.7", "gridcore_redis_password": PASSWORD, "gridcore_redis_port": 7000}
    inventory["gridcore_redis"] = {"hosts": {"data": data}}
    play("hub", write(tmp_path, **CONFIG), inventory)
    found = config.load(HubSettings, tmp_path / "hub-1.config", {}).fleet_redis
    assert found == "redis://:p%40ss%2Fw%25rd%20of%20the%20hubs@10.0.0.7:7000/0"


def test_what_a_role_needs_must_be_there_and_what_others_need_may_come_later(play: Play) -> None:
    later = "{{ lookup('ansible.builtin.file', '/no/such/file') }}"
    for name, fails in {"gridcore_operator_token": False, "gridcore_redis_password": True}.items():
        variables = {"gridcore_redis_password": "hush-hush", "redis_maxmemory": "64mb", name: later}
        tasks = [{"idm.gridcore.check_variables": {"role": "redis"}}]
        said = play("redis", tasks, hubs(1), fails=fails, **variables)
        assert (f"{name} cannot be made out" in said) == fails
    variables = {"gridcore_redis_password": "{{ of_the_vault }}", "redis_maxmemory": "64mb"}
    said = play("redis", tasks, hubs(1), fails=True, **variables)
    assert "gridcore_redis_password cannot be made out: it names of_the_vault, not defined here" in said


def test_a_redis_for_the_hubs_refuses_to_lose_their_state(play: Play) -> None:
    tasks = yaml.safe_load((ROLES / "redis/tasks/main.yml").read_text())
    tasks = [task for task in tasks if "idm.gridcore.check_variables" in task]
    said = play(
        "redis", tasks, EXAMPLE, "state-01", fails=True,
        gridcore_hub_redis_password="hush", gridcore_redis_appendfsync="everysec",
    )  # fmt: skip
    assert "gridcore_redis_appendfsync is always" in said


def test_the_load_balancers_example_is_one_that_haproxy_takes(tmp_path: Path) -> None:
    pair = Authority(tmp_path).issue("proxy")
    (tmp_path / "hub.pem").write_text(pair.certificate.read_text() + pair.key.read_text())
    text = (PROJECT / "docs/haproxy.cfg").read_text()
    hosts = yaml.safe_load((EXAMPLE / "hosts.yml").read_text())["gridcore_hub"]["hosts"]
    for name, variables in hosts.items():
        assert f"server {name} {variables['ansible_host']}:8080\n" in text
    (tmp_path / "haproxy.cfg").write_text(text.replace("/etc/haproxy", str(tmp_path)))
    done = subprocess.run(
        [find("haproxy"), "-c", "-f", str(tmp_path / "haproxy.cfg")],
        capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "WARNING" not in done.stderr


def test_a_wrong_variable_of_a_host_that_is_off_is_named_before_any_host_is_asked() -> None:
    inventory = {
        "gridcore_redis": {
            "hosts": {
                "off": {"ansible_host": "127.0.0.1", "ansible_port": 9, "gridcore_redis_prot": 6380},
                "away": {"ansible_host": "127.0.0.1", "ansible_port": 9, "gridcore_redis_port": "many"},
            }
        }
    }
    given = {"gridcore_redis_password": PASSWORD}
    words = ["-i", "/dev/stdin", "-e", json.dumps(given), "ansible/playbooks/preflight.yml"]
    done = subprocess.run(
        [BINARIES / "ansible-playbook", *words],
        cwd=PROJECT, env=os.environ | {"ANSIBLE_NOCOLOR": "1", "ANSIBLE_CALLBACK_RESULT_FORMAT": "json"},
        input=json.dumps(inventory), capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 2, done.stdout
    assert (
        "gridcore_redis_prot is no variable of GridCore: did you mean gridcore_redis_port? (off)"
        in done.stdout
    )
    assert "gridcore_redis_port is 'many', and must be a whole number, 1 to 65535 (away)" in done.stdout
    assert "UNREACHABLE" not in done.stdout
