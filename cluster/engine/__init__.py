"""The vLLM engine of a base model."""
