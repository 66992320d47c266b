"""Almost every rejection of a corrupted body names the corrupted field, with every index on the way to it."""

import copy
import json
import re
from collections import Counter

import pytest
from serve_fakes import choice, groups

from tandem.serve.keys import create_key

MODELS, JOBS, KEYS = "/v1/preview/models", "/v1/preview/training-jobs", "/v1/preview/keys"
CONFIGS, USER_JOBS = "/v1/team/training-job-configs", "/v1/team/training-jobs"
THRESHOLD = 0.95
JUNK = (
    None,
    True,
    -1,
    1.5,
    10**30,
    1e300,
    "",
    "x",
    "\x00",
    "é" * 5000,
    [],
    [[]],
    {},
    {"": None},
    {"type": "x"},
    [None],
)
LEFT_OUT = object()
ROW = {
    "config_name": "named",
    "config_desc": "of this test",
    "worker_server_num": 1,
    "app_url": "/usr/app/",
    "boot_file_url": "/usr/app/boot.py",
    "parameter": [{"label": "a", "value": "1"}, {"label": "b", "value": "2"}],
    "spec_id": 1,
    "data_source": [{"type": "obs", "data_url": "/usr/a/"}, {"type": "obs", "data_url": "/usr/b/"}],
    "engine_id": 1,
    "train_url": "/usr/train/",
    "log_url": "/usr/log/",
}
ALGORITHM = {
    "worker_server_num": 1,
    "model_id": 1,
    "spec_id": 0,
    "data_url": "/bucket/groups.jsonl",
    "parameter": [{"label": "model_name", "value": "agent"}, {"label": "learning_rate", "value": 0.001}],
}
TURNS = [
    {"role": "system", "content": [{"type": "text", "text": "Calculate."}]},
    {"role": "user", "content": "1 + 6 = ?"},
    {
        "role": "assistant",
        "tool_calls": [{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
    },
    {"role": "tool", "tool_call_id": "1", "content": "7"},
    choice(),
]
TRAJECTORY = {
    "messages_and_choices": TURNS,
    "reward": 1.0,
    "metrics": {"right": 1},
    "metadata": {"note": "x"},
    "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}],
    "additional_histories": [{"messages_and_choices": copy.deepcopy(TURNS)}],
}
OPTIONS = {
    "learning_rate": 1e-5,
    "loss_fn": "ppo",
    "epsilon": 0.2,
    "kl_penalty_coef": 0.1,
    "packed_sequence_length": 64,
}


def job(model):
    other = {"reward": 0.5, "messages_and_choices": copy.deepcopy(TURNS[:2])}
    two = [*groups(), {"trajectories": [other, TRAJECTORY]}]
    return {"model_id": model["id"], "trajectory_groups": two, "experimental_config": OPTIONS}


def places(value, place=()):
    if place:
        yield place
    for key, item in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from places(item, (*place, key))


def spoilt(body, place, junk):
    body = copy.deepcopy(body)
    holder = body
    for key in place[:-1]:
        holder = holder[key]
    if junk is LEFT_OUT:
        del holder[place[-1]]
    else:
        holder[place[-1]] = junk
    return body


def is_named(answer, place):
    """Return True if the answer names the place, or one below it."""
    start = list(map(str, place))
    if "is_success" in answer:
        dotted = re.sub(r"\[(\d+)\]", r".\1", answer["error_message"])
        return re.search(rf"(?<![\w.]){re.escape('.'.join(start))}(?!\w)", dotted.replace("body.", "")) is not None
    named = [fault["loc"] for fault in answer.get("detail", ())] + [str(answer["error"]["param"]).split(".")]
    return any(list(map(str, loc[1:]))[: len(start)] == start for loc in named)


@pytest.fixture
def count(http, store, engine):
    """A function that sends spoilt bodies and counts rejections that name the place, and those that don't."""
    http.headers["Authorization"] = f"Bearer {create_key(store, 'admin', 'team', 'admin')}"
    engine.answers({"choices": []})

    def count(method, path, body, step=1):
        found, unnamed = Counter(), []
        requests = [(place, junk) for place in places(body) for junk in (*JUNK, LEFT_OUT)]
        for place, junk in requests[::step]:
            response = http.request(method, path, content=json.dumps(spoilt(body, place, junk)))
            assert response.status_code < 500, (place, junk, response.text)
            if response.status_code in (400, 422):
                named = is_named(response.json(), place)
                found[named] += 1
                unnamed += [] if named else [(place, str(junk)[:20], response.text[:300])]
            elif response.status_code == 200 and path == JOBS:
                http.post(f"{JOBS}/{response.json()['id']}/cancel")  # the queue has a limit
        return found, unnamed

    return count


def test_rejections_name_the_place(count, model, http):
    body = {"project": "project", "name": "other", "base_model": "tandem/tiny", "entity": "team"}
    requests = [
        ("POST", JOBS, job(model), 13),
        ("POST", f"{MODELS}/{model['id']}/log", {**job(model), "split": "val", "experimental_config": LEFT_OUT}, 41),
        ("POST", MODELS, body, 1),
        ("DELETE", f"{MODELS}/{model['id']}/checkpoints", {"steps": [1, 2]}, 1),
        ("POST", KEYS, {"name": "x", "role": "infer"}, 1),
        ("POST", CONFIGS, ROW, 5),
        ("POST", USER_JOBS, {"job_name": "x", "config": {k: v for k, v in ROW.items() if k[:7] != "config_"}}, 5),
        ("POST", USER_JOBS, {"job_name": "x", "config": ALGORITHM}, 3),
    ]
    total, unnamed = Counter(), []
    for method, path, sent, step in requests:
        sent = {key: value for key, value in sent.items() if value is not LEFT_OUT}
        found, missed = count(method, path, sent, step)
        total += found
        unnamed += missed
        print(path, dict(found))
    assert total[True] >= 250
    assert total[True] / total.total() >= THRESHOLD, "\n".join(map(str, unnamed))
