"""A stand-in for the view of the service's processes on Ray, with states that tests set."""

from tandem.serve.observing.cluster_state import BaseEngines, Life, Replica

BASE = "tandem/tiny"


def answer(**changes):
    """What a replica that works says about itself. `load` changes its load."""
    load = {
        "num_unfinished": 3,
        "num_running": 2,
        "num_waiting": 1,
        "kv_usage": 0.25,
        "prefix_hit_rate": 0.5,
        "adapters": [],
        "adapter_capacity": 16,
        "slots": 4,
        "slots_used": 1,
        "is_asleep": False,
    }
    load |= changes.pop("load", {})
    counts = {"prompt_tokens": 50, "sampled_tokens": 20, "prefix_queries": 50, "prefix_hits": 25, "preemptions": 0}
    return {
        "started_at": 1_700_000_000.0,
        "device": "cpu",
        "error": None,
        "load": load,
        "counts": counts,
        "max_model_len": 1024,
        "max_num_seqs": 64,
        "dtype": "float32",
        "kv_tokens": 65536,
        "gpu_memory": None,
        "plan": None,
        **changes,
    }


def replica(id="r1", condition="running", said="default", node="10.0.0.1"):
    """A replica; `said` is its answer, None for one that doesn't."""
    return Replica(id, node, condition, 1_700_000_000.0, answer() if said == "default" else said)


def engines(*replicas, wanted=None, fault=None, ended=()):
    return BaseEngines(wanted or len(replicas), fault, replicas, ended)


def life(replica="r0", ending="died", reason="The vLLM engine core of tandem/tiny died. Out of memory at /secret"):
    return Life(BASE, replica, "10.0.0.1", 1_700_000_000.0, 1_700_000_100.0, ending, reason)


def learner(rank=0, measured="default", node="10.0.0.1"):
    known = {"device": "cpu", "tokens_per_s": 1500.0, "mfu": None, "memory": None}
    found = known if measured == "default" else measured
    return {"rank": rank, "node": node, "pid": 7, "gpus": [], "measured": found}


def learners(*of_group, publish_s=(), **status):
    known = {
        "running_jobs": [],
        "running_runs": [],
        "learners_running": True,
        "waiting_for": None,
        "last_error": None,
        "alarm": None,
    }
    return {"status": known | status, "learners": list(of_group), "publish_s": list(publish_s)}


class FakeView:
    """A `ClusterView`. A test sets what each question finds."""

    def __init__(self):
        self.found_engines = {BASE: engines(replica())}
        self.found_learners = {BASE: learners(learner())}
        self.pages = {}

    async def engines(self):
        return self.found_engines

    async def learners(self):
        return self.found_learners

    async def metric_pages(self):
        return self.pages
