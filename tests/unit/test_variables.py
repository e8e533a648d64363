"""Every variable of the collection: of the wrong kind it is refused by its name, and so is a misspelt one."""

from __future__ import annotations

import importlib
import sys
import types
from pathlib import Path
from typing import Any

import pytest
from annotated_types import Ge, Gt, Le

from agent.settings import Settings
from hub.settings import HubSettings

ANSIBLE = Path(__file__).parents[2] / "ansible"
ROLES = sorted(path.name for path in (ANSIBLE / "roles").iterdir() if path.is_dir())


def _plugin(name: str) -> Any:
    """A module of the collection's plugin_utils, as Ansible imports it: in a package."""
    package = types.ModuleType("gridcore_plugin_utils")
    package.__path__ = [str(ANSIBLE / "plugins" / "plugin_utils")]
    sys.modules.setdefault("gridcore_plugin_utils", package)
    return importlib.import_module(f"gridcore_plugin_utils.{name}")


kinds, variables = _plugin("kinds"), _plugin("variables")

EVERY = {
    **{name: kind for role in ROLES for name, kind in variables.role_kinds(role).items()},
    **variables.fleet_kinds(),
    **variables.PLAYBOOKS,
}
WRONG: dict[str, list[Any]] = {
    "int": [
        "30s",
        "many",
        "",
        " 5",
        "010",
        "1_000",
        "0x1f",
        "1e3",
        "2.5",
        2.5,
        30.0,
        True,
        None,
        [1],
        {"a": 1},
    ],
    "float": ["30s", "many", "", "1e3", "nan", "inf", float("nan"), float("inf"), True, None, [1.5], {}],
    "bool": ["perhaps", "", "2", 2, 1.5, None, [], {}],
    "str": [5, 1.10, True, None, ["a"], {"a": 1}, "two\nlines", "nul\0", "sep\u2028arator"],
    "path": [5, True, None, ["a"], "two\nlines"],
    "list": ["host:5000", "", 5, True, None, {"a": 1}],
    "dict": ['{"a": 1}', "a=1", "", 5, True, None, ["a"]],
    "text or list": [5, True, None, {"a": 1}, [5], [None]],
}
RIGHT: dict[str, list[Any]] = {
    "int": [30, "30"],
    "float": [30, "30", 7.5, "7.5"],
    "bool": [True, False, "true", "no", "False", 1, "0"],
    "dict": [{}],
    "list": [[]],
    "text or list": ["worker --fast", ["worker", "--fast"], "two\nlines"],
}
SECRET = "hush-hush-0123456789"


@pytest.mark.parametrize("name", EVERY)
def test_a_value_of_the_wrong_kind_is_refused_with_the_variables_name(name: str) -> None:
    kind = EVERY[name]
    for value in WRONG[kind.type]:
        said = kinds.problem(name, value, kind)
        assert said is not None, f"{name} takes {value!r}"
        assert said.startswith(f"{name} is "), said


@pytest.mark.parametrize("name", EVERY)
def test_a_value_of_the_right_kind_is_taken_as_yaml_has_it_and_as_a_command_line_has_it(name: str) -> None:
    kind = EVERY[name]
    for value in kind.choices or RIGHT.get(kind.type, [""]):
        number = value if kind.type != "int" else type(value)(max(30, int(max(kind.low, -1))))
        assert kinds.problem(name, number, kind) is None, f"{name} refuses {number!r}"


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        ("gridcore_agent_stop_timeout", [0, 86_400], [-1, 86_401]),
        ("gridcore_agent_parallelism", [0, 4096], [-1, 5000]),
        ("gridcore_agent_heartbeat_interval", [1, 45], [0, 46]),
        ("gridcore_agent_container_memory", [6], [5]),
        ("gridcore_hub_event_retention_days", [0.5, 36_500], [0, 36_501]),
        ("gridcore_redis_port", [1, 65_535], [0, 65_536]),
        ("node_drain_wait", [1], [0]),
        ("gridcore_redis_maxmemory", ["2gb", "512MB", "100"], ["2 gigabytes", "2tb", "-1", "50%"]),
        ("gridcore_redis_maxmemory_policy", ["allkeys-lru"], ["lru"]),
        ("gridcore_redis_appendfsync", ["no"], ["sometimes"]),
        ("gridcore_redis_bind", ["127.0.0.1 -::1", "0.0.0.0", "*"], ["127.0.0.1,::1", "127.0.0.1  ::1"]),
        ("gridcore_hub_bind", ["0.0.0.0:8080", "[::]:8080", "[fe80::1%eth0]:80"], ["8080", "0.0.0.0"]),
        ("gridcore_hub_url", ["https://hub.example", "http://[::1]:80/x"], ["hub:8080", "ftp://hub", "http://"]),
        ("gridcore_agent_labels", [{"room": "a", "floor": 3}], [{"gpu": True}, {"v": 1.10}, {"x": None}]),
        ("gridcore_docker_insecure_registries", [["host:5000", "10.0.0.0/8"]], [["http://host:5000"], [1]]),
        ("gridcore_docker_registry_mirrors", [["https://mirror.example"]], [["mirror.example"]]),
    ],
)  # fmt: skip
def test_ranges_and_forms_are_held(name: str, good: list[Any], bad: list[Any]) -> None:
    for value in good:
        assert kinds.problem(name, value, EVERY[name]) is None, value
    for value in bad:
        assert kinds.problem(name, value, EVERY[name]), f"{name} takes {value!r}"


def test_it_is_said_what_was_expected() -> None:
    def said(name: str, value: Any) -> Any:
        return kinds.problem(name, value, EVERY[name])

    assert said("gridcore_agent_stop_timeout", "30s") == (
        "gridcore_agent_stop_timeout is '30s', and must be a whole number of seconds, 0 to 86400"
    )
    assert said("gridcore_redis_maxmemory", "2 gigabytes") == (
        "gridcore_redis_maxmemory is '2 gigabytes', and must be a size such as 2gb or 512mb"
    )
    assert said("gridcore_version", 1.1) == "gridcore_version is 1.1, and must be a text: put it into quotes"
    assert (
        said("gridcore_hub_bind", None)
        == "gridcore_hub_bind is empty: give it a value, or leave the line out"
    )


@pytest.mark.parametrize(
    "name",
    ["gridcore_token", "gridcore_join_token", "gridcore_operator_token", "gridcore_redis_password",
     "gridcore_hub_store", "gridcore_hub_notify", "gridcore_agent_docker_config", "gridcore_agent_settings",
     "gridcore_hub_settings", "gridcore_api_url", "task_env", "task_input_redis", "task_output_redis"],
)  # fmt: skip
def test_no_secret_is_shown(name: str) -> None:
    for value in (SECRET, f"{SECRET}\nx", [SECRET], {"a": SECRET}, {SECRET: 1}):
        assert SECRET not in str(kinds.problem(name, value, EVERY[name]))


@pytest.mark.parametrize(
    "name", ["gridcore_token", "hub_token", "agent_token", "gridcore_hub_previous_token"]
)
def test_a_token_that_the_hub_would_refuse_is_refused(name: str) -> None:
    for weak in ("change-me-in-production", "short", "aaaaaaaaaaaaaaaaaaaaaaaa"):
        said = str(kinds.problem(name, weak, EVERY[name]))
        assert said.startswith(f"{name} ")
        assert weak not in said
    assert kinds.problem(name, "", EVERY[name]) is None, "what is missing is told by the role that needs it"
    assert kinds.problem(name, "6fdbc8a5f7c049be8d70", EVERY[name]) is None


def test_a_misspelt_name_is_told_with_the_nearest() -> None:
    known = list(variables.fleet_kinds()) + list(variables.PLAYBOOKS)
    for name, meant in {
        "gridcore_hub_bnd": "gridcore_hub_bind",
        "task_input_queu": "task_input_queue",
        "node_drain_wai": "node_drain_wait",
        "gridcore_insecure_registries": "gridcore_docker_insecure_registries",
    }.items():
        assert variables.unknown(name, known) == f"{name} is no variable of GridCore: did you mean {meant}?"
    for name, meant in {"taks": "task", "nodes": "node", "canry": "canary", "label": "labels"}.items():
        assert str(variables.misspelt(name, variables.PLAYBOOKS)).endswith(f"did you mean {meant}?")
    for name in ("env", "site", "ansible_user", "room", "line_width"):
        assert variables.misspelt(name, variables.PLAYBOOKS) is None


@pytest.mark.parametrize("role", ROLES)
def test_a_default_takes_its_value_from_one_variable_of_the_fleet(role: str) -> None:
    for name, default in variables._load(role, "defaults/main.yml").items():
        assert len([one for one in variables.names_in(default) if one.startswith("gridcore_")]) <= 1, name
    assert set(variables.LIMITS) <= {name for one in ROLES for name in variables.role_kinds(one)}


@pytest.mark.parametrize(
    ("model", "key", "name"),
    [
        (Settings, "parallelism", "agent_parallelism"),
        (Settings, "heartbeat_interval", "agent_heartbeat_interval"),
        (Settings, "stop_timeout", "agent_stop_timeout"),
        (Settings, "container_memory", "agent_container_memory"),
        (HubSettings, "event_retention_days", "hub_event_retention_days"),
    ],
)
def test_the_ranges_are_the_programs_own(
    model: type[Settings] | type[HubSettings], key: str, name: str
) -> None:
    kind = EVERY[name]
    for limit in model.model_fields[key].metadata:
        if isinstance(limit, Ge) and name != "agent_parallelism":  # there 0 leaves it to the agent
            assert kind.low == limit.ge
        if isinstance(limit, Gt):
            assert kind.above == limit.gt
        if isinstance(limit, Le):
            assert kind.high == limit.le
