"""Each public method of the tinker SDK's TrainingClient, on the whole service."""

import asyncio

import numpy as np
import pytest
import tinker
import torch
from tinker import types
from tinker_service import (
    ADAM,
    ENGINE_TOLERANCE,
    LEARNER_TOLERANCE,
    TINY,
    batch,
    datum,
    logprobs,
    new_run,
    prompt,
    random_tokens,
    state,
    step,
)

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")


@pytest.fixture(scope="module")
def client(sdk):
    """A run that tests share: they may train it, and don't rely on its weights."""
    return new_run(sdk, user_metadata={"purpose": "contract"})


def same(found, wanted, tolerance=LEARNER_TOLERANCE):
    np.testing.assert_allclose(found, wanted, atol=tolerance, rtol=0)


def test_a_run_describes_itself(sdk, client):
    info = client.get_info()
    assert (info.model_id, info.lora_rank, info.is_lora) == (client.model_id, 8, True)
    assert client.model_id.startswith(f"{sdk.holder.get_session_id()}:train:")
    assert info.optimizer_config.type == "adamw"
    assert asyncio.run(client.get_info_async()) == info
    tokenizer = client.get_tokenizer()
    assert tokenizer.decode(tokenizer.encode("The largest is 17.")) == "The largest is 17."
    assert len(tokenizer) == 512
    assert client.model_id in client.get_console_url()
    assert client.get_telemetry() is sdk.get_telemetry()


def test_forward_changes_nothing_and_steps_do(client):
    data = batch()
    before = client.forward(data, "cross_entropy").result()
    again = asyncio.run(client.forward_async(data, "cross_entropy")).result()
    for one, other in zip(logprobs(before), logprobs(again), strict=True):
        same(one, other)
    assert before.metrics["loss:sum"] == pytest.approx(-sum(float(p.sum()) for p in logprobs(before)), rel=1e-4)
    first = client.forward_backward(data, "cross_entropy")
    answered = client.optim_step(types.AdamParams(learning_rate=1e-2))
    assert first.result().metrics["loss:sum"] == pytest.approx(before.metrics["loss:sum"], rel=1e-4)
    assert answered.result().metrics["grad_norm"] > 0

    async def another_step():
        backward = await client.forward_backward_async(data, "cross_entropy")
        optim = await client.optim_step_async(adam_params=ADAM)
        await optim
        return await backward

    assert asyncio.run(another_step()).metrics["loss:sum"] < before.metrics["loss:sum"] - 1


def test_gradients_accumulate_until_the_step(sdk):
    data = batch(5)
    whole, parts = new_run(sdk, seed=9), new_run(sdk, seed=9)
    step(whole, data)
    for part in (data[:1], data[1:]):
        parts.forward_backward(part, "cross_entropy")
    parts.optim_step(ADAM).result()
    same(state(parts), state(whole))
    assert np.abs(state(new_run(sdk, seed=9)) - state(whole)).max() > 10 * LEARNER_TOLERANCE


def test_a_large_call_is_sent_in_chunks_and_answered_as_one(client):
    data = [datum([10 + index % 500, 11, 12]) for index in range(1100)]  # the SDK sends at most 1024 in one request
    output = client.forward(data, "cross_entropy").result()
    assert len(output.loss_fn_outputs) == 1100
    found = logprobs(output)
    for index in (0, 300, 599):
        same(found[index + 500], found[index])  # equal datums, some of them in the other request
    assert np.abs(found[1] - found[0]).max() > LEARNER_TOLERANCE
    total = -sum(float(p.sum()) for p in found)
    assert output.metrics["loss:sum"] == pytest.approx(total, rel=1e-4)


def ratio_losses(p, q, a):
    r = np.exp(p - q)
    s = np.exp((p - q).mean())
    return {
        "importance_sampling": (-(r * a).sum(), {}),
        "ppo": (
            -np.minimum(r * a, np.clip(r, 0.9, 1.1) * a).sum(),
            {"clip_low_threshold": 0.9, "clip_high_threshold": 1.1},
        ),
        "cispo": (-(np.clip(r, 0.0, 1.2) * p * a).sum(), {"clip_low_threshold": 0.0, "clip_high_threshold": 1.2}),
        "dro": (-(p * a - 0.5 * 0.05 * (p - q) ** 2).sum(), {"beta": 0.05}),
        "gspo": (-np.minimum(s * a, np.clip(s, 0.8, 1.2) * a).sum(), {}),
    }


@pytest.mark.parametrize("loss", ["importance_sampling", "ppo", "cispo", "dro", "gspo"])
def test_a_loss_is_the_sum_of_its_formula(client, loss):
    tokens = random_tokens(1, 20)
    rng = np.random.default_rng(0)
    [now] = logprobs(client.forward([datum(tokens)], "cross_entropy").result())
    q = (now + rng.normal(0, 0.3, len(now))).astype(np.float32)
    a = rng.normal(0, 1, len(now)).astype(np.float32)
    wanted, config = ratio_losses(now.astype(np.float64), q.astype(np.float64), a.astype(np.float64))[loss]
    mask = {"sequence_ratio_mask": [1.0] * len(now)} if loss == "gspo" else {}
    inputs = {"logprobs": q.tolist(), "advantages": a.tolist(), **mask}
    output = client.forward([datum(tokens, **inputs)], loss, config).result()
    assert output.metrics["loss:sum"] == pytest.approx(wanted, abs=2e-3, rel=1e-4)
    same(logprobs(output)[0], now)


@pytest.mark.parametrize("is_sparse", [False, True])
def test_soft_targets_of_any_k_tokens(client, is_sparse):
    tokens = random_tokens(2, 10)
    targets = torch.tensor([random_tokens(30 + i, 3) for i in range(9)])
    weights = torch.rand(9, 3, generator=torch.Generator().manual_seed(0))
    if is_sparse:
        targets[:8], weights[:8] = 0, 0.0  # the SDK sends matrices of mostly zeros as CSR
    data = types.Datum(prompt(tokens[:-1]), {"target_tokens": targets, "weights": weights})
    assert (data.loss_fn_inputs["weights"].sparse_crow_indices is not None) == is_sparse
    output = client.forward_backward([data], "cross_entropy").result()
    client.optim_step(types.AdamParams(learning_rate=0.0)).result()
    [found] = logprobs(output)
    assert found.shape == (9, 3)
    assert output.metrics["loss:sum"] == pytest.approx(-(weights.numpy() * found).sum(), rel=1e-4, abs=1e-4)
    single = [datum([*tokens[:9], int(targets[8, column])]) for column in range(3)]
    one_by_one = [p[-1] for p in logprobs(client.forward(single, "cross_entropy").result())]
    same(found[8], one_by_one)


def test_a_custom_loss_has_the_gradient_of_its_formula(sdk, client):
    data = batch(8)
    plain = client.forward_backward(data, "cross_entropy")
    wanted = client.optim_step(types.AdamParams(learning_rate=0.0)).result().metrics["grad_norm"]

    def of_all(data, logprobs):
        return -sum(p.sum() for p in logprobs), {"count": float(len(logprobs))}

    def of_each(logprobs, weights):
        loss = -(logprobs * weights).sum()
        return loss, {"custom/nll:sum": loss}

    handle = sdk.create_custom_loss(of_each, {"logprobs": 1, "weights": 1}).result()
    calls = [
        lambda: client.forward_backward_custom(data, of_all),
        lambda: client.forward_backward_custom(data, handle),
        lambda: asyncio.run(client.forward_backward_custom_async(data, of_all)),
    ]
    for call in calls:
        output = call()
        found = client.optim_step(types.AdamParams(learning_rate=0.0)).result().metrics["grad_norm"]
        assert found == pytest.approx(wanted, rel=1e-4)
        assert output.result().metrics["loss:sum"] == pytest.approx(plain.result().metrics["loss:sum"], rel=1e-4)
    assert output.result().metrics["count"] == 4


def refused(future, *words):
    """Assert that a call fails as a user's error whose message has these words."""
    with pytest.raises(tinker.RequestFailedError) as raised:
        future.result(timeout=60)
    assert raised.value.category == types.RequestErrorCategory.User, raised.value
    for word in words:
        assert word in str(raised.value)


def test_a_refused_call_spoils_its_batch_and_nothing_else(sdk):
    client = new_run(sdk)
    refused(client.forward_backward([datum([10, 11])], "stable_reinforce"), "stable_reinforce", "cispo")
    refused(client.optim_step(ADAM))  # a batch without that call would be another batch
    before = state(client)
    step(client)
    assert np.abs(state(client) - before).max() > 10 * LEARNER_TOLERANCE
    client.forward_backward(batch(), "cross_entropy")
    refused(client.forward_backward([datum([10, 11, 600])], "cross_entropy"), "600")
    refused(client.optim_step(ADAM))
    refused(client.optim_step(types.DimuonParams(learning_rate=1e-3)), "AdamW")


def test_a_run_continues_from_a_saved_state(sdk):
    client = new_run(sdk)
    step(client)
    saved = client.save_state("a", user_metadata={"step": "1"}).result().path
    assert saved == f"tinker://{client.model_id}/weights/a"
    refused(client.save_state("a"), "a")
    assert client.save_state("a", overwrite=True, ttl_seconds=3600).result().path == saved
    also = asyncio.run(client.save_state_async("b")).result().path
    at_save = state(client)
    step(client)
    undisturbed = state(client)

    async def created():
        with_optimizer = await sdk.create_training_client_from_state_with_optimizer_async(also)
        return with_optimizer, await sdk.create_training_client_from_state_async(also)

    with_optimizer = sdk.create_training_client_from_state_with_optimizer(saved).result()
    without = sdk.create_training_client_from_state(saved, user_metadata={"from": "a"}).result()
    for other, has_optimizer in zip((with_optimizer, without, *asyncio.run(created())), (True, False) * 2, strict=True):
        assert other.model_id != client.model_id
        same(state(other), at_save)
        step(other)
        assert np.allclose(state(other), undisturbed, atol=LEARNER_TOLERANCE) == has_optimizer

    loads = [
        (lambda: client.load_state(saved), False),
        (lambda: client.load_state_with_optimizer(saved), True),
        (lambda: asyncio.run(client.load_state_async(also)), False),
        (lambda: asyncio.run(client.load_state_with_optimizer_async(also)), True),
    ]
    for load, has_optimizer in loads:
        load().result()
        same(state(client), at_save)
        step(client)
        assert np.allclose(state(client), undisturbed, atol=LEARNER_TOLERANCE) == has_optimizer


def test_samplers_have_the_weights_of_their_moment(sdk):
    client = new_run(sdk)
    tokens = random_tokens(4, 20)

    def trained():
        return logprobs(client.forward([datum(tokens)], "cross_entropy").result())[0]

    step(client)
    moments = [
        (trained(), client.save_weights_and_get_sampling_client().result()),
        (trained(), asyncio.run(client.save_weights_and_get_sampling_client_async())),
    ]
    step(client)
    path = client.save_weights_for_sampler("named", user_metadata={"kind": "sampler"}).result().path
    assert path == f"tinker://{client.model_id}/sampler_weights/named"
    refused(client.save_weights_for_sampler("named"), path, "another name")
    also = asyncio.run(client.save_weights_for_sampler_async("again", ttl_seconds=3600)).result().path
    moments += [
        (trained(), client.create_sampling_client(path).result()),
        (trained(), asyncio.run(client.create_sampling_client_async(also))),
        (trained(), sdk.create_sampling_client(model_path=path).result()),
        (trained(), asyncio.run(sdk.create_sampling_client_async(model_path=also))),
    ]
    step(client)
    for wanted, sampler in moments:
        same(sampler.compute_logprobs(prompt(tokens)).result()[1:], wanted, ENGINE_TOLERANCE)
    assert np.abs(moments[0][0] - moments[-1][0]).max() > 10 * ENGINE_TOLERANCE


def test_a_state_can_also_be_sampled_and_a_sampler_continued(sdk):
    """Checkpoints for sampling hold no optimizer, and those for training can be sampled too."""
    client = new_run(sdk)
    step(client)
    trained, tokens = client.save_state("whole").result().path, random_tokens(6, 16)
    sampler = sdk.create_sampling_client(model_path=trained).result()
    [wanted] = logprobs(client.forward([datum(tokens)], "cross_entropy").result())
    same(sampler.compute_logprobs(prompt(tokens)).result()[1:], wanted, ENGINE_TOLERANCE)


def test_weights_leave_in_the_format_of_peft(client):
    path = client.save_weights_external("export").result().path
    assert path == f"tinker://{client.model_id}/external_weights/export"
    assert (
        asyncio.run(client.save_weights_external_async("export-2", ttl_seconds=3600)).result().path.endswith("export-2")
    )
    with pytest.raises(tinker.TinkerError):
        client.save_weights_external("secret", age_encryption_recipients=["age1x"]).result(timeout=60)


def test_runs_are_within_the_limits_of_their_base_model(sdk):
    with pytest.raises(tinker.TinkerError, match="32"):
        sdk.create_lora_training_client(TINY, rank=512).result(timeout=60)
    with pytest.raises(tinker.TinkerError, match=TINY):
        sdk.create_lora_training_client("no/such-model").result(timeout=60)
    assert sdk.create_lora_training_client(TINY).result().get_info().lora_rank == 32  # the SDK's default
