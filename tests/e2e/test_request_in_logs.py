"""One id leads through the logs of all processes."""

import uuid

from helpers import PROMPT, events_until_end, inference_name, register, roll_out
from waiting import wait_until

from tandem.cluster.processes.process_log import logs_directory


def processes_that_log(word):
    """The processes whose logs have lines with this word, by the third word of a line."""
    lines = [line for file in logs_directory().glob("worker-*.err") for line in file.read_text().splitlines()]
    return {line.split()[3] for line in lines if word in line and len(line.split()) > 3}


def test_the_id_of_a_request_is_in_the_lines_of_every_process_that_works_for_it(service, http):
    openai, model = service.openai(), register(http)
    asked, posted = f"ask-{uuid.uuid4()}", f"post-{uuid.uuid4()}"
    openai.chat.completions.create(
        model=inference_name(model),
        messages=[{"role": "user", "content": PROMPT}],
        max_tokens=4,
        extra_headers={"x-request-id": asked},
    )
    wait_until(lambda: "engine" in processes_that_log(asked))
    assert processes_that_log(asked) & {"api", "gateway"}

    groups = [{"trajectories": roll_out(openai, inference_name(model), 4)}]
    body = {"model_id": model["id"], "trajectory_groups": groups}
    answer = http.post("/preview/training-jobs", json=body, headers={"x-request-id": posted})
    assert answer.headers["x-request-id"] == posted
    job_id = answer.json()["id"]
    assert events_until_end(http, job_id)[-1]["type"] == "training_ended"
    everywhere = {"api", "preparation", "coordinator", "learner"}
    wait_until(lambda: processes_that_log(posted) >= everywhere)
    assert processes_that_log(job_id) >= everywhere
