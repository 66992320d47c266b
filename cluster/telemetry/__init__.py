"""Log lines and traces of all processes, with the ids of the request or job that they concern.

    telemetry = Telemetry.of(config)
    telemetry.set_up("learner", rank=0)         # once per process
    with logged_with(job_id=job.id):
        logger.info("A line that has the id")

`telemetry` is a `setup.Telemetry`, `logged_with` is in `context`. Modules other than `setup` and `otlp` import neither
the configuration nor libraries, so that a process that starts can log early.
"""
