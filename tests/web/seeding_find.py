"""The data of the tests of Find and of groups."""

from serve_fakes import choice, trajectory
from sqlalchemy import select

from tandem.serve.store.tables.training import JobRow
from tandem.serve.trajectories.indexing import index_next

BASE = "tandem/tiny"


def seed_find(served):
    """A model whose version 12 a job of 40 groups made, and evaluations of version 5, some of which failed."""
    http = served.http("train")
    model = http.post("/v1/preview/models", json={"project": "find", "name": "agent", "base_model": BASE}).json()

    def answered(text, reward, **changes):
        turn = choice(message={"role": "assistant", "content": text}, policy_version=11)
        return trajectory(reward, messages_and_choices=[{"role": "user", "content": "1 + 6 = ?"}, turn], **changes)

    def group(number):
        # Group 17 is the worst, and group 20 has equal rewards.
        rewards = [1.0] * 8 if number == 20 else [(-1.5 if number == 17 else 0.01 * number) + 0.1 * n for n in range(8)]
        return {"trajectories": [answered(f"It is {n}.", r, metadata={"task": number}) for n, r in enumerate(rewards)]}

    found = [group(number) for number in range(40)]
    found[3]["trajectories"][5] = answered("I looked for the needle <b>in</b> the haystack.", 0.15)
    found[9]["trajectories"][2] = answered("Another needle.", 0.95)
    body = {"model_id": model["id"], "trajectory_groups": found}
    job = http.post("/v1/preview/training-jobs", json=body).json()["id"]
    with served.store.database.write() as session:
        row = session.scalar(select(JobRow).where(JobRow.id == job))
        row.state, row.step, row.ended_at = "succeeded", 12, served.store.database.now()
    served.store.lineage.add_import(model["id"], "team", 12, "f" * 64, {}, "f" * 64)
    failures = [
        {"type": "TimeoutError", "message": f"took longer than {n} s", "policy_version": 5, "metadata": {"task": n}}
        for n in (30, 31)
    ]
    log = {"model_id": model["id"], "split": "eval", "trajectory_groups": [{**group(0), "exceptions": failures}]}
    http.post(f"/v1/preview/models/{model['id']}/log", json=log).raise_for_status()
    while index_next(served.store, served.services.artifacts, served.services.config):
        pass
    return {"model": model, "job": job}
