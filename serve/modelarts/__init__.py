"""The training-job-configs API: saved training configurations, and jobs that run them on the Ray cluster."""
