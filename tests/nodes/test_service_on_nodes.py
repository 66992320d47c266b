"""The service on several nodes: one node dies in the middle of a job, and another joins."""

import time

import httpx
import pytest
from helpers import PROMPT, events_until_end, inference_name, post_job, register, roll_out
from openai import OpenAI, OpenAIError
from ray_nodes import RayNodes, wait_for
from service_process import ServiceProcess

pytestmark = pytest.mark.slow

SETTINGS = {
    "TANDEM_BASE_MODELS": """[{
        "name": "tandem/tiny", "path": "builtin:tiny", "max_model_len": 1024,
        "learners": {"count": 2, "placement": "STRICT_SPREAD", "num_cpus": 0.5},
        "engine": {"replicas": 2, "max_replicas_per_node": 1, "kv_cache_memory_bytes": 67108864}
    }]""",
    "TANDEM_COORDINATOR__LEASE_S": "10",
}
RECOVERY_S = 500.0  # a bound; on an idle machine about a minute
JOBS = "/preview/training-jobs"
SAME = 1e-4  # float32 logprobs of the same tokens from another process


@pytest.fixture(scope="module")
def nodes(tiny_model, tmp_path_factory):
    """A head, and two nodes with room for one engine and one learner each."""
    with RayNodes(tmp_path_factory.mktemp("ray")) as nodes:
        for _ in range(2):
            nodes.add(num_cpus=2)
        yield nodes


@pytest.fixture(scope="module")
def service(nodes, tmp_path_factory):
    """`tandem up` on the head of a cluster."""
    with ServiceProcess(tmp_path_factory.mktemp("tandem"), SETTINGS | nodes.env) as service:
        service.key = service.create_key()
        service.start()
        yield service


@pytest.fixture(scope="module")
def http(service):
    with service.http(service.key, timeout_s=120) as client:
        yield client


@pytest.fixture(scope="module")
def openai(service):
    return OpenAI(base_url=f"{service.url}/v1", api_key=service.key, timeout=120, max_retries=0)


@pytest.fixture(scope="module")
def model(http):
    return register(http, "agent")


def ask(openai, name):
    """Return the engine replica that answered, its version and tokens, and the logprobs."""
    messages = [{"role": "user", "content": PROMPT}]
    raw = openai.chat.completions.with_raw_response.create(model=name, messages=messages, max_tokens=8, temperature=0)
    [choice] = raw.parse().choices
    tokens, logprobs = zip(*((t.token, t.logprob) for t in choice.logprobs.content), strict=True)
    return raw.headers["x-engine-replica"], (raw.headers["x-policy-version"], tokens), logprobs


def ask_each_replica(openai, name, num=2):
    """Ask until `num` replicas have answered, assert that they agree, and return their logprobs."""
    answers = {}

    def found():
        if (answer := try_to_ask(openai, name)) is not None:
            replica, what, logprobs = answer
            answers[replica] = what, logprobs
        return len(answers) == num and answers

    wait_for(f"an answer of {num} replicas", found, RECOVERY_S, poll_s=0)
    (what, logprobs), *others = answers.values()
    for other_what, other_logprobs in others:
        assert other_what == what
        assert other_logprobs == pytest.approx(logprobs, abs=SAME)
    return {replica: logprobs for replica, (_, logprobs) in answers.items()}


def test_engines_and_learners_are_spread_over_the_nodes(nodes, http, openai, model):
    train(http, openai, model)
    for part in ("LearnerWorker", "engine-tandem-tiny"):
        assert sorted(nodes.actors(part)) == sorted(node.node_id for node in nodes.workers), part


def test_each_replica_answers_for_each_version_with_the_same_logprobs(http, openai, model):
    train(http, openai, model)
    by_version = [ask_each_replica(openai, inference_name(model, step)) for step in (0, 1, 2)]
    assert by_version[0].keys() == by_version[1].keys() == by_version[2].keys(), "the same two replicas"
    answers = [next(iter(of_version.values())) for of_version in by_version]
    assert answers[0] != pytest.approx(answers[1], abs=SAME), "versions differ, so the test tells them apart"
    assert answers[1] != pytest.approx(answers[2], abs=SAME)


def test_a_job_survives_a_lost_node_and_resumes_when_another_joins(nodes, http, openai, model):
    """The lost node had a learner, an engine and perhaps other replicas of Serve."""
    name = inference_name(model, 1)
    before = ask_each_replica(openai, name)
    job = post_long_job(http, model, roll_out(openai, inference_name(model)))
    wait_for("a gradient step", lambda: steps_so_far(http, job), RECOVERY_S, poll_s=0.05)
    killed_at = time.monotonic()
    nodes.kill(nodes.workers[0])

    said = wait_for("the reason why the job waits", lambda: get(http, f"{JOBS}/{job}")["waiting_for"], RECOVERY_S)
    assert "no room for 2 learners of CPU 0.5, GPU 0 each on nodes of their own" in said
    print(f"{time.monotonic() - killed_at:.0f} s after the kill the job waits for a node")
    left, _, logprobs = wait_for("an answer of the other engine", lambda: try_to_ask(openai, name), RECOVERY_S)
    assert logprobs == pytest.approx(before[left], abs=SAME)
    print(f"{time.monotonic() - killed_at:.0f} s after the kill completions are answered")

    joined, joined_at = nodes.add(num_cpus=2), time.monotonic()
    wait_for("the end of the job", lambda: get(http, f"{JOBS}/{job}")["ended_at"], RECOVERY_S)
    print(f"{time.monotonic() - joined_at:.0f} s after a node has joined the job has ended")
    started, *steps, ended = get(http, f"{JOBS}/{job}/events?limit=1000")["data"]
    assert ended["type"] == "training_ended", ended
    assert [step["type"] for step in steps] == ["gradient_step"] * started["data"]["num_gradient_steps"]
    versions = get(http, f"/preview/models/{model['id']}/versions")["data"]
    assert sorted(version["step"] for version in versions) == [1, 2, 3]
    assert joined.node_id in nodes.actors("LearnerWorker")

    after = ask_each_replica(openai, name)
    print(f"{time.monotonic() - joined_at:.0f} s after a node has joined two engines answer")
    assert joined.node_id in nodes.actors("engine-tandem-tiny")
    assert left in after and len(before.keys() | after.keys()) == 3, "one is new, and has fetched the version"
    for logprobs in after.values():
        assert logprobs == pytest.approx(before[left], abs=SAME)
    ask_each_replica(openai, inference_name(model, 3))


def train(http, openai, model):
    job = post_job(http, model, roll_out(openai, inference_name(model)))
    assert events_until_end(http, job, RECOVERY_S)[-1]["type"] == "training_ended"


def post_long_job(http, model, trajectories, num_groups=100):
    """Post a job of about as many gradient steps."""
    body = {
        "model_id": model["id"],
        "trajectory_groups": [{"trajectories": trajectories}] * num_groups,
        "experimental_config": {"learning_rate": 1e-4, "packed_sequence_length": 256},
    }
    response = http.post(JOBS, json=body)
    assert response.status_code == 200, response.text
    return response.json()["id"]


def steps_so_far(http, job):
    events = get(http, f"{JOBS}/{job}/events?limit=1000")["data"]
    assert all(event["type"] in ("training_started", "gradient_step") for event in events), "it ended before the fault"
    return len(events) > 1


def get(http, path):
    """Return the answer to a GET, with retries while a node is lost."""

    def answer():
        try:
            response = http.get(path, timeout=10)
        except httpx.TransportError:
            return None
        return response if response.status_code == 200 else None

    return wait_for(f"an answer to GET {path}", answer, RECOVERY_S).json()


def try_to_ask(openai, name):
    try:
        return ask(openai.with_options(timeout=10), name)
    except OpenAIError:
        return None
