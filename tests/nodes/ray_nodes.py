"""A Ray cluster of several nodes on this machine, which can be added and killed like machines that lose power."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from ray._private import ray_constants
from ray._private.node import Node
from ray._raylet import AuthenticationTokenLoader, Config
from ray.cluster_utils import Cluster
from ray_head import free_ports

from tandem.cluster.processes.local_ray import AUTH_MODE, TOKEN_PATH, ensure_token

OBJECT_STORE_BYTES = 100 << 20
# Chosen here, so that no start waits until Ray has chosen them.
AGENT_PORTS = ("metrics_agent_port", "metrics_export_port", "dashboard_agent_listen_port", "runtime_env_agent_port")
START_ATTEMPTS = 3  # Ray gives a node 30 s to start, which isn't enough on a busy machine


class RayNodes:
    """Nodes with different addresses: 127.0.0.1 for the head, then 127.0.0.2 and so on.

    with RayNodes(tmp_path) as nodes:
        node = nodes.add(num_cpus=2)
        subprocess.run(["tandem", "up"], env={**os.environ, **nodes.env})
        nodes.kill(node)

    All of it listens on the loopback interface, and every connection needs a token. Within the block, the environment
    of this process has what programs need to join; this process itself doesn't join.
    """

    def __init__(self, directory: Path):
        self._directory, self._undo, self._num_added = directory, ExitStack(), 0
        self._cluster: Cluster

    def __enter__(self) -> RayNodes:
        patch = self._undo.enter_context(pytest.MonkeyPatch.context())
        patch.setattr(ray_constants, "ENABLE_RAY_CLUSTER", False)  # Ray uses addresses as given
        patch.setenv(ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR, "0")
        patch.setenv(AUTH_MODE, "token")
        Config.initialize("")  # reads the environment again
        if TOKEN_PATH not in os.environ:  # otherwise this process has joined another Ray, and it can use only one token
            patch.setenv(TOKEN_PATH, str(ensure_token(self._directory / "ray_token")))
            AuthenticationTokenLoader.instance().reset_cache()
        for library in ("GLOO", "NCCL"):  # learners must listen on the addresses of their nodes
            patch.delenv(f"{library}_SOCKET_IFNAME", raising=False)
        # Ray makes sockets in it, whose paths may have 107 bytes.
        temp = tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp", ignore_cleanup_errors=True)
        temp_dir = self._undo.enter_context(temp)
        self._options = {"object_store_memory": OBJECT_STORE_BYTES, "include_dashboard": False, "temp_dir": temp_dir}
        self._cluster = Cluster(shutdown_at_exit=False)
        self._undo.callback(self._end)
        self.head = self.add(num_cpus=0)
        patch.setenv("RAY_ADDRESS", self._cluster.address)
        return self

    def __exit__(self, *_: object) -> None:
        self._undo.close()

    @property
    def workers(self) -> list[Node]:
        """All nodes except the head."""
        return list(self._cluster.worker_nodes)

    @property
    def env(self) -> dict[str, str]:
        """Environment variables with which another process finds the cluster."""
        return {name: value for name, value in os.environ.items() if name.startswith("RAY_")}

    def add(self, num_cpus: int, num_gpus: int = 0) -> Node:
        """Start a node and return it once it is up. Ray believes that it has the GPUs."""
        self._num_added += 1
        address, me = f"127.0.0.{self._num_added}", psutil.Process()
        for attempt in range(1, START_ATTEMPTS + 1):
            ports = dict(zip(AGENT_PORTS, free_ports(len(AGENT_PORTS)), strict=True))
            before = me.children(recursive=True)
            try:
                resources = {"num_cpus": num_cpus, "num_gpus": num_gpus}
                return self._cluster.add_node(node_ip_address=address, **resources, **ports, **self._options)
            except Exception:
                _kill([process for process in me.children(recursive=True) if process not in before])
                if attempt == START_ATTEMPTS:
                    raise
        raise AssertionError("unreachable")

    def kill(self, node: Node) -> None:
        """Send SIGKILL to every process of a node: Ray's own and their children."""
        processes = []
        for process in _roots(node):
            with suppress(psutil.NoSuchProcess):
                processes += [process, *process.children(recursive=True)]
        _kill(processes)
        self._cluster.remove_node(node, allow_graceful=False)

    def actors(self, class_name: str) -> list[str]:
        """Return the ids of the nodes with living actors whose class name contains `class_name`."""
        table = self._cluster.global_state.actor_table(None, actor_state_name="ALIVE")
        return [row["Address"]["NodeID"] for row in table.values() if class_name in _title(row)]

    def living(self) -> list[str]:
        """Return the ids of the nodes that Ray considers alive."""
        return [node["NodeID"] for node in self._cluster.global_state.node_table() if node["Alive"]]

    def _end(self) -> None:
        for node in [*self.workers, *([self._cluster.head_node] if self._cluster.head_node else [])]:
            self.kill(node)


def wait_for(what: str, found: Callable[[], Any], deadline_s: float, poll_s: float = 0.2) -> Any:
    """Poll `found` and return its first result that isn't empty."""
    deadline = time.monotonic() + deadline_s
    while not (value := found()):
        assert time.monotonic() < deadline, f"{what}: not within {deadline_s:g} s"
        time.sleep(poll_s)
    return value


def _kill(processes: list[psutil.Process]) -> None:
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(processes, timeout=10)


def _title(row: dict[str, Any]) -> str:
    return f"{row['ActorClassName']} {row['Name']}"


def _roots(node: Node) -> list[psutil.Process]:
    found = []
    for infos in node.all_processes.values():
        for info in infos:
            with suppress(psutil.NoSuchProcess):
                found.append(psutil.Process(info.process.pid))
    return found
