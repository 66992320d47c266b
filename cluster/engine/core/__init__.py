"""vLLM's engine core, a process of its own: how it starts, how it is watched and ended, and why it died."""
