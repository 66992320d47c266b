"""The training-job-configs API: saved configurations, and jobs that run them on the Ray cluster.

The rest of the service uses routes.py and deployment.py only, which register the API.

- api/: the routes, their bodies and responses.
- settings/: the fields and rules of a job's settings, and everything that they can name.
- store/: configurations, jobs, claims and logs in the database.
- running/: the job runner, which supervises boot files as Ray jobs and built-in algorithms as training jobs.
"""
