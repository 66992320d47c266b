"""A job with traces, trained on the tiny model, and one whose trajectory has 100,000 tokens."""

import numpy as np
from serve_fakes import TextModel
from traced_jobs import train

from tandem.cluster.artifacts import traces_key
from tandem.cluster.jobs.job import PolicyVersion
from tandem.rl.tokens.trained_turns import TrainedTurn
from tandem.rl.traces.group_trace import SequenceTrace
from tandem.rl.traces.trace_file import write_traces
from tandem.serve.store.tables.training import ModelRow
from tandem.serve.trajectories.indexing import index_next

MODELS, JOBS = "/v1/preview/models", "/v1/preview/training-jobs"
STEP = 12
NUM_LONG = 100_000
HOSTILE = "<img src=x onerror=alert(1)> \u202eevil\u202c \x07<script>alert(2)</script>"
ODD = -30.0
"""The sampling logprob of one token, so that its mismatch is the largest by far."""
TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}


def sampled(text, odd=None, logprob=-1.0, **message):
    """A choice with the tokens of a text. `odd`: the index of the token with the odd logprob."""
    tokenizer = TextModel().tokenizer
    ids = [*tokenizer.encode(text), tokenizer.convert_tokens_to_ids("<|im_end|>")]
    content = [
        {"token": f"token_id:{id_}", "logprob": ODD if at == odd else logprob, "bytes": None, "top_logprobs": []}
        for at, id_ in enumerate(ids)
    ]
    return {
        "finish_reason": "stop",
        "index": 0,
        "logprobs": {"content": content},
        "message": {"role": "assistant", "content": text, **message},
        "token_ids": ids,
        "policy_version": STEP - 1,
    }


def episode(reward, first, second, **more):
    """Two turns with a tool's result between them."""
    return {
        "messages_and_choices": [
            {"role": "system", "content": "Use the tool."},
            {"role": "user", "content": "1 + 6 = ?"},
            first,
            {"role": "tool", "tool_call_id": "call_1", "content": '{"sum": 7, "steps": [1, 6]}'},
            second,
        ],
        "tools": [TOOL],
        "reward": reward,
        **more,
    }


def groups():
    ask = "add 1 6 ☃"
    best = [
        episode(1.0, sampled(ask), sampled("seven\nis right", odd=2), metrics={"correct": 1, "length": 3}),
        episode(0.5, sampled(ask), sampled("7"), metadata={"note": HOSTILE}),
        episode(0.0, sampled(ask), sampled("eight"), metrics={"correct": 0, "length": 1}),
    ]
    worst = [
        episode(0.25, sampled(ask), sampled("six, perhaps"), metrics={"correct": 0}),
        episode(-1.0, sampled(ask), sampled(HOSTILE[:30]), metrics={"correct": 0, "refused": 1}),
    ]
    equal = [episode(0.75, sampled(ask), sampled("seven")), episode(0.75, sampled(ask), sampled("7"))]
    return [{"trajectories": best}, {"trajectories": equal}, {"trajectories": worst}]


def claim_own(store, base_model, job_id):
    """Claim a job, which must be the next one."""
    claim = store.claims.claim_next(base_model, "token-seeding", 600)
    assert claim.id == job_id, "an earlier function left a job open"
    return claim


def seed_tokens(served):
    http, store = served.http("train"), served.store
    base = served.services.base_models[0]
    model = http.post(MODELS, json={"project": "tokens", "name": "agent", "base_model": base}).json()
    with store.database.write() as session:
        session.query(ModelRow).filter_by(id=model["id"]).one().next_step = STEP

    def post(trajectory_groups):
        body = {"model_id": model["id"], "trajectory_groups": trajectory_groups, "experimental_config": {}}
        response = http.post(JOBS, json=body)
        assert response.status_code == 200, response.text
        return response.json()["id"]

    job = post(groups())
    train(served.services, claim_own(store, base, job))
    pair = [episode(reward, sampled("a"), sampled(text)) for reward, text in ((1.0, "b"), (0.0, "c"))]
    long = post([{"trajectories": pair}])
    claim = claim_own(store, base, long)
    served.services.artifacts.write_blob(
        traces_key(claim.id, claim.attempt), write_traces([(0, [long_trace()])], "rl", {})
    )
    store.claims.complete(claim, PolicyVersion(model["id"], claim.next_step, f"{claim.next_step:064x}"), {})
    while index_next(store, served.services.artifacts, served.services.config):
        pass
    return {"model": model, "job": job, "long": long}


def long_trace():
    """Many turns, of which every second token is trained, with one clear mismatch near the end."""
    random = np.random.default_rng(0)
    ids = random.integers(0, 420, NUM_LONG).astype(np.int32)
    mask = np.arange(NUM_LONG) % 1000 >= 500
    learner = np.where(mask, -random.exponential(1.0, NUM_LONG), np.nan).astype(np.float32)
    sampling = (learner + random.normal(0, 0.01, NUM_LONG)).astype(np.float32)
    sampling[99_700] = learner[99_700] - 9
    turns = tuple(TrainedTurn(begin + 500, 500, index, 11) for index, begin in enumerate(range(0, NUM_LONG, 1000)))
    return SequenceTrace(0, 0, 11, 0, 1.25, 1.0, turns, ids, mask, sampling, learner)
