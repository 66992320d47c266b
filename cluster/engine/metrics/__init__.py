"""An engine counted: its load, batches and KV cache, its metrics and state, and the usage that keys are charged."""
