"""Measured costs of Tandem's parts, and a queueing simulation of a service made of them."""
