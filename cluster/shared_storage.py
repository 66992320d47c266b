"""Check that all nodes of a cluster reach the store and the artifacts.

Any part of the service may run on any node. If a local path were configured, each node would have its own store, and
versions would be missing on some nodes.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from pathlib import Path

import ray
from fsspec.implementations.local import LocalFileSystem
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from tandem.cluster.artifacts import filesystem_of
from tandem.cluster.config import TandemConfig
from tandem.cluster.sqlite_urls import sqlite_path

ANSWER_S = 120.0  # a worker process has to start on each node
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")  # one per running kernel, so containers of one machine share it


class NotSharedError(ValueError):
    """A node doesn't reach the store or the artifacts. The message names it and says what to configure instead."""


def check_shared(config: TandemConfig) -> None:
    """Check from every living node. Ray must be connected. Raises NotSharedError.

    One node needs no check, nor does a database server with artifacts at a URL. A folder passes if all nodes mount it:
    a file written here must be visible there. SQLite also needs all processes on one machine, because they share
    memory.
    """
    nodes = {node["NodeID"]: node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]}
    folders = local_folders(config)
    if len(nodes) < 2 or not folders:
        return
    marks = {content: _leave_mark(folder) for content, folder in folders.items()}
    try:
        answers = _look_from(list(nodes), list(marks.values()))
    finally:
        for mark in marks.values():
            mark.unlink(missing_ok=True)
    here = machine()
    for node, (machine_there, seen) in answers.items():
        for (content, folder), is_seen in zip(folders.items(), seen, strict=True):
            if not is_seen or (content == "store" and machine_there != here):
                raise NotSharedError(_fault(content, folder, nodes[node], len(nodes), is_seen))


def local_folders(config: TandemConfig) -> dict[str, Path]:
    """Return the local folders of the configuration by their content: "store", "artifacts"."""
    folders = {}
    if file := sqlite_path(config.resolved_store_url):
        folders["store"] = Path(file).absolute().parent
    filesystem, root = filesystem_of(config.artifacts_root)
    if isinstance(filesystem, LocalFileSystem):
        folders["artifacts"] = Path(root)
    return folders


def machine() -> str:
    """Return an id shared by all processes that can share memory. It changes at a reboot."""
    return BOOT_ID.read_text()


def _fault(content: str, folder: Path, address: str, num_nodes: int, is_seen: bool) -> str:
    if content == "store":
        trouble = "is another machine" if is_seen else f"doesn't have the store in {folder}"
        remedy = (
            "SQLite works on one machine only. Set store_url to a PostgreSQL database: "
            "postgresql://user:password@host/name."
        )
    else:
        trouble = f"doesn't see the artifacts in {folder}"
        remedy = (
            "Set artifacts to a place that all nodes reach: s3://bucket/prefix, or a folder that all of them mount."
        )
    return f"The cluster has {num_nodes} nodes, and {address} {trouble}. {remedy}"


def _leave_mark(folder: Path) -> Path:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    mark = folder / f".seen-by-all-{uuid.uuid4().hex}"
    mark.touch()
    return mark


def _look_from(nodes: Sequence[str], files: Sequence[Path]) -> dict[str, tuple[str, list[bool]]]:
    """Return for each node its machine and which of the files it sees. Raises NotSharedError."""

    def look() -> tuple[str, list[bool]]:
        return machine(), [file.exists() for file in files]

    asked = {}
    for node in nodes:
        there = NodeAffinitySchedulingStrategy(node, soft=False)
        asked[ray.remote(look).options(num_cpus=0, max_retries=0, scheduling_strategy=there).remote()] = node
    done, late = ray.wait(list(asked), num_returns=len(asked), timeout=ANSWER_S)
    if late:
        raise NotSharedError(
            f"Node {asked[late[0]]} didn't answer within {ANSWER_S:g} s whether it sees {files[0].parent}. "
            "Read its Ray logs, or remove it from the cluster, and deploy again."
        )
    return {asked[answer]: ray.get(answer) for answer in done}
