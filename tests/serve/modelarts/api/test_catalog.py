"""Lists of resource specifications, engines and built-in algorithms."""

import json


def test_resources_engines_and_algorithms_are_listed(http):
    specs = http.get("/v1/team/job/resource-specs", params={"job_type": "train"}).json()
    assert specs["spec_total_count"] == 3
    assert [(s["spec_id"], s["spec_code"], s["max_num"], s["no_resource"]) for s in specs["specs"]] == [
        (0, "tandem.learners", 1, False),
        (1, "tandem.cpu.1", 2, False),
        (2, "tandem.cpu.2", 1, True),
    ]
    engines = http.get("/v1/team/job/ai-engines").json()["engines"]
    assert [(e["engine_id"], e["engine_type"], e["engine_name"]) for e in engines] == [
        (1, 3, "Ray"),
        (2, 10, "PyTorch"),
    ]
    algorithms = http.get("/v1/team/built-in-algorithms", params={"order": "asc"}).json()
    assert [a["model_name"] for a in algorithms["models"]] == [
        "RL on trajectory groups (CISPO)",
        "RL on trajectory groups (PPO)",
    ]
    parameters = {p["label"]: p for p in json.loads(algorithms["models"][0]["parameter"])}
    assert parameters["model_name"]["required"]
    assert parameters["batch_size"] == {"label": "batch_size", "value": "8", "required": False}
    assert "loss_fn" not in parameters
    assert "kl_penalty_coef" in parameters
    found = http.get("/v1/team/built-in-algorithms", params={"search_content": "ppo"}).json()
    assert (found["model_total_count"], found["models"][0]["model_id"]) == (1, 2)
