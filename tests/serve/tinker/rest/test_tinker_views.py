"""What people see of the runs of clients."""

from run_data import BASE


def test_the_page_shows_how_far_a_run_is(http, data, model):
    run = data.run()

    def shown(query=""):
        return http.get(f"/v1/preview/tinker-runs{query}").json()["data"]

    assert shown()[0] | {"state": "idle", "num_calls": 0, "last_call": None} == shown()[0]
    data.call(run, "optim_step")
    assert (shown()[0]["state"], shown()[0]["num_waiting_calls"]) == ("waiting", 1)
    claimed = data.store.claims.claim_run(BASE, "learners", 30)
    assert shown()[0]["state"] == "training"
    data.store.claims.report_waiting(claimed, "2 jobs before it")
    assert (shown()[0]["state"], shown()[0]["waiting_for"]) == ("waiting", "2 jobs before it")
    [call] = data.store.claims.next_calls(claimed)
    data.store.claims.refuse(claimed, call, "bad", "user")
    data.store.claims.release(claimed)
    [last] = shown(f"?model_id={run.model_id}")
    assert (last["state"], last["num_calls"], last["last_call"]["error"]) == ("idle", 1, "bad")
    assert shown(f"?model_id={model['id']}") == []
    data.store.runs.unload("team", run.id)
    assert shown()[0]["state"] == "unloaded"


def test_versions_that_a_client_saved_are_in_the_tree_and_the_list(http, data):
    run = data.run()
    data.save(run, "kept", "save_for_sampler")
    for number in range(2, 13):
        data.call(run, "save_for_sampler", sampler_seq=number)
    data.answer_all()
    at = f"/v1/preview/models/{run.model_id}"
    assert http.get(at).json()["origin"] == {"kind": "run", "run": run.id}
    newest, *_, named, initial = http.get(f"{at}/tree").json()["data"]
    assert newest["version"]["origin"] == "run" and newest["parent"]["step"] == 11
    assert (newest["version"]["run_id"], newest["version"]["checkpoint_name"]) == (run.id, None)
    assert named["version"]["checkpoint_name"] == "kept" and named["parent"]["step"] == 0
    assert initial["first_step"] == 0
    assert [item["count"] for item in http.get(f"{at}/tree").json()["data"]] == [1, 1, 1, 1, 1, 6, 1, 1]
