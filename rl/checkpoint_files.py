"""The names of a checkpoint's files, for those who copy them and needn't read them: importing this needs no torch."""

ADAPTER = "adapter_model.safetensors"
ADAPTER_CONFIG = "adapter_config.json"
OPTIMIZER = "optimizer.safetensors"
MANIFEST = "manifest.json"
