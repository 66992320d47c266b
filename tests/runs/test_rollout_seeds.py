"""Seeds of rollouts: each has its own, and the same run has the same ones again."""

import itertools
import random

import pytest
from scripted_service import ScriptedService

from tandem.runs.seeds import adjacent, turn_seed

SEED_7 = turn_seed(7, "train/0/0/1", 0)


def seeds(service):
    """Return the seed of each choice that the service has sampled, in the order of the requests."""
    return [body["seed"] + index for body in service.completion_bodies for index in range(body.get("n", 1))]


def tokens(service):
    """Return the sampled tokens of each trajectory, by job and group."""
    return [
        [
            [
                [turn["token_ids"] for turn in t["messages_and_choices"] if "token_ids" in turn]
                for t in g["trajectories"]
            ]
            for g in job.body["trajectory_groups"]
        ]
        for job in service.jobs
    ]


@pytest.mark.parametrize("environment", ["Numbered", "TwoTurns"])
@pytest.mark.parametrize("share", [True, False])
def test_no_two_turns_of_a_run_have_the_same_seed(service, task_file, do_run, environment, share):
    sampling = {"share_requests": share, "sampling": {"seed": 7}, "group_size": 4}
    do_run(task_file(environment, rollouts=sampling, training={"jobs": 3}))
    found = seeds(service)
    assert len(found) == len(set(found)) == 3 * 2 * 4 * (2 if environment == "TwoTurns" else 1)
    assert all(not group.count(group[0]) > 1 for job in tokens(service) for group in job)
    assert SEED_7 in found


def test_a_run_has_the_same_rollouts_again_shared_or_not(task_file, tmp_path, service, do_run):
    """Only a strictly on-policy run: which version samples a turn otherwise depends on speed."""
    runs = []
    for share, seed in [(True, 7), (False, 7), (False, 8)]:
        with ScriptedService(seed=random.randrange(10**6)) as service_of_run:
            service.url, service.jobs = service_of_run.url, service_of_run.jobs
            rollouts = {"share_requests": share, "sampling": {"seed": seed}, "group_size": 4}
            name = f"run{len(runs)}"
            path = task_file(
                rollouts=rollouts, training={"jobs": 2, "max_policy_lag": 0}, name=name, output={"directory": name}
            )
            do_run(path, name)
            runs.append(tokens(service_of_run))
    assert runs[0] == runs[1] != runs[2]


def test_a_resumed_run_continues_with_the_seeds_of_an_undisturbed_one(service, task_file, do_run):
    found = []
    for jobs in ([4], [1, 2, 4]):
        with ScriptedService() as service_of_run:
            service.url = service_of_run.url
            for num in jobs:
                path = task_file(rollouts={"sampling": {"seed": 7}}, training={"jobs": num, "max_policy_lag": 0})
                do_run(path, f"run{len(jobs)}")
            found.append(tokens(service_of_run))
    assert found[0] == found[1]


def test_a_seed_of_the_environment_is_varied_too(service, task_file, do_run):
    do_run(task_file("Seeded", training={"jobs": 1}))
    assert len(set(seeds(service))) == 4


def test_without_a_seed_requests_have_none(service, task_file, do_run):
    do_run(task_file(training={"jobs": 1}))
    assert all("seed" not in body for body in service.completion_bodies)


def test_a_group_that_is_rolled_out_again_has_other_seeds(service, task_file, do_run):
    do_run(
        task_file(
            "Failing",
            {"tasks": [3], "times": 2, "late": True},
            rollouts={"sampling": {"seed": 7}},
            training={"jobs": 5},
        )
    )
    found = seeds(service)
    assert len(found) == len(set(found)) == 5 * 4 + 2


def test_evaluations_of_all_versions_have_the_same_seeds(service, task_file, do_run):
    evaluation = {"every": 1, "samples_per_task": 2, "temperature": 1.0, "tasks": 2}
    do_run(task_file(rollouts={"sampling": {"seed": 7}}, training={"jobs": 2}, evaluation=evaluation))
    by_version = {}
    for (model, version), body in zip(service.completions, service.completion_bodies, strict=True):
        if ":step" in model:
            by_version.setdefault(version, set()).update(body["seed"] + i for i in range(body.get("n", 1)))
    assert len(by_version[0]) == 4 and by_version[0] == by_version[1] == by_version[2]
    assert not by_version[0] & {
        turn_seed(7, f"train/{b}/{g}/1", 0) + r for b in range(2) for g in range(2) for r in (0, 1)
    }


def test_adjacent_numbers_share_a_request():
    assert adjacent([3, 0, 1, 7, 6]) == [range(0, 2), range(3, 4), range(6, 8)]
    assert adjacent([]) == []
    rng = random.Random(0)
    for _ in range(100):
        numbers = rng.sample(range(30), rng.randrange(1, 20))
        ranges = adjacent(numbers)
        assert sorted(itertools.chain(*ranges)) == sorted(numbers)
        assert all(a.stop < b.start for a, b in itertools.pairwise(ranges))


# Identical rollouts


def test_identical_rollouts_are_reported_and_counted(service, task_file, do_run):
    service.sampled_tokens = lambda seed, index: [1, 2, 3]
    report = do_run(task_file(training={"jobs": 3}))
    assert [row["rollouts/identical_groups"] for row in report.rows] == [2, 2, 2]
    [said] = [sentence for sentence in report.said if "same tokens" in sentence]
    assert "all 2 groups of batch" in said


def test_different_rollouts_are_not(service, task_file, do_run):
    report = do_run(task_file(training={"jobs": 3}))
    assert [row["rollouts/identical_groups"] for row in report.rows] == [0, 0, 0] and report.said == []
