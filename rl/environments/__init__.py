"""Environments: tasks, how an agent acts on them, and what that is worth. They import neither torch nor a client."""
