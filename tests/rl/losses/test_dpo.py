"""Direct preference optimization against equation 7 of Rafailov et al. (2023) and numbers worked out by hand."""

import math

import pytest
import torch

from tandem.rl.config import Dpo
from tandem.rl.losses import LossInputs, loss_terms, pair_metrics, pair_sums

NAN = float("nan")


def inputs(policy, reference, pairs, signs, mask=None):
    policy = torch.tensor(policy, dtype=torch.float64, requires_grad=True)
    return policy, LossInputs(
        policy_logprobs=policy,
        sampling_logprobs=torch.full_like(policy, NAN).detach(),
        advantages=torch.tensor(signs, dtype=torch.float64),
        weights=torch.ones(len(pairs), dtype=torch.float64),
        loss_mask=torch.ones(len(pairs), dtype=torch.bool) if mask is None else torch.tensor(mask),
        completion_ids=torch.arange(len(pairs)),
        ref_logprobs=torch.tensor(reference, dtype=torch.float64),
        group_ids=torch.tensor(pairs),
    )


# Pair 7: chosen tokens 0 and 1, rejected token 2. Pair 8: chosen token 3, rejected tokens 4 and 5. Token 6 isn't
# trained.
POLICY = [-1.0, -2.0, -0.5, -3.0, -1.0, -1.0, NAN]
REFERENCE = [-1.5, -2.5, -1.5, -2.0, -1.5, -2.5, NAN]
PAIRS = [7, 7, 7, 8, 8, 8, 7]
SIGNS = [1.0, 1.0, -1.0, 1.0, -1.0, -1.0, 1.0]
MASK = [True] * 6 + [False]
DPO = Dpo(beta=0.5, first_pair=7, num_pairs=2)


def test_numbers_worked_out_by_hand():
    policy, given = inputs(POLICY, REFERENCE, PAIRS, SIGNS, MASK)
    sums = pair_sums(given, DPO)
    # log pi - log pi_ref: chosen 0.5 + 0.5 and -1, rejected 1 and 0.5 + 1.5
    assert sums.tolist() == [[1.0, -1.0], [1.0, 2.0], [3.0, 3.0]]
    terms = loss_terms(given, DPO, sums)
    # beta h is 0 and -1.5; the loss -log sigma of these: log 2 and log(1 + e^1.5)
    expected = (math.log(2) + math.log1p(math.exp(1.5))) / 2
    assert terms.num_tokens == 6
    assert terms.loss_sum.item() / terms.num_tokens == pytest.approx(expected, rel=1e-6)
    terms.loss_sum.backward()
    # -beta sigma(-beta h) s / P, with sigma(0) = 0.5 and sigma(1.5) = 0.8176
    first, second = 0.5 * 0.5 / 2, 0.5 / (1 + math.exp(-1.5)) / 2
    gradient = [-first, -first, first, -second, second, second, 0.0]
    assert (policy.grad / terms.num_tokens).tolist() == pytest.approx(gradient, rel=1e-6)
    assert pair_metrics(sums, DPO) == pytest.approx(
        {"dpo/reward_chosen": 0.0, "dpo/reward_rejected": 0.75, "dpo/reward_margin": -0.75, "dpo/accuracy": 0.0}
    )


def test_the_gradient_is_that_of_the_equation():
    torch.manual_seed(0)
    values = [torch.randn(40) - 2 for _ in range(2)]
    pairs = torch.arange(40) % 4 + 3
    signs = torch.where(torch.arange(40) % 8 < 4, 1.0, -1.0)
    policy, given = inputs(values[0].tolist(), values[1].tolist(), pairs.tolist(), signs.tolist())
    dpo = Dpo(beta=0.3, first_pair=3, num_pairs=4)
    terms = loss_terms(given, dpo, pair_sums(given, dpo))
    (terms.loss_sum / terms.num_tokens).backward()
    direct = torch.tensor(values[0].tolist(), dtype=torch.float64, requires_grad=True)
    h = torch.zeros(4, dtype=torch.float64).index_add(0, pairs - 3, signs.double() * (direct - given.ref_logprobs))
    loss = -torch.nn.functional.logsigmoid(0.3 * h).mean()
    loss.backward()
    assert terms.loss_sum.item() / terms.num_tokens == pytest.approx(loss.item(), rel=1e-6)
    torch.testing.assert_close(policy.grad, direct.grad, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("cut", [1, 3, 5])
def test_the_answers_of_a_pair_may_lie_in_several_rows(cut):
    _, whole = inputs(POLICY, REFERENCE, PAIRS, SIGNS, MASK)
    sums = pair_sums(whole, DPO)
    expected = loss_terms(whole, DPO, sums).loss_sum
    parts = [
        inputs(*(column[part] for column in (POLICY, REFERENCE, PAIRS, SIGNS, MASK)))[1]
        for part in (slice(0, cut), slice(cut, None))
    ]
    added = sum(pair_sums(part, DPO) for part in parts)
    torch.testing.assert_close(added, sums)
    total = sum(loss_terms(part, DPO, added).loss_sum for part in parts)
    torch.testing.assert_close(total, expected)


def test_a_pair_that_is_far_apart_has_a_finite_loss():
    policy, given = inputs([-900.0, -0.1], [-0.1, -900.0], [0, 0], [1.0, -1.0])
    dpo = Dpo(beta=10.0, first_pair=0, num_pairs=1)
    terms = loss_terms(given, dpo, pair_sums(given, dpo))
    terms.loss_sum.backward()
    assert torch.isfinite(terms.loss_sum) and policy.grad.isfinite().all()
