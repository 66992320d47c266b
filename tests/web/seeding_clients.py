"""Data of the view of a model that a client of the Tinker API trains."""

from run_data import RunData

BASE = "tandem/tiny"


def seed_clients(served):
    """A run that waits, after a version and a call that failed."""
    data = RunData(served.services)
    run = data.run()
    data.save(run, "first", "save_for_sampler")
    claims = data.store.claims
    data.call(run, "optim_step")
    claimed = claims.claim_run(BASE, "seeding", 3600)
    [call] = claims.next_calls(claimed)
    claims.refuse(claimed, call, "No gradient <img src=x onerror=alert(1)>", "user")
    data.call(run, "optim_step")
    claims.report_waiting(claimed, "2 jobs before it")
    return {"run": run}
