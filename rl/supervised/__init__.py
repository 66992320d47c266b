"""Supervised fine-tuning: rows of messages to exact sequences, batches and gradient steps."""
