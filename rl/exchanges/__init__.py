"""Captured requests and answers of an agent, by protocol, to exact token sequences."""
