from tandem.rl.reports.policy_lag import policy_lag
from tandem.rl.sampled_trajectories import SampledTrajectory
from tandem.rl.trajectories import Trajectory


def trajectory(*choice_versions, **fields) -> Trajectory:
    turns = [
        {"finish_reason": "stop", "index": 0, "message": {"role": "assistant", "content": "x"}}
        | ({} if version is None else {"policy_version": version})
        for version in choice_versions
    ]
    return Trajectory.model_validate({"messages_and_choices": turns, **fields})


def test_the_trajectory_says_its_version_else_its_choices_do():
    assert SampledTrajectory(trajectory(5, 6, initial_policy_version=4)).policy_version == 4
    assert SampledTrajectory(trajectory(None, 6, 5)).policy_version == 5
    assert SampledTrajectory(trajectory(None)).policy_version is None
    assert SampledTrajectory(trajectory(0)).policy_version == 0


def test_lag_is_over_the_trajectories_that_know():
    assert policy_lag([3, None, 0], current=4) == {"policy_lag/mean": 2.5, "policy_lag/max": 4.0}
    assert policy_lag([3, None], current=3) == {"policy_lag/mean": 0.0, "policy_lag/max": 0.0}
    assert policy_lag([None], current=4) == policy_lag([], current=4) == {}
