import weakref

import pytest
import torch
from wire_data import EOS, choice, group, load_tokenizer, user, vector

from tandem.rl.batch import TrainingBatch, build_batch, check_groups, default_packed_length
from tandem.rl.config import TrainingConfig
from tandem.rl.errors import ConfigError, TrajectoryError
from tandem.rl.trajectories import TrajectoryGroup

LIMIT = 4096


def batch_of(*groups: TrajectoryGroup, seed: int | None = None, limit: int = LIMIT, **options) -> TrainingBatch:
    return build_batch(list(groups), load_tokenizer(), TrainingConfig(**options), limit, seed)


def check(*groups: TrajectoryGroup, limit: int = LIMIT, **options) -> None:
    check_groups(list(groups), load_tokenizer(), TrainingConfig(**options), limit)


def batch_of_vector(name: str) -> TrainingBatch:
    case = vector(name)
    groups = [TrajectoryGroup.model_validate(body) for body in case["trajectory_groups"]]
    return batch_of(*groups, limit=case["max_seq_length"], **case["config"])


def two_answers(question: str = "a", good: str = "yes", bad: str = "no") -> TrajectoryGroup:
    return group((1.0, [user(question), choice(good)]), (0.0, [user(question), choice(bad)]))


@pytest.mark.parametrize(
    "name",
    [
        "all_equal_rewards",
        "no_logprobs_at_all",
        "all_too_long",
        "equal_rewards_rounding",  # openpipe-art 0.5.18 trains on the rounding error
        "balance_removes_everything",  # openpipe-art 0.5.18 trains on NaN
    ],
)
def test_nothing_to_learn_is_an_empty_batch(name):
    batch = batch_of_vector(name)
    assert batch.sequences == ()
    assert batch.num_trained_tokens == 0
    assert batch.num_trajectories > 0


def test_no_groups_and_no_trajectories_are_an_empty_batch():
    assert batch_of().sequences == batch_of(TrajectoryGroup(trajectories=[])).sequences == ()


def test_groups_are_taken_one_by_one():
    alive = []

    def groups():
        for _ in range(5):
            group = two_answers()
            alive.append(weakref.ref(group))
            yield group
            del group
            assert sum(ref() is not None for ref in alive[:-1]) == 0

    batch = build_batch(groups(), load_tokenizer(), TrainingConfig(), LIMIT)
    assert (batch.num_groups, batch.num_trajectories) == (5, 10)


def test_a_ragged_last_chunk_is_no_reason_to_refuse():
    # openpipe-art 0.5.18 wants packed_sequence_length to be a multiple of logprob_calculation_chunk_size.
    assert len(batch_of_vector("not_divisible").sequences) == 1


def test_a_packed_length_above_the_models_limit_is_refused():
    with pytest.raises(ConfigError, match="64 is above the model's limit of 32 tokens"):
        batch_of_vector("exceeds_model")


def test_sequences_too_long_are_dropped_whole_and_counted():
    groups = group(
        (1.0, [user("a"), choice("yes")]),
        (0.5, [user("a"), choice("yes " * 30)]),
        (0.0, [user("a"), choice("no")]),
    )
    batch = batch_of(two_answers(), groups, packed_sequence_length=20)
    assert batch.num_dropped_too_long == 0  # its reward is the group's mean, so it isn't tokenised
    groups.trajectories[1].reward = 0.9
    batch = batch_of(two_answers(), groups, packed_sequence_length=20)
    assert batch.num_dropped_too_long == 1
    assert batch.num_trained_tokens == 2 * batch_of(two_answers()).num_trained_tokens


def test_the_default_packed_length_is_the_models_limit_at_most():
    batch = batch_of(two_answers(good="yes " * 30), limit=25)
    assert batch.num_dropped_too_long == 1
    assert all(row.num_tokens <= 25 for row in batch.sequences)


@pytest.mark.parametrize(
    ("longest", "limit", "on_cpu", "on_gpu"),
    [(100, 32768, 2048, 8192), (2049, 32768, 4096, 8192), (9000, 32768, 10240, 10240), (100, 4096, 2048, 4096)],
)
def test_rows_are_longer_on_a_gpu(longest, limit, on_cpu, on_gpu):
    assert default_packed_length(longest, limit) == on_cpu
    assert default_packed_length(longest, limit, "cuda") == on_gpu


def test_the_device_decides_how_many_sequences_a_row_takes():
    many = [two_answers(str(number), "yes " * 200, "no " * 200) for number in range(8)]
    batches = [
        build_batch(many, load_tokenizer(), TrainingConfig(), 32768, device=device) for device in ("cpu", "cuda")
    ]
    assert max(row.num_tokens for row in batches[0].sequences) <= 2048
    assert [len(batch.sequences) for batch in batches] == [3, 1]


def test_advantages_and_weights_end_normalised_over_the_job():
    batch = batch_of(two_answers(), two_answers("b", "maybe three", "ran"), advantage_balance=0.3)
    mask = torch.cat([row.loss_mask for row in batch.sequences])
    advantages = torch.cat([row.advantages for row in batch.sequences])[mask]
    weights = torch.cat([row.weights for row in batch.sequences])[mask]
    assert weights.mean().item() == pytest.approx(1, abs=1e-6)
    assert (advantages.abs() * weights).mean().item() == pytest.approx(1, abs=1e-6)
    assert advantages.unique().numel() == 2  # +A and -0.7 A, the same in both groups


def test_the_batch_describes_itself():
    batch = batch_of(two_answers(), group((0.25, [user("a"), choice("no")]), (0.25, [user("a"), choice("yes")])))
    assert (batch.num_groups, batch.account.num_groups, batch.num_trajectories) == (2, 1, 4)
    assert batch.num_trained_tokens == sum(row.num_trained_tokens for row in batch.sequences)
    assert batch.metrics() == {
        "reward": 0.375,
        "reward_std_dev": 0.25,  # 0.5 in one group, 0 in the other
        "reward/min": 0.0,
        "reward/quantile_10": pytest.approx(0.075),  # of 0, 0.25, 0.25, 1: at index 0.3
        "reward/median": 0.25,
        "reward/quantile_90": pytest.approx(0.775),  # at index 2.7
        "reward/max": 1.0,
        "data/step_num_groups_submitted": 2.0,
        "data/step_num_groups_trainable": 1.0,
        "data/step_num_trajectories": 4.0,
        "data/step_num_trajectories_trained": 2.0,
        "data/step_num_trajectories_not_trained/equal_rewards": 2.0,
        "data/step_num_tokens_trained": float(batch.num_trained_tokens),
        "data/step_num_tokens_sampled_with/unknown": float(batch.num_trained_tokens),
        "data/step_num_sequences_dropped_too_long": 0.0,
        "data/step_num_tokens_in_sequences": 30.0,
        "data/step_num_tokens_computed": 19.0,  # the two sequences share 11
        "tokens/retokenised": 0.0,
        "tokens/untrainable": 0.0,
    }


def test_histories_that_continue_each_other_cost_nothing_more():
    """A history per turn, as agents send them: each begins with the one before it."""
    body = two_answers().model_dump()
    turns = [user("b"), choice("maybe three"), user("c"), choice("ran")]
    whole = [
        dict(trajectory, messages_and_choices=[*trajectory["messages_and_choices"], *turns])
        for trajectory in body["trajectories"]
    ]
    earlier = [
        [{"messages_and_choices": trajectory["messages_and_choices"][:number]} for number in (2, 4)]
        for trajectory in whole
    ]
    every = [dict(trajectory, additional_histories=of) for trajectory, of in zip(whole, earlier, strict=True)]
    alone, shared = (batch_of(TrajectoryGroup.model_validate({"trajectories": each})) for each in (whole, every))
    assert shared.account.num_sequences == 3 * alone.account.num_sequences == 6
    assert shared.num_trained_tokens > alone.num_trained_tokens
    assert shared.num_tokens_in_sequences > 1.5 * alone.num_tokens_in_sequences
    [row], [row_alone] = shared.sequences, alone.sequences
    assert row.token_ids.tolist() == row_alone.token_ids.tolist()
    assert torch.equal(row.is_trained, row_alone.is_trained)
    assert row.num_completions == 6


def test_a_seed_gives_one_order_and_the_same_tokens():
    groups = [two_answers(f"{word} cat", "yes " * n, "no") for n, word in enumerate("abcdef", start=1)]
    options = {"packed_sequence_length": 48}

    def rows(seed: int | None) -> list[list[int]]:
        return [row.token_ids.tolist() for row in batch_of(*groups, seed=seed, **options).sequences]

    assert rows(7) == rows(7)
    assert len({str(rows(seed)) for seed in (None, 1, 2, 3)}) == 4
    trained = [batch_of(*groups, seed=seed, **options).num_trained_tokens for seed in (None, 1, 2, 3)]
    assert len(set(trained)) == 1


def test_an_error_names_group_trajectory_and_history():
    body = two_answers().model_dump()
    bad = choice("x", [10_000, EOS])
    body["trajectories"][1]["additional_histories"] = [{"messages_and_choices": [user("a"), bad]}]
    with pytest.raises(TrajectoryError) as caught:
        batch_of(two_answers(), TrajectoryGroup.model_validate(body))
    assert str(caught.value).startswith(
        "group 1, trajectory 1, additional history 0, turn 1, logprobs.content.0.token: token id 10000 is outside"
    )


@pytest.mark.parametrize(
    ("groups", "options"),
    [
        ([two_answers()], {"packed_sequence_length": LIMIT + 1}),
        ([two_answers(), group((1.0, [user("a"), choice("b", [10**6])]), (0.0, [user("a"), choice("c")]))], {}),
    ],
)
def test_a_check_refuses_as_the_batch_does(groups, options):
    with pytest.raises((ConfigError, TrajectoryError)) as of_batch:
        batch_of(*groups, **options)
    with pytest.raises(of_batch.type) as of_check:
        check(*groups, **options)
    assert str(of_check.value) == str(of_batch.value)
    check(*groups[:1])
