"""Process groups of a vLLM worker that has no other workers beside it.

vLLM makes a dozen gloo groups even for one process. Each has a thread that wakes up 100 times a second to look for
peers: most of what an idle engine costs. A group of one rank is never used after the start.
"""

from __future__ import annotations


def close_lone_groups() -> None:
    """Close the process groups of this process, if it is the only rank of all of them."""
    import torch.distributed as dist
    from vllm.distributed import parallel_state

    groups = [group for reference in parallel_state._groups.values() if (group := reference()) is not None]
    if any(group.world_size > 1 for group in groups):
        return
    for group in groups:
        group.destroy()
    dist.destroy_process_group()
