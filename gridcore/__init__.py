"""The ground floor of GridCore: what hub, agent and command line share. It imports nothing of ours."""

__version__ = "0.1.0"
