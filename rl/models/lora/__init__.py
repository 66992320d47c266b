"""The LoRA adapter: its parameters, its layers, adapters from outside, and merging it into the base model."""
