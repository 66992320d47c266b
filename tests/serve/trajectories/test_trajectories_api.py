"""Find trajectories, read them as they were sent, and list the groups of a job."""

import json

import pytest
from serve_fakes import choice, trajectory
from trajectory_data import answered, group

from tandem.cluster.jobs.job import PolicyVersion
from tandem.serve.keys import create_key

BOTH = pytest.mark.parametrize("store_url", ["sqlite", "postgresql"], indirect=True)
LIST = "/v1/preview/trajectories"


def rewards(page):
    return [item["reward"] for item in page["data"]]


@BOTH
def test_filters_find_what_matches_and_nothing_else(post_job, post_log, index_all, find, model):
    low = answered(0.1, version=3, metadata={"task": "a", "seed": 7, "ok": True}, metrics={"length": 5})
    high = answered(0.9, version=4, metadata={"task": "b"}, metrics={"length": 50, "solved": True})
    job = post_job(group(low, high))
    log = post_log(group(answered(0.5, version=3), answered(-1.0, version=5)), split="eval")
    assert find()["still_indexing"] == {"jobs": 1, "logs": 1} and find()["data"] == []
    assert index_all() == 2
    page = find()
    assert page["still_indexing"] == {"jobs": 0, "logs": 0} and page["total"] == 4
    assert rewards(page) == [0.5, -1.0, 0.1, 0.9]  # the newest first, each payload in its order
    assert rewards(find(order="asc")) == [0.1, 0.9, 0.5, -1.0]
    assert rewards(find(sort="reward")) == [0.9, 0.5, 0.1, -1.0]
    assert rewards(find(sort="reward", order="asc", model=model["id"])) == [-1.0, 0.1, 0.5, 0.9]
    assert rewards(find(job=job)) == [0.1, 0.9] and rewards(find(log=log)) == [0.5, -1.0]
    assert rewards(find(split="eval", step=5)) == [-1.0] and rewards(find(split="train")) == [0.1, 0.9]
    assert rewards(find(step=3)) == [0.5, 0.1]
    assert rewards(find(reward_min=0.1, reward_max=0.5)) == [0.5, 0.1]
    assert rewards(find(**{"metadata.task": "a"})) == [0.1]
    assert rewards(find(**{"metadata.seed": "7", "metadata.ok": "true"})) == [0.1]
    assert rewards(find(**{"metric.length.min": "6"})) == [0.9] and rewards(find(**{"metric.length.max": "6"})) == [0.1]
    assert rewards(find(**{"metric.solved.min": "1"})) == [0.9]
    assert rewards(find(model="team/project/agent")) == rewards(find())
    assert rewards(find(job=job, group=1)) == []


@BOTH
@pytest.mark.parametrize("sort", ["time", "reward"])
@pytest.mark.parametrize("order", ["asc", "desc"])
def test_pages_have_each_trajectory_once(post_job, index_all, find, sort, order):
    for number in range(3):
        post_job(*(group(*(answered(float(place % 3), str(number)) for place in range(3))) for _ in range(2)))
    index_all()
    whole = [item["id"] for item in find(sort=sort, order=order, limit=100)["data"]]
    assert len(set(whole)) == 18
    seen, after = [], None
    while True:
        page = find(sort=sort, order=order, limit=4, **({"after": after} if after else {}))
        seen += [item["id"] for item in page["data"]]
        after = page["last_id"]
        if not page["has_more"]:
            break
    assert seen == whole


def test_a_trajectory_is_returned_as_it_was_sent(post_job, index_all, find, http):
    sent = [answered(0.0, "näïve \U0001f600"), answered(1.0, 'a "quoted" ] } text', metadata={"k": None})]
    post_job(group(answered(0.5), answered(0.25)), group(*sent))
    index_all()
    for index, expected in enumerate(sent):
        item = find(group=1, job=find()["data"][0]["job_id"])["data"][index]
        got = http.get(f"{LIST}/{item['id']}").json()
        assert got["trajectory"] == expected and got["reward"] == expected["reward"]
        assert got["group_statistics"]["reward_mean"] == 0.5 and got["group_statistics"]["size"] == 2


def test_the_counts_of_a_trajectory_are_those_of_its_turns(post_job, index_all, find):
    call = {"id": "1", "type": "function", "function": {"name": "add", "arguments": "{}"}}
    tool = choice(message={"role": "assistant", "content": None, "tool_calls": [call, call]}, policy_version=2)
    turns = [{"role": "user", "content": "?"}, tool, {"role": "tool", "content": "7", "tool_call_id": "1"}]
    further = [{"role": "user", "content": "!"}, choice((300, 424), policy_version=5)]
    long = trajectory(1.0, messages_and_choices=turns, additional_histories=[{"messages_and_choices": further}])
    post_job(group(long, answered(0.0)))
    index_all()
    first = find()["data"][0]
    assert (first["num_turns"], first["num_tokens"], first["num_tool_calls"]) == (2, 5, 2)
    assert (first["first_version"], first["last_version"]) == (2, 5)


def test_exchanges_count_as_turns_of_the_policy_alone(post_log, index_all, find, http):
    def exchange(model, **response):
        request = {"model": model, "messages": [{"role": "user", "content": "Add the numbers."}]}
        times = {"start_time": "2026-01-01T00:00:00Z", "end_time": "2026-01-01T00:00:01Z"}
        return {"request": request, "response": response, **times}

    own = exchange("team/project/agent:step4", choices=[choice((1, 2, 3))])
    judge = exchange("judge", choices=[choice((1, 2, 3, 4, 5))])
    answer = {"output": [{"type": "function_call"}], "token_generations": [{"token_ids": [1, 2], "policy_version": 6}]}
    responses = exchange("team/project/agent", **answer)
    rollout = {"exchanges": {"chat_completions": [own, judge], "responses": [responses]}, "reward": 0.5}
    post_log(group(rollout))
    index_all()
    [item] = find()["data"]
    assert (item["num_turns"], item["num_tokens"], item["num_tool_calls"]) == (2, 5, 1)
    assert (item["first_version"], item["last_version"]) == (4, 6)
    assert http.get(f"{LIST}/{item['id']}").json()["trajectory"] == rollout
    assert find(text="add the NUMBERS")["data"][0]["excerpt"]["match"] == "Add the numbers"


@BOTH
def test_rollouts_that_failed_are_found_with_their_error(post_log, index_all, find, http):
    failed = {"type": "TimeoutError", "message": "took \0 too long", "metadata": {"task": 3}}
    post_log(group(answered(0.5, version=5), exceptions=[failed]), split="eval")
    post_log(group(exceptions=[{"message": "no version", "policy_version": 5}]), split="eval")
    index_all()
    page = find(split="eval", step=5, errors=True)
    assert [item["error"] for item in page["data"]] == [
        "no version",
        "TimeoutError: took \N{REPLACEMENT CHARACTER} too long",
    ]
    assert rewards(page) == [None, None] and rewards(find(sort="reward")) == [0.5]
    assert find(**{"metadata.task": "3"})["data"] == page["data"][1:]
    assert http.get(f"{LIST}/{page['data'][1]['id']}").json()["trajectory"] == failed


def test_a_text_is_found_in_parts_with_progress(post_job, index_all, find, monkeypatch):
    monkeypatch.setattr("tandem.serve.trajectories.text_search.BUDGET_BYTES", 1)  # one trajectory per request
    post_job(group(answered(0.1, "the needle is here"), answered(0.9, "the NEEDLE too"), answered(0.0, "hay")))
    post_job(group(answered(0.15, "hay"), answered(0.0, 'an escaped \\ needle\n"quoted"')))
    index_all()
    found, parts, after = [], 0, None
    while True:
        page = find(text="needle", reward_max=0.2, **({"after": after} if after else {}))
        found += page["data"]
        parts += 1
        if not page["has_more"]:
            break
        after = page["last_id"]
        assert page["progress"] == {"searched": parts, "of": 4, "unreadable": 0}
    assert page["progress"]["searched"] == page["progress"]["of"] == 4 and parts >= 4
    assert rewards({"data": found}) == [0.0, 0.1]
    assert found[1]["excerpt"] == {
        "place": "turn 1, assistant", "before": "the ", "match": "needle", "after": " is here"
    }  # fmt: skip
    assert rewards(find(text='needle\n"quoted', limit=1)) in ([], [0.0])


def test_a_search_ends_at_its_limit_and_continues(post_job, index_all, find):
    post_job(group(*(answered(float(n), "needle") for n in range(5))))
    index_all()
    first = find(text="needle", limit=2)
    rest = find(text="needle", after=first["last_id"])
    assert rewards(first) == [0.0, 1.0] and first["has_more"]
    assert rewards(rest) == [2.0, 3.0, 4.0] and not rest["has_more"]


@pytest.mark.parametrize(
    ("query", "place"),
    [
        ({"colour": "red"}, "query.colour"),
        ({"metadata.": "x"}, "query.metadata."),
        ({'metadata.a"b': "x"}, 'query.metadata.a"b'),
        ({"metric.length": "3"}, "query.metric.length"),
        ({"metric.length.min": "nan"}, "query.metric.length.min"),
        ({"reward_min": "inf"}, "query.reward_min"),
        ({"group": 1}, "query.group"),
        ({"text": "x", "sort": "reward"}, "query.sort"),
        ({"after": "nothing"}, "query.after"),
        ({"sort": "colour"}, "query.sort"),
        ({"step": -1}, "query.step"),
    ],
)
def test_what_isnt_a_filter_is_refused_with_its_name(http, model, query, place):
    answer = http.get(LIST, params=query)
    assert answer.status_code == 422 and answer.json()["error"]["param"] == place


def test_what_other_entities_own_isnt_found(post_job, index_all, find, http, services):
    job = post_job(group(answered(0.0), answered(1.0)))
    index_all()
    id = find()["data"][0]["id"]
    other = {"Authorization": f"Bearer {create_key(services.store, 'x', 'others')}"}
    assert http.get(LIST, headers=other).json()["data"] == []
    for path in (f"{LIST}/{id}", f"/v1/preview/training-jobs/{job}/groups", f"{LIST}?job={job}"):
        assert http.get(path).status_code == 200 and http.get(path, headers=other).status_code == 404
    infer = {"Authorization": f"Bearer {create_key(services.store, 'x', 'team', 'infer')}"}
    assert http.get(f"{LIST}/{id}", headers=infer).status_code == 403


@pytest.mark.parametrize("id", ["x", "0" * 36 + ".0.0", "00000000-0000-0000-0000-000000000000.0.0", "..", "%2e%2e"])
def test_an_unknown_id_is_a_404(http, model, id):
    assert http.get(f"{LIST}/{id}").status_code == 404


def test_groups_come_with_their_rewards_worst_first(post_job, index_all, http, store, claim, model):
    job = post_job(
        group(answered(0.5), answered(0.7)),
        group(answered(1.0), answered(1.0)),
        group(answered(-1.0), answered(0.8)),
        group(answered(0.0)),
        group(exceptions=[{"message": "all failed"}]),
    )
    index_all()
    path = f"/v1/preview/training-jobs/{job}/groups"

    def order(**query):
        return [item["group"] for item in http.get(path, params=query).json()["data"]]

    assert order() == [2, 3, 0, 1, 4] and order(sort="best") == [1, 0, 3, 2, 4]
    assert order(sort="spread")[:2] == [2, 0] and order(sort="order") == [0, 1, 2, 3, 4]
    first = http.get(path, params={"limit": 2}).json()
    assert first["total"] == 5 and first["has_more"]
    assert order(after=first["last_id"]) == [0, 1, 4]
    items = {item["group"]: item for item in http.get(path).json()["data"]}
    assert items[2]["reward_mean"] == pytest.approx(-0.1) and items[2]["reward_std_dev"] == pytest.approx(0.9)
    assert [one["reward"] for one in items[2]["rewards"]] == [-1.0, 0.8] and items[2]["trained"] is None
    assert [items[n]["reason"] for n in range(5)] == [None, "equal_rewards", None, "alone_in_group", "empty"]
    assert items[4]["num_failed"] == 1 and items[4]["size"] == 0 and items[4]["reward_mean"] is None
    assert http.get(path, params={"colour": 1}).status_code == 422
    of_version = f"/v1/preview/models/{model['id']}/groups"
    assert http.get(of_version, params={"step": 1}).json()["job_id"] is None  # not trained yet
    claimed = claim()
    store.claims.complete(claimed, PolicyVersion(model["id"], 1, "d" * 64), {})
    made = http.get(of_version, params={"step": 1, "limit": 1}).json()
    assert made["job_id"] == job and made["data"][0]["trained"] is True


def test_a_supervised_job_says_that_it_has_no_groups(http, model, services, find):
    rows = json.dumps({"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]})
    dataset = http.post("/v1/preview/datasets", content=rows).json()
    body = {"model_id": model["id"], "training_data_url": dataset["url"]}
    job = http.post("/v1/preview/sft-training-jobs", json=body).json()["id"]
    page = http.get(f"/v1/preview/training-jobs/{job}/groups").json()
    assert page["data"] == [] and "dataset" in page["notes"][0]
    assert any("supervised" in note for note in find()["notes"])
