"""Jobs of the training-job-configs API: create, list, stop and delete them, read their logs. No job runs here."""

import pytest
from envelope_requests import ALGORITHM, CONFIGS, EXAMPLE, changed, refused
from fastapi.testclient import TestClient

from tandem.cluster.config import ProjectConfig
from tandem.serve.keys import create_key
from tandem.serve.modelarts.store.status import UserJobStatus

JOBS = "/v1/team/training-jobs"
SETTINGS = changed(EXAMPLE, config_name=None, config_desc=None)


@pytest.fixture
def services(services):
    """Project "team" may run its own code."""
    projects = {"team": ProjectConfig(run_code=True)}
    object.__setattr__(services, "config", services.config.model_copy(update={"projects": projects}))
    return services


def create(http, name="job", **config):
    response = http.post(JOBS, json={"job_name": name, "job_desc": "first", "config": {**SETTINGS, **config}})
    assert response.status_code == 200, response.text
    return response.json()


def of(job):
    return f"{JOBS}/{job['job_id']}/versions/{job['version_id']}"


def test_a_job_is_created_with_its_first_version(http):
    job = create(http)
    assert job == {
        "is_success": True,
        "job_id": job["job_id"],
        "job_name": "job",
        "version_id": job["version_id"],
        "version_name": "V0001",
        "status": 1,
        "create_time": 1767225600000,
        "resource_id": "tandem.cpu.1",
    }
    version = http.get(of(job)).json()
    assert {name: version[name] for name in SETTINGS} == SETTINGS
    assert (version["job_desc"], version["status_name"], version["duration"]) == ("first", "INIT", 0)
    assert (version["start_time"], version["spec_code"]) == (None, "tandem.cpu.1")


def test_running_code_is_off_until_the_operator_allows_it(http, store):
    http.headers["Authorization"] = f"Bearer {create_key(store, 'k', 'others')}"
    assert http.post("/v1/others/training-job-configs", json=EXAMPLE).json() == {"is_success": True}
    body = {"job_name": "job", "config": SETTINGS}
    message = refused(http.post("/v1/others/training-jobs", json=body), "ModelArts.0105", 403)
    assert "run_code" in message
    algorithm = changed(ALGORITHM, config_name=None)
    response = http.post("/v1/others/training-jobs", json={"job_name": "job", "config": algorithm})
    assert response.status_code == 200, "built-in algorithms run no code of the user's"


def test_a_saved_configuration_is_run_by_its_name(http):
    http.post(CONFIGS, json=EXAMPLE)
    job = http.post(JOBS, json={"job_name": "a", "config": {"config_name": "testConfig"}}).json()
    version = http.get(of(job)).json()
    assert {name: version[name] for name in SETTINGS} == SETTINGS
    config = {"config_name": "testConfig", "worker_server_num": 2, "data_url": "/bucket/other"}
    version = http.get(of(http.post(JOBS, json={"job_name": "b", "config": config}).json())).json()
    assert (version["worker_server_num"], version["app_url"]) == (2, "/usr/app/")
    assert (version["data_url"], version["dataset_id"]) == ("/bucket/other", None), "one data source replaces another"
    message = refused(http.post(JOBS, json={"job_name": "c", "config": {"config_name": "none"}}), "ModelArts.0104", 400)
    assert "'none'" in message


def test_a_flavor_names_the_specification(http):
    config = changed(SETTINGS, spec_id=None)
    job = http.post(JOBS, json={"job_name": "a", "config": {**config, "flavor": {"code": "tandem.cpu.2"}}}).json()
    assert http.get(of(job)).json()["spec_id"] == 2
    for flavor, code, more in (("x", "0104", {}), ("tandem.cpu.2", "0107", {"spec_id": 1})):
        body = {"job_name": "b", "config": {**config, **more, "flavor": {"code": flavor}}}
        assert "flavor" in refused(http.post(JOBS, json=body), f"ModelArts.{code}", 400)


@pytest.mark.parametrize(
    ("body", "code", "field"),
    [
        ({"config": SETTINGS}, "0107", "job_name"),
        ({"job_name": "a b", "config": SETTINGS}, "0104", "job_name"),
        ({"job_name": "a"}, "0107", "config"),
        ({"job_name": "a", "config": {}}, "0107", "app_url"),
        ({"job_name": "a", "config": changed(SETTINGS, spec_id=None)}, "0107", "spec_id"),
        ({"job_name": "a", "config": {**SETTINGS, "pre_version_id": 1}}, "0107", "pre_version_id"),
        ({"job_name": "a", "config": {**SETTINGS, "create_version": False}}, "0107", "create_version"),
        ({"job_name": "a", "config": SETTINGS, "workspace_id": "1"}, "0104", "workspace_id"),
        ({"job_name": "a", "config": SETTINGS, "job_desc": "x" * 257}, "0104", "job_desc"),
    ],
)
def test_the_error_names_the_field_that_breaks_a_rule(http, body, code, field):
    assert field in refused(http.post(JOBS, json=body), f"ModelArts.{code}", 400)
    assert http.get(JOBS).json()["job_total_count"] == 0


def test_a_jobs_name_is_unique_in_its_project(http):
    create(http)
    refused(http.post(JOBS, json={"job_name": "job", "config": SETTINGS}), "ModelArts.0103", 409)


def test_versions_of_a_job(http):
    first = create(http)
    config = {**SETTINGS, "worker_server_num": 2, "pre_version_id": first["version_id"]}
    second = http.post(f"{JOBS}/{first['job_id']}/versions", json={"job_desc": "second", "config": config}).json()
    assert (second["version_name"], second["job_id"]) == ("V0002", first["job_id"])
    listed = http.get(f"{JOBS}/{first['job_id']}/versions").json()
    assert (listed["version_count"], listed["job_desc"]) == (2, "second")
    assert [(v["version_name"], v["pre_version_id"]) for v in listed["versions"]] == [
        ("V0002", first["version_id"]),
        ("V0001", None),
    ]
    assert http.delete(of(second)).json() == {"is_success": True}
    refused(http.get(of(second)), "ModelArts.0102", 404)
    [job] = http.get(JOBS).json()["jobs"]
    assert (job["version_count"], job["version_name"]) == (1, "V0001")
    assert http.delete(of(first)).json() == {"is_success": True}
    refused(http.get(f"{JOBS}/{first['job_id']}/versions"), "ModelArts.0102", 404)


def test_jobs_are_listed_filtered_and_described(http):
    for name in ("beta", "alpha", "gamma"):
        create(http, name)
    assert http.put(f"{JOBS}/{create(http, 'delta')['job_id']}", json={"job_desc": "new"}).json() == {
        "is_success": True
    }
    body = http.get(JOBS).json()
    assert [job["job_name"] for job in body["jobs"]] == ["alpha", "beta", "delta", "gamma"]
    assert (body["job_total_count"], body["job_count_limit"]) == (4, 96)
    assert body["jobs"][2]["job_desc"] == "new"
    assert http.get(JOBS, params={"search_content": "ET"}).json()["jobs"][0]["job_name"] == "beta"
    assert http.get(JOBS, params={"status": 8}).json()["job_total_count"] == 0
    page = http.get(JOBS, params={"per_page": 2, "page": 2, "sortBy": "create_time", "order": "desc"}).json()
    assert [job["job_name"] for job in page["jobs"]] == ["alpha", "beta"]
    for params in ({"status": "x"}, {"search_content": "x" * 65}, {"page": 65536}, {"workspace_id": "9"}):
        refused(http.get(JOBS, params=params), "ModelArts.0104", 400)


def test_only_open_versions_can_be_stopped(http, modelarts):
    job = create(http)
    assert http.post(f"{of(job)}/stop").json() == {"is_success": True}
    assert http.get(of(job)).json()["status"] == UserJobStatus.CANCELED
    assert "CANCELED" in refused(http.post(f"{of(job)}/stop"), "ModelArts.0105", 403)
    running = create(http, "running")
    claimed = modelarts.claims.claim("runner", 30)
    modelarts.claims.set_status(claimed, UserJobStatus.RUNNING)
    http.post(f"{of(running)}/stop")
    assert http.get(of(running)).json()["status"] == UserJobStatus.KILLING


def test_a_log_is_paged_from_either_end(http, modelarts):
    job = create(http)
    claimed = modelarts.claims.claim("runner", 30)
    modelarts.logs.append(claimed, "worker-0.log", [f"line {n}" for n in range(1, 8)])
    modelarts.logs.append(claimed, "worker-0.log", [f"line {n}" for n in range(8, 11)])
    assert http.get(f"{of(job)}/log/file-names").json()["log_file_list"] == ["worker-0.log"]

    def page(**params):
        body = http.get(f"{of(job)}/aom-log", params={"log_file": "worker-0.log", **params}).json()
        return body["content"].splitlines(), body["lines"], body["start_line"], body["end_line"]

    assert page(lines=3) == (["line 8", "line 9", "line 10"], 3, 8, 10)
    assert page(lines=3, base_line=8) == (["line 5", "line 6", "line 7"], 3, 5, 7)
    assert page(lines=4, order="asc") == (["line 1", "line 2", "line 3", "line 4"], 4, 1, 4)
    assert page(lines=4, order="asc", base_line=8) == (["line 9", "line 10"], 2, 9, 10)
    assert page(order="asc", base_line=10) == ([], 0, 11, 10), "no new lines yet"
    assert page(lines=0)[:2] == ([], 0)
    assert len(page()[0]) == 10
    refused(http.get(f"{of(job)}/aom-log"), "ModelArts.0107", 400)
    refused(http.get(f"{of(job)}/aom-log", params={"log_file": "worker-0.log", "lines": 501}), "ModelArts.0104", 400)
    refused(http.get(f"{of(job)}/aom-log", params={"log_file": "../x"}), "ModelArts.0102", 404)


def test_no_more_jobs_than_the_project_may_have(http, services):
    limits = services.config.limits.model_copy(update={"max_open_jobs_per_project": 1})
    object.__setattr__(services, "config", services.config.model_copy(update={"limits": limits}))
    create(http)
    refused(http.post(JOBS, json={"job_name": "b", "config": SETTINGS}), "ModelArts.0106", 400)


def test_jobs_of_other_projects_are_hidden(app, http, store):
    job = create(http)
    key = create_key(store, "stranger", "others")
    with TestClient(app, headers={"X-Auth-Token": key}) as stranger:
        path = of(job).replace("/team/", "/others/")
        for method, url in (
            ("GET", path),
            ("GET", f"{path}/log/file-names"),
            ("POST", f"{path}/stop"),
            ("DELETE", path),
            ("DELETE", f"/v1/others/training-jobs/{job['job_id']}"),
            ("GET", f"/v1/others/training-jobs/{job['job_id']}/versions"),
        ):
            refused(stranger.request(method, url), "ModelArts.0102", 404)
            refused(stranger.request(method, url.replace("/others/", "/team/")), "ModelArts.0210", 403)
        assert stranger.get("/v1/others/training-jobs").json()["jobs"] == []
    assert http.get(of(job)).json()["status"] == 1
    refused(http.get(f"{JOBS}/{2**70}/versions"), "ModelArts.0104", 400)


def test_a_job_remembers_the_configuration_that_started_it(http):
    http.post(CONFIGS, json=EXAMPLE)
    named = http.post(JOBS, json={"job_name": "a", "config": {"config_name": "testConfig"}}).json()
    create(http, "b")
    assert http.get(of(named)).json()["config_name"] == "testConfig"
    [job] = http.get(JOBS, params={"config_name": "testConfig"}).json()["jobs"]
    assert (job["job_name"], job["config_name"]) == ("a", "testConfig")
    assert http.get(JOBS).json()["job_total_count"] == 2
    assert http.get(JOBS, params={"config_name": "none"}).json()["jobs"] == []
    again = {"config": SETTINGS}
    http.post(f"{JOBS}/{named['job_id']}/versions", json=again)
    assert http.get(JOBS, params={"config_name": "testConfig"}).json()["jobs"] == [], "the newest version counts"


def test_a_log_is_searched_and_downloaded(http, modelarts, monkeypatch):
    job = create(http)
    claimed = modelarts.claims.claim("runner", 30)
    lines = [f"line {n}" for n in range(1, 121)]
    lines[6], lines[110] = "an Error: ä <b>", "ERROR again"
    for start in range(0, 120, 2):
        modelarts.logs.append(claimed, "worker-0.log", lines[start : start + 2])
    url = f"{of(job)}/log/search"

    def search(**params):
        body = http.get(url, params={"log_file": "worker-0.log", "text": "error", **params}).json()
        return [(match["line"], match["content"]) for match in body["matches"]], body["end_line"], body["is_end"]

    assert search() == ([(7, "an Error: ä <b>"), (111, "ERROR again")], 120, True)
    assert search(lines=1) == ([(7, "an Error: ä <b>")], 7, False)
    assert search(base_line=7) == ([(111, "ERROR again")], 120, True)
    monkeypatch.setattr("tandem.serve.modelarts.store.logs.SEARCHED_AT_ONCE", 10)
    monkeypatch.setattr("tandem.serve.modelarts.store.logs.MAX_SEARCHED_LINES", 20)
    assert search() == ([(7, "an Error: ä <b>")], 20, False)
    assert search(base_line=100) == ([(111, "ERROR again")], 120, False)
    refused(http.get(url, params={"log_file": "none", "text": "x"}), "ModelArts.0102", 404)

    whole = http.get(f"{of(job)}/log/files/worker-0.log")
    assert whole.text == "".join(f"{line}\n" for line in lines)
    assert whole.headers["content-type"].startswith("text/plain")
    link = http.post("/v1/preview/downloads", json={"path": f"{of(job)}/log/files/worker-0.log"}).json()["url"]
    http.headers.pop("Authorization")
    assert http.get(f"/{link}").text == whole.text
