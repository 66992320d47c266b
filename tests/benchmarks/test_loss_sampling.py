"""The chat in this process: exact tokens and logprobs, and random numbers that belong to the request."""

import asyncio
import json
import math
from types import SimpleNamespace

import pytest
import torch
from loss_comparison.sampling import Sampler, _Drawing
from loss_comparison.tool_calls import assistant_message

from tandem.rl.packing import pack
from tandem.rl.policy import Policy
from tandem.rl.settings import LoraSettings
from tandem.rl.tiny.corpus import ADD_TOOL
from tandem.rl.tokens.tokenizing import ChatTokenizer, tokenize_history
from tandem.rl.trajectories import History

QUESTIONS = [
    [{"role": "user", "content": "Which is the largest: 3, 17 or 8?"}],
    [{"role": "user", "content": "Say 'yes' or 'no'"}],
    [{"role": "user", "content": "What can you do? " * 6}],  # of another length: the batch is padded
]


@pytest.fixture(scope="module")
def policy(tiny_model):
    """A policy that is far from the base model."""
    policy = Policy.load(tiny_model, device="cpu", lora=LoraSettings())
    state = policy.adapter_state()
    generator = torch.Generator().manual_seed(3)
    for name in state:
        if ".lora_B." in name:
            state[name] = 0.05 * torch.randn(state[name].shape, generator=generator)
    policy.load_adapter_state(state)
    return policy


@pytest.fixture(scope="module")
def sampler(tiny_model, policy):
    sampler = Sampler(str(tiny_model), LoraSettings(), "cpu", "auto", max_tokens=12)
    sampler.load(5, policy.adapter_state())
    return sampler


def ask(sampler, conversations, stream="test", **sampling):
    sampler.reseed(stream)

    async def together():
        return await asyncio.gather(*(sampler(messages, **sampling) for messages in conversations))

    return asyncio.run(together())


def test_its_logprobs_are_those_of_the_learner(sampler, policy):
    choices = ask(sampler, QUESTIONS * 4)
    chat = ChatTokenizer(sampler.tokenizer)
    for messages, choice in zip(QUESTIONS * 4, choices, strict=True):
        history = History(messages_and_choices=[*messages, choice])
        (row,) = pack(tokenize_history(history, chat), 512)
        with torch.no_grad():
            learners, _ = policy.logprobs(row, trained_only=True)
        learners = learners[~learners.isnan()]
        assert len(learners) == len(choice["token_ids"])
        torch.testing.assert_close(row.sampling_logprobs[row.loss_mask], learners, rtol=0, atol=1e-4)
        assert choice["policy_version"] == 5
        assert choice["prompt_token_ids"] == chat.encode(
            sampler.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        )


def test_an_answer_does_not_depend_on_the_rest_of_its_batch(sampler):
    together = ask(sampler, QUESTIONS)
    alone = ask(sampler, QUESTIONS[:1])
    assert alone[0]["token_ids"] == together[0]["token_ids"]


def test_another_stream_has_other_random_numbers(sampler):
    answers = {tuple(ask(sampler, QUESTIONS[:1], stream=str(n))[0]["token_ids"]) for n in range(12)}
    assert len(answers) > 1


def test_an_answer_ends_with_its_end_token_or_at_its_length(sampler):
    for choice in ask(sampler, QUESTIONS * 3):
        ended = choice["token_ids"][-1] == sampler.tokenizer.eos_token_id
        assert choice["finish_reason"] == ("stop" if ended else "length")
        assert "<|im_end|>" not in choice["message"]["content"]
    (short,) = ask(sampler, QUESTIONS[:1], max_tokens=2)
    assert (len(short["token_ids"]), short["finish_reason"]) == (2, "length")


def test_unsupported_options_are_rejected(sampler):
    with pytest.raises(ValueError, match="top_p"):
        ask(sampler, QUESTIONS[:1], top_p=0.5)


def test_the_prompt_has_the_tools_and_an_answer_may_call_them(sampler):
    question = [{"role": "user", "content": "What is 3 plus 4?"}]
    choices = ask(sampler, [question] * 16, tools=[ADD_TOOL], max_tokens=40)
    assert choices[0]["prompt_token_ids"] == sampler.tokenizer.encode(
        sampler.tokenizer.apply_chat_template(question, tools=[ADD_TOOL], tokenize=False, add_generation_prompt=True)
    )
    calling = next(choice for choice in choices if choice["finish_reason"] == "tool_calls")
    assert calling["message"]["tool_calls"][0]["function"]["name"] == "add"
    # the call goes back into the context as it was sampled
    history = History(messages_and_choices=[*question, calling], tools=[ADD_TOOL])
    (sequence,) = tokenize_history(history, ChatTokenizer(sampler.tokenizer))
    assert sequence.token_ids[sequence.loss_mask].tolist() == calling["token_ids"]


@pytest.mark.parametrize(
    ("text", "content", "calls"),
    [
        ("Hello", "Hello", []),
        ('<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>', None, [("f", {"a": 1})]),
        ('So:<tool_call>{"name": "f", "arguments": {}}</tool_call>\n<tool_call>{"name": "g", "arguments": {"b": "é"}}',
         "So:", [("f", {}), ("g", {"b": "é"})]),
        ("<tool_call>{broken</tool_call>", "<tool_call>{broken</tool_call>", []),
        ('<tool_call>{"name": "f"}</tool_call>', '<tool_call>{"name": "f"}</tool_call>', []),
    ],
)  # fmt: skip
def test_calls_are_read_from_the_text(text, content, calls):
    message = assistant_message(text)
    found = [(c["function"]["name"], json.loads(c["function"]["arguments"])) for c in message.get("tool_calls", [])]
    assert (message["content"], found) == (content, calls)


@pytest.mark.parametrize(
    ("uniform", "temperature", "drawn"),
    [
        # at temperature 1 the probabilities are 1/2, 1/4, 1/4; at 1/2 they are 4/6, 1/6, 1/6
        (0.0, 1.0, 0), (0.49, 1.0, 0), (0.51, 1.0, 1), (0.74, 1.0, 1), (0.76, 1.0, 2), (0.9999, 1.0, 2),
        (0.66, 0.5, 0), (0.67, 0.5, 1), (0.84, 0.5, 2),
    ],
)  # fmt: skip
def test_tokens_are_drawn_by_their_probabilities(uniform, temperature, drawn):
    request = SimpleNamespace(
        temperature=temperature, max_tokens=9, token_ids=[], logprobs=[], random=SimpleNamespace(random=lambda: uniform)
    )
    drawing = _Drawing([request], frozenset({99}))
    scores = drawing(torch.zeros(1, 0), torch.log(torch.tensor([[2.0, 1.0, 1.0]])))
    assert request.token_ids == [drawn] == [int(scores.argmax())]
    # the logprob is the model's own, at temperature 1, as the service's engine reports it
    assert request.logprobs == [pytest.approx(math.log([0.5, 0.25, 0.25][drawn]), rel=1e-6)]
