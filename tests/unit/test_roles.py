"""The collection's roles: what they document is what they do, and their services are locked in."""

import ast
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped] # its stubs are a package that nothing else needs

ANSIBLE = Path(__file__).parents[2] / "ansible"
ROLES = sorted(path.name for path in (ANSIBLE / "roles").iterdir() if path.is_dir())
UNITS = sorted((ANSIBLE / "roles").glob("*/files/*.service"))

# `{{ gridcore_… | default(VALUE) | TYPE }}`: a role's variable takes the fleet's, and else VALUE.
FROM_FLEET = re.compile(r"\{\{ gridcore_\w+ \| default\((.+?)\)(?: \| (?:int|float|bool))? \}\}")

TYPES: dict[str, type | tuple[type, ...]] = {
    "bool": bool,
    "dict": dict,
    "float": (int, float),
    "int": int,
    "list": list,
    "path": str,
    "str": str,
}


def load(role: str, path: str) -> dict[str, Any]:
    return yaml.safe_load((ANSIBLE / "roles" / role / path).read_text()) or {}


def options(role: str) -> dict[str, Any]:
    found: dict[str, Any] = load(role, "meta/argument_specs.yml")["argument_specs"]["main"]["options"]
    return found


def literal(value: object) -> object:
    """The value that a default has in a fleet that sets nothing; `...` if that depends on the host."""
    if isinstance(value, str) and "{{" in value:
        match = FROM_FLEET.fullmatch(value.strip())
        try:
            return ast.literal_eval(match[1].replace("true", "True")) if match else ...
        except (SyntaxError, ValueError):
            return ...
    return value


@pytest.mark.parametrize("role", ROLES)
def test_every_variable_is_documented_and_every_documented_one_has_its_default(role: str) -> None:
    defaults, specs = load(role, "defaults/main.yml"), options(role)
    required = {name for name, spec in specs.items() if spec.get("required")}
    assert set(defaults) == set(specs) - required
    for name, default in defaults.items():
        value = literal(default)
        assert specs[name].get("default", ...) == value, f"{role}: {name} documents another default"
        if value is not ...:
            assert isinstance(value, TYPES[specs[name]["type"]]), f"{role}: {name} has another type"


@pytest.mark.parametrize("role", ROLES)
def test_every_variable_says_what_it_is_and_belongs_to_its_role(role: str) -> None:
    for name, spec in options(role).items():
        assert spec["description"], name
        assert name.startswith((f"{role}_", "docker_")), name


@pytest.mark.parametrize("role", ROLES)
def test_every_variable_stands_in_the_documentation(role: str) -> None:
    text = (ANSIBLE.parent / "docs" / "ansible.md").read_text()
    assert [name for name in options(role) if f"`{name}`" not in text] == []


@pytest.mark.parametrize("role", ROLES)
def test_a_role_stays_quick(role: str) -> None:
    """Each task costs every host a round trip."""

    def count(tasks: list[dict[str, Any]]) -> int:
        return sum(count(task["block"]) if "block" in task else 1 for task in tasks)

    tasks = yaml.safe_load((ANSIBLE / "roles" / role / "tasks" / "main.yml").read_text())
    assert count(tasks) < 25


@pytest.mark.parametrize("role", ROLES)
def test_what_a_task_notifies_is_there(role: str) -> None:
    def notified(tasks: list[dict[str, Any]]) -> set[str]:
        return {task["notify"] for task in tasks if "notify" in task}.union(
            *(notified(task["block"]) for task in tasks if "block" in task)
        )

    path = ANSIBLE / "roles" / role / "handlers" / "main.yml"
    handlers = yaml.safe_load(path.read_text()) if path.exists() else []
    names = {handler["name"] for handler in handlers} | {handler.get("listen") for handler in handlers}
    assert notified(yaml.safe_load((ANSIBLE / "roles" / role / "tasks" / "main.yml").read_text())) <= names


def test_of_several_hubs_one_is_restarted_after_the_other() -> None:
    for name in ("hub.yml", "site.yml"):
        plays = yaml.safe_load((ANSIBLE / "playbooks" / name).read_text())
        (play,) = (play for play in plays if "idm.gridcore.hub" in play.get("roles", []))
        assert play["serial"] == 1
    handlers = yaml.safe_load((ANSIBLE / "roles/hub/handlers/main.yml").read_text())
    (restart,) = (handler for handler in handlers if handler["name"] == "Restart the hub")
    assert restart["throttle"] == 1


def test_a_changed_certificate_reloads_the_hub_and_does_not_restart_it() -> None:
    (block,) = (
        task
        for task in yaml.safe_load((ANSIBLE / "roles/hub/tasks/main.yml").read_text())
        if task["name"] == "Bring the certificate"
    )
    assert [task["notify"] for task in block["block"]] == ["Reload the hub's certificate"]
    handlers = yaml.safe_load((ANSIBLE / "roles/hub/handlers/main.yml").read_text())
    (reload,) = (handler for handler in handlers if handler["name"] == "Reload the hub's certificate")
    assert reload["ansible.builtin.systemd_service"]["state"] == "reloaded"
    assert (
        "ExecReload=/bin/kill -HUP $MAINPID"
        in (ANSIBLE / "roles/hub/files/computehub.service").read_text().splitlines()
    )


@pytest.mark.parametrize("role", ["program", "preflight"])
def test_the_architectures_are_the_same_everywhere(role: str) -> None:
    known = load(role, "vars/main.yml")[f"{role}_architectures"]
    assert known == load("program", "vars/main.yml")["program_architectures"]
    assert set(known.values()) == {"x86_64", "aarch64", "armv7l"}
    assert not any(machine.startswith("armv6") for machine in known)


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)
def test_a_service_is_locked_in(unit: Path) -> None:
    if not shutil.which("systemd-analyze"):
        pytest.fail("systemd-analyze is missing: apt-get install systemd (make test does)")
    result = subprocess.run(
        ["systemd-analyze", "security", "--offline=yes", "--threshold=30", "--no-pager", str(unit)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)
def test_a_service_is_restarted_after_a_crash_but_not_after_a_wrong_configuration(unit: Path) -> None:
    lines = unit.read_text().splitlines()
    assert {"Type=notify", "Restart=on-failure", "RestartPreventExitStatus=78"} <= set(lines)
    assert not [line for line in lines if line.startswith("Requires=")]


def test_the_agents_service_starts_the_next_one_after_a_handover() -> None:
    lines = (ANSIBLE / "roles/agent/files/gridnode.service").read_text().splitlines()
    assert {"RestartForceExitStatus=75", "SuccessExitStatus=75", "KillMode=mixed"} <= set(lines)
