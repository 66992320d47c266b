"""The service on GPUs that Ray believes to have: a learner beside the engine, which is lost in the middle of a job."""

import psutil
import pytest
from helpers import events_until_end, inference_name, post_job, register, roll_out
from openai import OpenAI
from ray_nodes import RayNodes, wait_for
from service_process import ServiceProcess
from test_service_on_nodes import RECOVERY_S, get, post_long_job, steps_so_far

pytestmark = pytest.mark.slow

SETTINGS = {
    "TANDEM_BASE_MODELS": """[{
        "name": "tandem/tiny", "path": "builtin:tiny", "max_model_len": 1024,
        "learners": {"count": 2, "num_cpus": 0.5}, "engine": {"kv_cache_memory_bytes": 67108864}
    }]"""
}
JOBS = "/preview/training-jobs"


@pytest.fixture(scope="module")
def nodes(tiny_model, tmp_path_factory):
    """A head, and a node with two GPUs for two learners and an engine."""
    with RayNodes(tmp_path_factory.mktemp("ray")) as nodes:
        nodes.add(num_cpus=3, num_gpus=2)
        yield nodes


@pytest.fixture(scope="module")
def service(nodes, tmp_path_factory):
    with ServiceProcess(tmp_path_factory.mktemp("tandem"), SETTINGS | nodes.env) as service:
        service.key = service.create_key()
        service.start()
        yield service


def test_a_job_whose_learner_ends_with_its_engine_has_another_attempt(nodes, service):
    openai = OpenAI(base_url=f"{service.url}/v1", api_key=service.key, timeout=120, max_retries=0)
    with service.http(service.key, timeout_s=120) as http:
        model = register(http, "agent")
        first = post_job(http, model, roll_out(openai, inference_name(model)))
        assert events_until_end(http, first, RECOVERY_S)[-1]["type"] == "training_ended"
        # Serve notices the loss, and releases the room of both, within seconds; the job must take longer.
        job = post_long_job(http, model, roll_out(openai, inference_name(model)), num_groups=1000)
        wait_for("a gradient step", lambda: steps_so_far(http, job), RECOVERY_S, poll_s=0.05)
        [engine] = [p for p in psutil.process_iter() if is_engine(p) and is_in(p, nodes)]
        engine.kill()
        wait_for("the end of the job", lambda: get(http, f"{JOBS}/{job}")["ended_at"], RECOVERY_S)
        found = get(http, f"{JOBS}/{job}")
        assert (found["state"], found["attempt"]) == ("succeeded", 2), found


def is_engine(process):
    return "ray::ServeReplica:tandem:engine" in " ".join(process.cmdline())


def is_in(process, nodes):
    return any(parent.pid in raylets(nodes) for parent in process.parents())


def raylets(nodes):
    return {info.process.pid for node in nodes.workers for infos in node.all_processes.values() for info in infos}
