"""The training-job-configs API: saved configurations, and jobs that run them on the Ray cluster."""
