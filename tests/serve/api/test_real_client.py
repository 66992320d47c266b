"""The unmodified openpipe-art client works with the application."""

import asyncio
import threading

import pytest
from art_client import art
from serve_fakes import choice
from waiting import wait_until

from tandem.cluster.errors import LeaseLostError
from tandem.cluster.jobs.job import PolicyVersion

WARNING = {"kind": "partly_trained", "message": "2 of 4 trajectories train.", "counts": {"equal_rewards": 2}}
METRICS = {"loss/train": 0.5, "loss/grad_norm": 0.1, "loss/learning_rate": 5e-6, "data/step_trainer_tokens": 6.0}


@pytest.fixture(scope="module")
def wandb():
    """The client imports wandb at the end of a successful train(). Without WANDB_API_KEY, it doesn't call it."""
    pytest.importorskip("wandb")


@pytest.fixture
def backend(base_url, key):
    return art.ServerlessBackend(api_key=key, base_url=base_url)


@pytest.fixture
def learning(store, claim):
    """A coordinator that only records events. Tests change the outcome of its jobs."""
    outcome = {"fail": None, "steps": 2}
    stop = threading.Event()

    def run():
        while not stop.wait(0.02):
            job = claim()
            if job is None:
                continue
            try:
                store.claims.record_event(job, "training_started", {"num_sequences": outcome["steps"]})
                store.claims.record_event(
                    job, "warning", {"kind": "partly_trained", "message": "m", "counts": {"a": 1}}
                )
                for _ in range(outcome["steps"]):
                    store.claims.record_event(job, "gradient_step", METRICS)
                if outcome["fail"]:
                    store.claims.fail(job, outcome["fail"])
                else:
                    digest = f"digest-{job.next_step}"
                    store.claims.complete(job, PolicyVersion(job.model_id, job.next_step, digest), {"reward": 0.5})
            except LeaseLostError:
                pass  # the test has deleted the model

    thread = threading.Thread(target=run)
    thread.start()
    yield outcome
    stop.set()
    thread.join()


async def registered(backend, name="agent"):
    model = art.TrainableModel(name=name, project="project", base_model="tandem/tiny")
    await model.register(backend)
    return model


def group(rewards=(0.0, 1.0)):
    from openai.types.chat.chat_completion import Choice

    messages = [{"role": "user", "content": "1 + 6 = ?"}]
    return art.TrajectoryGroup(
        [
            art.Trajectory(messages_and_choices=[*messages, Choice.model_validate(choice())], reward=reward)
            for reward in rewards
        ],
        metadata={"task": 3},
    )


def test_registering(backend):
    async def run():
        first, again = await registered(backend), await registered(backend)
        assert (first.id, first.entity) == (again.id, "team")
        assert await first.get_step() == 0

    asyncio.run(run())


def test_training_goes_step_by_step(backend, learning, wandb):
    async def run():
        model = await registered(backend)
        for step in (1, 2):
            result = await backend.train(model, [group()], learning_rate=1e-5)
            assert result.step == step
            assert result.metrics["loss/train"] == 0.5
            assert result.artifact_name == f"team/project/agent:step{step}"
        learning["steps"] = 0
        assert (await backend.train(model, [group((1.0, 1.0))])).step == 3

    asyncio.run(run())


def test_checkpoints_are_paged_and_deleted(backend, learning, store, model, add_job):
    for _ in range(22):
        add_job(store.models.get(model["id"], "team"))
    wait_until(lambda: len(store.versions.page(model["id"], "team", 100)) == 22)

    async def run():
        model = await registered(backend)
        assert await model.get_step() == 22
        listed = backend._client.models.checkpoints.list(model_id=model.id)
        assert [checkpoint.step async for checkpoint in listed] == list(range(1, 23))
        await backend._delete_checkpoint_files(model, steps_to_keep=[22])
        left = backend._client.models.checkpoints.list(model_id=model.id)
        assert [checkpoint.step async for checkpoint in left] == [22]
        answer = await backend._client.models.checkpoints.delete(model_id=model.id, steps=[22, 23])
        assert (answer.deleted_count, answer.not_found_steps) == (1, [23])

    asyncio.run(run())


def test_a_failed_job_raises_with_its_reason(backend, learning):
    learning["fail"] = "Stage 'step' failed: a learner died. Try again."

    async def run():
        model = await registered(backend)
        with pytest.raises(RuntimeError, match="a learner died"):
            await backend.train(model, [group()])

    asyncio.run(run())


def test_deleting_the_model_ends_a_waiting_client(backend, store):
    async def run():
        model = await registered(backend)
        waiting = asyncio.create_task(backend.train(model, [group()]))
        await asyncio.to_thread(wait_until, lambda: store.jobs.page("team", 1))
        await backend.delete(model)
        with pytest.raises(RuntimeError, match="was deleted"):
            await asyncio.wait_for(waiting, 60)

    asyncio.run(run())


def test_its_exceptions_say_what_is_wrong(backend, base_url):
    from openai import AuthenticationError, NotFoundError, UnprocessableEntityError

    async def run():
        model = await registered(backend)
        with pytest.raises(UnprocessableEntityError, match="advantage_balance") as caught:
            await backend.train(model, [group()], advantage_balance=2.0)
        assert caught.value.body["param"] == "body.experimental_config.advantage_balance"
        with pytest.raises(UnprocessableEntityError, match="no/such-model"):
            await art.TrainableModel(name="x", project="p", base_model="no/such-model").register(backend)
        with pytest.raises(AuthenticationError, match="API key"):
            await registered(art.ServerlessBackend(api_key="tdm_wrong", base_url=base_url))
        with pytest.raises(UnprocessableEntityError, match="training_data_url") as caught:
            await backend._client.sft_training_jobs.create(model_id=model.id, training_data_url="https://example.com/a")
        assert caught.value.body["param"] == "body.training_data_url"
        await backend.delete(model)
        with pytest.raises(NotFoundError, match="no model"):
            await backend.train(model, [group()])

    asyncio.run(run())


def test_logging(backend, store):
    async def run():
        model = await registered(backend)
        await backend._client.models.log(model_id=model.id, split="val", trajectory_groups=[group()])
        return model.id

    [entry] = store.logs.page(asyncio.run(run()), "team", 10)
    assert (entry.split, entry.metrics["reward"]) == ("val", 0.5)


def test_inference_under_the_client_s_names(backend, learning, engine, wandb):
    async def run():
        model = await registered(backend)
        await backend.train(model, [group()])
        engine.answers({"id": "c", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice()]})
        names = (model.get_inference_name(), model.get_inference_name(step=0))
        return [
            await model.openai_client().chat.completions.create(model=name, messages=[{"role": "user", "content": "?"}])
            for name in names
        ]

    answers = asyncio.run(run())
    assert [answer.choices[0].policy_version for answer in answers] == [1, 0]
    assert [asked[5] for asked in engine.asked] == ["digest-1", "0" * 64]
