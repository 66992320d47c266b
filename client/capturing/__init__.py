"""Capture of an agent's calls off the wire, so that agents of any framework train without a line about tokens."""
