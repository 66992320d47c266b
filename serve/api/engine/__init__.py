"""Calls to the engine: requests on their way to vLLM's OpenAI layer, and its answers."""
