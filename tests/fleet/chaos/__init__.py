"""Faults of machines and networks, injected into a real fleet in a repeatable order, and what then holds."""
