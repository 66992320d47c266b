"""Metrics of the service for Prometheus, and the live state of its engines and learners."""
