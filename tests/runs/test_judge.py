"""Runs whose rewards come from a judge."""

import json

import pytest
from model_endpoint import Endpoint, running
from starlette.responses import JSONResponse

from tandem.runs.errors import RolloutsFailedError, TaskFileError


class JudgeEndpoint(Endpoint):
    """Scores each trajectory by its place: 1/n, 2/n, ... or gives scripted answers."""

    text = None

    async def answer(self, request):
        body = json.loads(await request.body())
        self.requests.append(body)
        ids = body["response_format"]["json_schema"]["schema"]["required"]
        scores = {id: {"score": int(id) / len(ids), "explanation": f"place {id}"} for id in ids}
        message = {"role": "assistant", "content": self.text or json.dumps(scores)}
        choice = {"index": 0, "finish_reason": "stop", "message": message}
        head = {"id": "c", "created": 1, "object": "chat.completion", "model": "j"}
        return JSONResponse({**head, "choices": [choice]})


@pytest.fixture
def judge(monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", "k")
    with running(JudgeEndpoint()) as endpoint:
        yield endpoint


@pytest.fixture
def judged(judge, task_file):
    """Write a task with this judge."""

    def judged(**options):
        section = {"model": "judge", "url": f"{judge.url}/v1", "api_key_variable": "JUDGE_KEY", **options}
        return task_file("TwoTurns", judge=section, training={"jobs": 1}, rollouts={"share_requests": False})

    return judged


def test_scores_are_the_rewards(service, judge, judged, do_run):
    report = do_run(judged(rubric="- Prefer the last.", sampling={"chat_template_kwargs": {"thinking": False}}))
    groups = [group["trajectories"] for group in service.jobs[0].body["trajectory_groups"]]
    assert [[t["reward"] for t in group] for group in groups] == [[1.0, 1.0]] * 2  # equal conversations, equal scores
    assert groups[0][0]["logs"] == ["The judge judge: place 1"]
    [row] = report.rows
    assert row["reward/mean"] == row["environment/judge_score"] == 1.0
    assert "environment/environment_reward" in row
    assert "- Prefer the last." in judge.requests[0]["messages"][0]["content"]
    assert judge.requests[0]["temperature"] == 0
    assert judge.requests[0]["chat_template_kwargs"] == {"thinking": False}


def test_scores_are_weighed_and_added(service, judged, do_run):
    do_run(judged(weight=0.5, add_to_reward=True))
    trajectories = service.jobs[0].trajectories
    assert [t["reward"] - t["metrics"]["environment_reward"] for t in trajectories] == [0.5] * 4


def test_a_judge_of_the_service_is_asked_there(service, task_file, do_run):
    """The scripted service answers without JSON, so the run ends with the name of judge and group."""
    path = task_file(judge={"model": "tandem/tiny", "attempts": 2}, training={"jobs": 1})
    with pytest.raises(
        RolloutsFailedError, match=r"The judge tandem/tiny of Group \d of batch 0 gave no usable scores"
    ):
        do_run(path)
    asked = [body for body in service.completion_bodies if body["model"] == "tandem/tiny"]
    assert len(asked) == 2 * 2 * 3  # groups, answers, attempts of a group
    assert service.jobs == []


def test_a_key_that_is_missing_is_a_mistake_of_the_task(judged, do_run):
    with pytest.raises(TaskFileError, match="NO_SUCH_KEY"):
        do_run(judged(api_key_variable="NO_SUCH_KEY"))
