"""The HTTP service on Ray Serve: inference, training jobs and models."""
