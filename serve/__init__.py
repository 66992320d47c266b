"""The HTTP service on Ray Serve: inference, training jobs, models, and the command line."""
