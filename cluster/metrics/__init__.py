"""Metrics of the service: their catalogue, and recording them through Ray."""
