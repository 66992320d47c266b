"""The newest openpipe-art, unmodified, from an environment of its own: it sends recorded exchanges."""

import json
from pathlib import Path

from clients_python import needs_clients, run_client

from tandem.rl.tiny.corpus import ADD_TOOL


@needs_clients
def test_each_protocol_that_it_records_trains_exactly(service, http):
    program = Path(__file__).with_name("art_newest_client.py")
    said = json.loads(run_client(program, service.url, service.key, json.dumps(ADD_TOOL)).splitlines()[-1])
    steps = list(range(1, 6))
    assert [one["step"] for one in said["trained"]] == steps
    assert all(one["grad_norm"] > 0 for one in said["trained"])
    assert sorted(said["checkpoints"]) == steps
    assert len(said["left"]) <= 2 and 5 in said["left"]
    jobs = http.get("/preview/training-jobs", params={"model_id": said["model"], "order": "asc"}).json()["data"]
    for way, job in zip(said["trained"], jobs, strict=True):
        assert (job["retokenised_tokens"], job["untrainable_tokens"], job["not_trained"]) == (0, {}, {}), (way, job)
        assert job["trained"]["trajectories"] == 4 and job["trained"]["groups"] == 1
        started = http.get(f"/preview/training-jobs/{job['id']}/events").json()["data"][0]
        assert started["data"]["policy_lag/max"] == 0, way  # every trajectory knows its version
    streamed = http.get(f"/preview/training-jobs/{jobs[1]['id']}/events").json()["data"]
    warnings = {event["data"]["kind"]: event["data"]["counts"] for event in streamed if event["type"] == "warning"}
    assert warnings["parts_not_trained"]["exchanges_of_other_models"] == 4
    assert set(warnings["other_distribution"]) == {"temperature"}  # as the request says, for the stream doesn't
    [entry] = http.get(f"/preview/models/{said['model']}/logs").json()["data"]
    assert entry["metrics"] == {"num_groups": 2, "num_trajectories": 4, "reward": 0.5}
