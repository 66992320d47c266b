"""The unmodified openpipe-art client against the whole service."""

import asyncio
import uuid

import pytest
from art_client import art
from helpers import OTHER_PROMPT, PROMPT

MESSAGES = [{"role": "user", "content": PROMPT}]
LOSS_OPTIONS = [
    {},
    {"ppo": True, "epsilon": 0.2, "epsilon_high": 0.28},
    {"importance_sampling_level": "sequence"},
    {"importance_sampling_level": "average", "ppo": True},
    {"importance_sampling_level": "geometric_average", "kimi_k2_tau": 0.1},
    {"mask_prob_ratio": True, "max_negative_advantage_importance_sampling_weight": 2.0},
    {"advantage_balance": 0.3, "scale_rewards": False},
    {"precalculate_logprobs": True},
]


@pytest.fixture
def backend(service):
    return art.ServerlessBackend(api_key=service.key, base_url=service.base_url)


async def registered(backend):
    model = art.TrainableModel(name=f"art-{uuid.uuid4().hex[:8]}", project="tests", base_model="tandem/tiny")
    await model.register(backend)
    return model


async def group(model, num=8):
    """Return one group of rollouts. Answers to one of two prompts are rewarded, so gradients never cancel out."""

    async def rollout(index):
        messages = [{"role": "user", "content": PROMPT if index % 2 else OTHER_PROMPT}]
        completion = await model.openai_client().chat.completions.create(
            model=model.get_inference_name(), messages=messages, max_tokens=24
        )
        return art.Trajectory(messages_and_choices=[*messages, completion.choices[0]], reward=float(index % 2))

    return art.TrajectoryGroup([await t for t in asyncio.as_completed([rollout(i) for i in range(num)])])


def test_each_loss_option_trains_a_version(backend):
    async def run():
        model = await registered(backend)
        assert await model.get_step() == 0
        for step, options in enumerate(LOSS_OPTIONS, start=1):
            result = await backend.train(model, [await group(model)], learning_rate=1e-4, **options)
            assert result.step == step
            assert result.metrics["loss/grad_norm"] > 0
        assert await model.get_step() == len(LOSS_OPTIONS)
        await model.delete_checkpoints(best_checkpoint_metric="train/reward")
        steps = [c.step async for c in backend._client.models.checkpoints.list(model_id=model.id)]
        assert len(LOSS_OPTIONS) in steps
        assert len(steps) <= 2
        await backend.delete(model)
        with pytest.raises(Exception, match="404"):
            await model.openai_client().chat.completions.create(model=model.get_inference_name(), messages=MESSAGES)

    asyncio.run(run())


def test_its_errors_carry_the_cause(backend, service):
    async def run():
        model = await registered(backend)
        with pytest.raises(Exception, match="advantage_balance"):
            await backend.train(model, [await group(model, 2)], advantage_balance=3.0)
        stranger = art.ServerlessBackend(api_key="tdm_wrong", base_url=service.base_url)
        with pytest.raises(Exception, match="401"):
            await stranger.register(model)
        unknown = art.TrainableModel(name="x", project="tests", base_model="no/such-model")
        with pytest.raises(Exception, match="no/such-model"):
            await unknown.register(backend)

    asyncio.run(run())


def test_registering_twice_gives_the_same_model(backend):
    async def run():
        model = await registered(backend)
        again = art.TrainableModel(name=model.name, project="tests", base_model="tandem/tiny")
        await again.register(backend)
        assert again.id == model.id

    asyncio.run(run())


def test_the_low_level_log_call_is_kept(backend, service):
    async def run():
        model = await registered(backend)
        await backend._client.models.log(model_id=model.id, split="val", trajectory_groups=[await group(model, 2)])
        return model.id

    model_id = asyncio.run(run())
    with service.http() as http:
        [entry] = http.get(f"/preview/models/{model_id}/logs").json()["data"]
        assert entry["split"] == "val"
