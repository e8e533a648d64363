"""Every variable that the collection knows: what it may be, and the nearest one to a name that nobody knows.

The roles' own come from their `argument_specs.yml`. A fleet's variable (`gridcore_…`) is of the kind of the
role's variable whose default names it.
"""

import difflib
from pathlib import Path

import yaml
from jinja2 import Environment, nodes

from .kinds import Kind

ROLES = Path(__file__).resolve().parents[2] / "roles"

_SECONDS = {"low": 0, "high": 86_400, "like": "seconds"}
_MEMORY = {"low": 6, "high": 16_777_216, "like": "MB"}
_ADDRESS = r"(\[[0-9A-Za-z:.%_-]+\]|[^\[\]:/\s@]+)"
_URL = r"https?://" + _ADDRESS + r"(:\d{1,5})?(/\S*)?"

# What an argument_spec has no words for.
LIMITS = {
    "agent_hub_url": {"pattern": _URL, "like": "an address such as http://192.168.1.100:8080"},
    "agent_hostname": {"pattern": r".{1,255}", "like": "a name of at most 255 characters"},
    "agent_parallelism": {"low": 0, "high": 4096},
    "agent_heartbeat_interval": {"low": 1, "high": 45, "like": "seconds"},
    "agent_stop_timeout": _SECONDS,
    "agent_token": {"guarded": True},
    "agent_container_memory": _MEMORY,
    "agent_labels": {"elements": "label", "like": "room: cellar"},
    "docker_insecure_registries": {"pattern": r"[A-Za-z0-9._\[\]:-]+(/\d{1,3})?", "like": "host:5000"},
    "docker_registry_mirrors": {"pattern": _URL, "like": "https://mirror.example"},
    "hub_bind": {"pattern": _ADDRESS + r":\d{1,5}", "like": "HOST:PORT, such as 0.0.0.0:8080"},
    "hub_token": {"guarded": True},
    "hub_previous_token": {"guarded": True},
    "hub_event_retention_days": {"above": 0, "high": 36_500, "like": "days"},
    "preflight_container_memory": _MEMORY,
    "preflight_memory_minimum": {"low": 0, "high": 16_777_216, "like": "MB"},
    "preflight_python_minimum": {"pattern": r"3\.\d{1,2}", "like": "a version such as 3.11, in quotes"},
    "redis_bind": {
        "pattern": r"[-0-9A-Za-z.:*%]+( [-0-9A-Za-z.:*%]+)*",
        "like": "addresses separated by spaces",
    },
    "redis_maxmemory": {"pattern": r"(?i)\d{1,15}(b|kb?|mb?|gb?)?", "like": "a size such as 2gb or 512mb"},
    "redis_maxmemory_policy": {
        "choices": (
            "noeviction", "allkeys-lru", "allkeys-lfu", "allkeys-random",
            "volatile-lru", "volatile-lfu", "volatile-random", "volatile-ttl",
        )
    },
    "redis_port": {"low": 1, "high": 65_535},
}  # fmt: skip

# Of no role: how the playbooks for tasks and nodes reach the hub, and what the example of several hubs uses.
OF_PLAYBOOKS = {
    "gridcore_operator_token": Kind("str"),
    "gridcore_api_host": Kind("str"),
    "gridcore_api_url": Kind("str", pattern=_URL, like="an address such as https://hub.example"),
    "gridcore_api_ca_path": Kind("path"),
    "gridcore_hub_redis_password": Kind("str"),
}

# What the playbooks for tasks and nodes take with -e. What a task may be beyond that, the hub knows better.
PLAYBOOKS = {
    **dict.fromkeys(
        ("task", "task_name", "task_image", "task_input_redis", "task_output_redis", "task_input_queue"),
        Kind("str"),
    ),
    **dict.fromkeys(("task_output_queue", "task_pull_policy"), Kind("str")),
    "task_images": Kind("dict", "str", like="'linux/arm64': host:5000/name:1"),
    "task_env": Kind("dict", like="LEVEL: '3'"),
    "task_auto_finish": Kind("dict", like="idle: 300"),
    "task_command": Kind("list", "str", like="worker, --fast"),
    "task_memory": Kind("int", like="MB"),
    **dict.fromkeys(("task_parallelism", "task_gpus"), Kind("int")),
    "task_stop_timeout": Kind("float", like="seconds"),
    **dict.fromkeys(("before", "after"), Kind("str")),
    "to": Kind("str", choices=("first", "last")),
    "canary": Kind("int"),
    **dict.fromkeys(("healthy_after", "start_within"), Kind("float", like="seconds")),
    **dict.fromkeys(("node", "architecture", "platform"), Kind("str")),
    "labels": Kind("dict", "label", like="room: cellar"),
    **dict.fromkeys(("node_stop_wait", "node_drain_wait"), Kind("int", low=1, high=86_400, like="seconds")),
    **dict.fromkeys(("instance", "lines", "previous"), Kind("int")),
}


# In a task's definition an empty text is "not set".
MAY_BE_EMPTY = frozenset(name for name in PLAYBOOKS if name.startswith("task_"))


def role_kinds(role):
    """Return the kinds of a role's own variables by name."""
    specs = _load(role, "meta/argument_specs.yml")["argument_specs"]["main"]["options"]
    return {name: _kind(name, spec) for name, spec in specs.items()}


def fleet_kinds():
    """Return the kinds of all `gridcore_…` by name."""
    kinds = dict(OF_PLAYBOOKS)
    for role in sorted(path.name for path in ROLES.iterdir() if path.is_dir()):
        own = role_kinds(role)
        for name, fleet in fleet_names(role).items():
            kinds.setdefault(fleet, own[name])
    return kinds


def fleet_names(role):
    """Return which `gridcore_…` each of a role's variables takes its value from."""
    found = {}
    for name, default in _load(role, "defaults/main.yml").items():
        # One at most: tests/unit/test_variables.py holds the roles to it.
        for fleet in names_in(default):
            if fleet.startswith("gridcore_"):
                found[name] = fleet
    return found


def names_in(text):
    """Return the variables that a template names."""
    if not isinstance(text, str) or "{" not in text:
        return set()
    return {node.name for node in Environment(autoescape=True).parse(text).find_all(nodes.Name)}


def unknown(name, known):
    """Return what is said of a variable that nobody knows."""
    near = difflib.get_close_matches(name, known, 1, 0.5)
    return f"{name} is no variable of GridCore" + (f": did you mean {near[0]}?" if near else "")


def misspelt(name, known):
    """Return what is said of a name that nobody has to know, but that is nearly a known one; or None."""
    near = difflib.get_close_matches(name, known, 1, 0.8) or [
        one for one in known if sorted(one) == sorted(name)
    ]
    return f"{name} is no variable of GridCore's playbooks: did you mean {near[0]}?" if near else None


def _kind(name, spec):
    limits = {
        "elements": spec.get("elements", ""),
        "choices": tuple(spec.get("choices", ())),
        **LIMITS.get(name, {}),
    }
    return Kind(spec["type"], **limits)


def _load(role, path):
    return yaml.safe_load((ROLES / role / path).read_text(encoding="utf-8")) or {}
