"""Three masters that share the slots of a Redis Cluster between them."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

from tests.servers.children import wait_until
from tests.servers.redis_server import DURABLE, RedisServer

SLOTS = 16_384
CLUSTERED = {**DURABLE, "cluster-enabled": "yes", "cluster-node-timeout": "2000"}


class RedisCluster:
    """Starts with `with`; has no replicas, so that all of it is up in one to two seconds."""

    def __init__(self, directory: Path, masters: int = 3) -> None:
        self.nodes = [RedisServer(directory / f"node-{number}", CLUSTERED) for number in range(masters)]
        self._resources = ExitStack()

    def __enter__(self) -> RedisCluster:
        with ExitStack() as started:
            for node in self.nodes:
                started.enter_context(node)
            self._join()
            self._resources = started.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._resources.close()

    @property
    def addresses(self) -> str:
        """All nodes, as `host:port,host:port,…`."""
        return ",".join(f"127.0.0.1:{node.port}" for node in self.nodes)

    def owner_of(self, key: str) -> RedisServer:
        """The node on which a key lies."""
        with self.nodes[0].client() as client:
            slot = int(client.execute_command("CLUSTER", "KEYSLOT", key))
        return self.nodes[slot // self._share]

    def move_slot_of(self, key: str) -> RedisServer:
        """Give a key's slot, and all that lies in it, to another node; returns that."""
        old = self.owner_of(key)
        new = next(node for node in self.nodes if node is not old)
        with old.client() as source, new.client() as target:
            slot = source.execute_command("CLUSTER", "KEYSLOT", key)
            ids = {
                node: client.execute_command("CLUSTER", "MYID")
                for node, client in ((old, source), (new, target))
            }
            target.execute_command("CLUSTER", "SETSLOT", slot, "IMPORTING", ids[old])
            source.execute_command("CLUSTER", "SETSLOT", slot, "MIGRATING", ids[new])
            while keys := source.execute_command("CLUSTER", "GETKEYSINSLOT", slot, 100):
                source.execute_command("MIGRATE", "127.0.0.1", new.port, "", 0, 5000, "KEYS", *keys)
            for client in (target, source):
                client.execute_command("CLUSTER", "SETSLOT", slot, "NODE", ids[new])
        return new

    @property
    def _share(self) -> int:
        return -(-SLOTS // len(self.nodes))

    def _join(self) -> None:
        for number, node in enumerate(self.nodes):
            first, last = number * self._share, min((number + 1) * self._share, SLOTS) - 1
            with node.client() as client:
                client.execute_command("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
                client.execute_command("CLUSTER", "ADDSLOTSRANGE", first, last)
                for other in self.nodes[:number]:
                    client.execute_command("CLUSTER", "MEET", "127.0.0.1", other.port, _bus_port(other))
        for node in self.nodes:
            wait_until(lambda: self._is_up(node), "the cluster is up")  # noqa: B023  called in this round

    def _is_up(self, node: RedisServer) -> bool:
        with node.client() as client:
            info = client.execute_command("CLUSTER", "INFO")
        text = "\n".join(f"{key}:{value}" for key, value in info.items()) if isinstance(info, dict) else info
        return "cluster_state:ok" in text and f"cluster_known_nodes:{len(self.nodes)}" in text


def _bus_port(node: RedisServer) -> str:
    with node.client() as client:
        return str(client.config_get("cluster-port")["cluster-port"])
