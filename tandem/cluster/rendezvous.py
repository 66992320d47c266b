"""Where the processes of a torch.distributed group meet."""

from __future__ import annotations

import socket


def free_address() -> str:
    """An init_method on this node, as the cluster's other nodes reach it: `tcp://HOST:PORT`, free a moment ago.

    For the process that will be rank 0, in a Ray actor: its node's address is the one that Ray knows.
    """
    import ray

    host = ray.util.get_node_ip_address()
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.bind((host, 0))
        port = probe.getsockname()[1]
    return f"tcp://[{host}]:{port}" if family == socket.AF_INET6 else f"tcp://{host}:{port}"
