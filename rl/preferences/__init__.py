"""Preference pairs (DPO): two answers to one prompt, to exact sequences, batches and gradient steps."""
