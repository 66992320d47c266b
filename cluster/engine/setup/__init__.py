"""An engine before its first request: base models that it can serve, its processes and memory, vLLM's arguments."""
