"""A Ray cluster of several nodes on this machine: small object stores, and nodes that can be killed."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import Any

STORE_BYTES = 80 << 20  # Ray refuses less than 75 MB
_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    # A node that is gone is noticed in seconds, not half a minute.
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "10000",
    "RAY_health_check_failure_threshold": "5",
}


class Nodes:
    """A head without processors, so that all work is on the worker nodes."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster

        arguments = {"num_cpus": 0, "object_store_memory": STORE_BYTES, "include_dashboard": False}
        self._cluster = Cluster(initialize_head=True, head_node_args=arguments)
        self.address = str(self._cluster.address)
        self.workers: list[Any] = []
        self._cpus: dict[int, int] = {}

    def add(self, cpus: int, gpus: int = 0) -> Any:
        """A worker node; its GPUs are logical ones."""
        node = self._cluster.add_node(num_cpus=cpus, num_gpus=gpus, object_store_memory=STORE_BYTES)
        self.workers.append(node)
        self._cpus[id(node)] = cpus
        return node

    def kill(self, node: Any) -> None:
        """SIGKILL of the node's raylet, as when its machine goes; the actors on it go with it."""
        self.workers.remove(node)
        self._cluster.worker_nodes.discard(node)
        node.kill_raylet(check_alive=False)
        node.kill_all_processes(check_alive=False, allow_graceful=False, wait=True)

    def hold(self, cpus: list[int]) -> None:
        """Exactly the worker nodes of `cpus`: others go, missing ones come."""
        missing = list(cpus)
        for node in list(self.workers):
            if self._cpus[id(node)] in missing:
                missing.remove(self._cpus[id(node)])
            else:
                self.kill(node)
        for count in missing:
            self.add(count)

    def close(self) -> None:
        self._cluster.shutdown()


@contextlib.contextmanager
def cluster() -> Iterator[Nodes]:
    """Nodes whose workers import what this process can import."""
    before = dict(os.environ)
    os.environ.update(_ENVIRONMENT, PYTHONPATH=os.pathsep.join(p for p in sys.path if p))
    nodes = Nodes()
    try:
        yield nodes
    finally:
        nodes.close()
        os.environ.clear()
        os.environ.update(before)


def stores(address: str) -> tuple[int, int]:
    """Bytes in the object stores of all nodes now, and bytes spilled so far; needs a connection to the cluster."""
    import ray
    from ray._private.internal_api import node_stats

    used = spilled = 0
    for node in ray.nodes():
        if node["Alive"]:
            found = node_stats(node["NodeManagerAddress"], node["NodeManagerPort"], include_memory_info=False)
            used += found.store_stats.object_store_bytes_used
            spilled += found.store_stats.spilled_bytes_total
    return used, spilled
