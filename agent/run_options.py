"""The options of `docker run` for one slot. Pure: what a container may do can be read and tested here.

Everything is closed unless the slot's allowance, which comes from the node's own file, opens it.
"""

from __future__ import annotations

from typing import Any

from agent import spec

LOG_LIMITS = ["max-size=10m", "max-file=2"]


def run_options(slot: spec.SlotSpec, owner: str, env_file: str, *, quota: bool) -> dict[str, Any]:
    """The keyword arguments for python-on-whales; `quota`: whether the engine can bound a volume's size."""
    may = slot.allowance
    options: dict[str, Any] = {
        "detach": True,
        "name": slot.name,
        "labels": slot.labels(owner),
        "env_files": [env_file],
        "cpuset_cpus": [slot.cpu],
        "cpu_shares": may.cpu_shares,
        "memory": f"{slot.memory_mb}m",
        "memory_swap": f"{slot.memory_mb}m",
        "oom_score_adj": may.oom_score,
        "pids_limit": may.pids_limit,
        # No file beyond the limits, by the kernel; what all files together take is watched (agent/disk.py).
        "ulimit": [f"fsize={max(may.disk_mb, may.scratch_mb) * 2**20}"],
        "cap_drop": ["ALL"],
        "cap_add": list(may.capabilities),
        "security_options": [] if may.new_privileges else ["no-new-privileges"],
        "networks": [may.network],
        "volumes": [tuple(mount.split(":")) for mount in may.mounts],
        "mounts": _scratch_mount(slot, owner, quota=quota),
        "init": True,
        "restart": "no",
        "log_driver": "json-file",
        "log_options": LOG_LIMITS,
        "pull": "never",
    }
    if slot.gpus:
        # Quoted for docker's own comma-separated reading of the value.
        options["gpus"] = f'"device={",".join(map(str, slot.gpus))}"'
    return options


def _scratch_mount(slot: spec.SlotSpec, owner: str, *, quota: bool) -> list[list[str]]:
    if slot.scratch is None:
        return []
    mount = ["type=volume", f"source={slot.scratch}", f"target={spec.SCRATCH_PATH}"]
    mount += [f"volume-label={name}={value}" for name, value in slot.scratch_labels(owner).items()]
    if quota:
        mount.append(f"volume-opt=size={slot.allowance.scratch_mb}m")
    return [mount]
