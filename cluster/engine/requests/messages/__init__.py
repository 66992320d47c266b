"""Anthropic's Messages: the fields of their requests, vLLM's chat below them, and what is added to their answers."""
