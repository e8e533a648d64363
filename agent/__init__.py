"""GridNode: keeps N containers of the hub's current task running on this machine."""
