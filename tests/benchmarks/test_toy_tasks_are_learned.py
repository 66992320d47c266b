"""The tiny model learns toy tasks: real rollouts and gradient steps, measured on tasks that it never trained on."""

from typing import Any

import pytest
from loss_comparison.configurations import configuration
from loss_comparison.settings import RunRequest, Settings
from loss_comparison.training_run import train


def rewards_on_eval(tiny_model: Any, environment: str, jobs: int, **options: Any) -> tuple[float, float]:
    """The mean reward of the first and of the last version."""
    settings = Settings(
        base_model=str(tiny_model),
        environment=f"tandem.rl.environments.toy:{environment}",
        environment_options=options,
        num_versions=jobs,
        groups_per_version=16,
        learning_rate=3e-3,
        num_eval_tasks=128,
        eval_every=jobs,
    )
    curve = train(RunRequest.of("training", configuration("cispo"), 0, 0, settings))["curve"]
    return curve[0]["eval"]["reward"], curve[-1]["eval"]["reward"]


@pytest.mark.parametrize(
    ("environment", "jobs", "at_first_below", "in_the_end_above"),
    [("Largest", 8, 0.5, 0.8), ("YesNoMaybe", 6, 0.75, 0.9)],
)
def test_a_toy_task_is_learned(
    tiny_model: Any, environment: str, jobs: int, at_first_below: float, in_the_end_above: float
) -> None:
    first, last = rewards_on_eval(tiny_model, environment, jobs)
    assert first < at_first_below
    assert last > in_the_end_above
