"""The ledger of a running service: what clients and a job used, as engines and coordinator have counted it."""

import time
from datetime import UTC, datetime

from helpers import events_until_end, inference_name, post_job, register, roll_out
from waiting import wait_until


def test_a_job_and_its_rollouts_are_in_the_ledger_and_its_time_has_names(service, http):
    began = datetime.now(UTC)
    model = register(http)
    trajectories = roll_out(service.openai(), inference_name(model))
    job = post_job(http, model, trajectories, precalculate_logprobs=True)
    events = events_until_end(http, job)
    assert events[-1]["type"] == "training_ended"

    phases = http.get(f"/preview/training-jobs/{job}/phases").json()
    names = {one["name"]: one["seconds"] for one in phases["totals"]}
    assert sum(names.values()) >= 0.98 * phases["seconds"] > 0
    assert all(one["reason"] for one in phases["data"] if one["name"] == "idle"), "it is said what was waited for"
    assert {"prepare", "load", "score", "step", "checkpoint"} <= set(names)

    sampled = sum(len(one["messages_and_choices"][-1]["token_ids"]) for one in trajectories)
    asked = {"from": began.isoformat(), "model_id": model["id"], "group_by": "phase"}

    def charged():
        time.sleep(0.2)
        found = {one["phase"]: one for one in http.get("/preview/usage", params=asked).json()["data"]}
        return found if found.get("sample", {}).get("sampled_tokens", 0) >= sampled else None

    found = {}
    wait_until(lambda: found.update(charged() or {}) or found, 60)
    assert (found["sample"]["sampled_tokens"], found["sample"]["requests"]) == (sampled, 2)
    assert found["sample"]["engine_seconds"] > 0
    assert found["step"]["trained_tokens"] > 0 and found["step"]["learner_seconds"] > 0
    assert found["score"]["scored_tokens"] + found["score"]["engine_scored_tokens"] > 0
    watched = {"from": began.isoformat(), "model_id": model["id"]}
    activity = http.get("/preview/activity", params=watched).json()["total"]
    assert activity["rollouts_run"] > 0 and activity["learner_works"] + activity["both_work"] > 0
