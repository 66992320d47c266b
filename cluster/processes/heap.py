"""What Python's garbage collector has to look at."""

from __future__ import annotations

import atexit
import gc

atexit.register(gc.unfreeze)  # extension modules complain of what is left at the end


def freeze_heap() -> None:
    """Takes what is there now, for a process's whole life, out of the collector's sight.

    A process that has imported torch or vLLM has a million objects, and the collector visits all of them again and
    again while many others are made, as in parsing logprobs: that was half the time of preparing a job.
    """
    gc.collect()
    gc.freeze()
