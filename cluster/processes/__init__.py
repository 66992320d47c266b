"""Processes, ports and the local Ray: what Tandem starts and how it ends."""
