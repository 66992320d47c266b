"""Processes, ports and the local Ray: starting them, and ending them reliably."""
