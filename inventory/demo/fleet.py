#!/usr/bin/env python3
"""The demo's inventory: the hosts that `make demo` has started on this machine.

The first is hub and Redis, the others compute. `GRIDCORE_FLEET` names another fleet of tests/fleet/hosts.py.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]


def main() -> None:
    """Print the inventory; Ansible asks for all of it at once (`--list`)."""
    prefix = os.environ.get("GRIDCORE_FLEET", "demo")
    state = PROJECT / ".cache" / "fleet" / prefix
    try:
        addresses: dict[str, str] = json.loads((state / "fleet.json").read_text())
    except FileNotFoundError:
        sys.exit(f"There is no fleet {prefix!r} on this machine; `make demo` starts one.")
    hosts = {f"{prefix}-{name}": {"ansible_host": address} for name, address in addresses.items()}
    control, *nodes = hosts
    inventory = {
        "all": {"vars": {"fleet_state": str(state)}},
        "gridcore_hub": {"hosts": [control]},
        "gridcore_redis": {"hosts": [control]},
        "gridcore_agents": {"children": ["x86_64"]},
        "x86_64": {"hosts": nodes or [control]},
        "_meta": {"hostvars": hosts},
    }
    print(json.dumps(inventory, indent=2))


if __name__ == "__main__":
    main()
