"""The names of a checkpoint's files. Importing this needs no torch."""

ADAPTER = "adapter_model.safetensors"
ADAPTER_CONFIG = "adapter_config.json"
OPTIMIZER = "optimizer.safetensors"
MANIFEST = "manifest.json"
NO_OPTIMIZER = "optimizer.dropped"
"""Beside the others: the optimizer state was deleted on purpose. Empty."""
