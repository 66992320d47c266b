"""`serve deploy deploy/serve.yaml` on a fresh Ray head: it starts, answers, and is updated in place while jobs run."""

import threading
import time
import uuid
from contextlib import suppress
from pathlib import Path

import httpx
import pytest
import yaml
from openai import OpenAI, OpenAIError
from paths import ROOT
from ray_head import ray_head

from tandem.cluster.processes.held_ports import hold_port
from tandem.serve.keys import generate_key

pytestmark = pytest.mark.slow

SERVE_YAML = ROOT / "deploy/serve.yaml"
PROMPT = [{"role": "user", "content": "Which is the largest: 3, 17 or 8?"}]
START_S, UPDATE_S = 900.0, 900.0  # usually 1 and 2 minutes; more on a busy machine
ROLLOUT_S = 300.0  # usually a fraction of a second


class Deployment:
    """The service as an operator deploys it: a Serve configuration, the `serve` command, an admin key."""

    def __init__(self, directory, head):
        self._directory, self._head = directory, head
        self.key, key_sha256 = generate_key()
        self._held = hold_port("127.0.0.1")
        port = self._held.getsockname()[1]
        self.config = yaml.safe_load(SERVE_YAML.read_text())
        self.config["http_options"] |= {"host": "127.0.0.1", "port": port}
        self.args = self.config["applications"][0]["args"]
        self.args["base_models"][0]["engine"]["replicas"] = 2
        self.args |= {"admin_key_sha256": key_sha256, "http": {"api_replicas": 2}}
        self.args["coordinator"] = {"stop_grace_s": 1, "lease_s": 10}  # so that an update interrupts a job
        self.url = f"http://127.0.0.1:{port}"

    def deploy(self):
        file = self._directory / "serve.yaml"
        file.write_text(yaml.safe_dump(self.config))
        done = self._head.run("serve", "deploy", str(file))
        assert done.returncode == 0, done.stdout

    def wait_until_running(self, deadline_s):
        """Wait, and return the number of running replicas of each deployment."""
        token = Path(self._head.env["RAY_AUTH_TOKEN_PATH"]).read_text()
        deadline = time.monotonic() + deadline_s
        while True:
            # The data of `serve status`, without the time to start that command.
            url = f"{self._head.dashboard_url}/api/serve/applications/"
            answer = httpx.get(url, headers={"Authorization": f"Bearer {token}"}, timeout=300)
            [application] = answer.raise_for_status().json()["applications"].values()
            if application["status"] == "RUNNING":
                return {
                    name: [replica["state"] for replica in deployed["replicas"]].count("RUNNING")
                    for name, deployed in application["deployments"].items()
                }
            assert application["status"] != "DEPLOY_FAILED" and time.monotonic() < deadline, application
            self.check_known_paths()
            time.sleep(1)

    def check_known_paths(self):
        """Check that no client takes the service for absent while it starts."""
        with suppress(httpx.TransportError):
            assert httpx.get(f"{self.url}/health", timeout=300).status_code != 404

    def http(self):
        return httpx.Client(base_url=f"{self.url}/v1", headers={"Authorization": f"Bearer {self.key}"}, timeout=300)

    def openai(self):
        return OpenAI(base_url=f"{self.url}/v1", api_key=self.key, timeout=ROLLOUT_S, max_retries=0)


class Rollouts(threading.Thread):
    """Requests one completion after the other while the block runs, and records when each was answered."""

    def __init__(self, openai, name):
        super().__init__(daemon=True)
        self._openai, self._name, self._stop_asking = openai, name, threading.Event()
        self.answered, self.failures = [time.monotonic()], []

    def run(self):
        while not self._stop_asking.wait(0.2):
            try:
                self._openai.chat.completions.create(model=self._name, messages=PROMPT, max_tokens=8)
                self.answered.append(time.monotonic())
            except OpenAIError as error:
                self.failures.append(repr(error))

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_):
        self._stop_asking.set()
        self.join(ROLLOUT_S + 30)
        self.answered.append(time.monotonic())

    @property
    def longest_silence_s(self):
        return max(after - before for before, after in zip(self.answered, self.answered[1:], strict=False))


class Trainer(threading.Thread):
    """Keeps two jobs of a model open while the block runs, and repeats each POST until it is answered."""

    def __init__(self, http, model, choices):
        super().__init__(daemon=True)
        self._http, self._stop_posting, self.jobs = http, threading.Event(), []
        trajectories = [
            {"messages_and_choices": [*PROMPT, choice], "reward": float(i % 2)} for i, choice in enumerate(choices)
        ]
        groups = [{"trajectories": trajectories}] * 60  # long enough for an update to interrupt a job
        self._body = {"model_id": model["id"], "trajectory_groups": groups}
        self._body["experimental_config"] = {"learning_rate": 1e-4, "packed_sequence_length": 256}

    def run(self):
        while not self._stop_posting.is_set():
            if sum(state in ("queued", "running") for state in self.states().values()) < 2:
                key = uuid.uuid4().hex
                self.jobs.append(self._send("POST", json=self._body, headers={"Idempotency-Key": key})["id"])
            time.sleep(0.2)

    def states(self):
        return {job: self._send("GET", f"/{job}")["state"] for job in self.jobs[-3:]}

    def _send(self, method, path="", **options):
        deadline = time.monotonic() + UPDATE_S
        while True:
            try:
                response = self._http.request(method, f"/preview/training-jobs{path}", **options)
                if response.status_code < 500:
                    assert response.status_code == 200, response.text
                    return response.json()
            except httpx.TransportError:
                pass
            assert time.monotonic() < deadline
            time.sleep(0.2)

    def __enter__(self):
        self.start()
        deadline = time.monotonic() + START_S
        while "succeeded" not in self.states().values():  # the learners have started
            assert self.is_alive() and time.monotonic() < deadline, self.states()
            time.sleep(0.5)
        return self

    def __exit__(self, failed, *_):
        assert failed or self.is_alive()  # else a POST was rejected; the log of the test has the reason
        self._stop_posting.set()
        self.join(UPDATE_S)
        deadline = time.monotonic() + UPDATE_S
        while set(left := self.states().values()) != {"succeeded"}:
            assert time.monotonic() < deadline, left
            time.sleep(0.5)


@pytest.fixture(scope="module")
def deployment(tmp_path_factory, tiny_model):
    directory = tmp_path_factory.mktemp("deploy")
    with ray_head(directory, num_cpus=4, TANDEM_HOME=str(directory / "home"), OMP_NUM_THREADS="1") as head:
        yield Deployment(directory, head)


def test_it_starts_and_an_update_in_place_loses_no_job_and_interrupts_no_rollouts(deployment, record_property):
    deployment.deploy()
    running = deployment.wait_until_running(START_S)
    assert running == {"api": 2, "coordinator": 1, "engine-tandem-tiny": 2, "job-runner": 1}
    with deployment.http() as http, deployment.http() as own_http, deployment.openai() as openai:
        assert httpx.get(f"{deployment.url}/health", timeout=300).status_code == 200
        deadline = time.monotonic() + START_S
        while httpx.get(f"{deployment.url}/ready", timeout=300).status_code == 503 and time.monotonic() < deadline:
            time.sleep(0.5)
        assert httpx.get(f"{deployment.url}/ready", timeout=300).json() == {"status": "ready", "missing": []}
        # The key of the configuration is an admin key from the start.
        assert http.get("/preview/keys").json()["data"][0]["name"] == "of the configuration"
        body = {"entity": None, "project": "deploy", "name": "m", "base_model": "tandem/tiny", "return_existing": True}
        model = http.post("/preview/models", json=body).json()
        name = f"wandb-artifact:///{model['entity']}/deploy/m"
        completion = openai.chat.completions.create(model=name, messages=PROMPT, n=8, max_tokens=24)
        large = {**body, "project": "p" * 3000}  # too long for a name, not for a request
        assert http.post("/preview/models", json=large).status_code == 422

        choices = [choice.model_dump() for choice in completion.choices]
        with Trainer(own_http, model, choices) as trainer, Rollouts(openai, name) as rollouts:
            before = len(trainer.jobs)
            deployment.args["limits"] = {"max_request_bytes": 2000}
            began = time.monotonic()
            deployment.deploy()
            deployment.wait_until_running(UPDATE_S)
            record_property("seconds of the update", round(time.monotonic() - began))
        record_property("longest time between two completions, seconds", round(rollouts.longest_silence_s, 1))
        record_property("completions answered and failed", f"{len(rollouts.answered) - 2} and {len(rollouts.failures)}")
        record_property("jobs before and in all", f"{before} and {len(trainer.jobs)}")
        record_property("failures", str(rollouts.failures[:3]))
        deadline = time.monotonic() + UPDATE_S
        # The change takes effect once Serve's proxy knows the new replicas.
        while (status := http.post("/preview/models", json=large).status_code) == 422 and time.monotonic() < deadline:
            time.sleep(0.2)
        assert status == 413

        versions = http.get(f"/preview/models/{model['id']}/versions", params={"limit": 100}).json()["data"]
        assert [version["step"] for version in versions] == list(range(1, len(trainer.jobs) + 1))
        for job in trainer.jobs:
            events = http.get(f"/preview/training-jobs/{job}/events", params={"limit": 1000}).json()["data"]
            assert [event["type"] for event in events].count("training_ended") == 1
        assert rollouts.failures == []
