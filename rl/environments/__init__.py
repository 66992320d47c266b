"""Environments: tasks, an agent's rollouts on them, and rewards. No module here imports torch or a client."""
