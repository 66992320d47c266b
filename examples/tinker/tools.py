"""A task of several turns: the model calls a tool, reads its result and answers with it.

    python examples/tinker/tools.py

A whole episode is one datum: what the model sampled has the episode's advantage, what it read has 0. Sampled tokens
are never decoded and encoded again, so the trained tokens are the sampled ones.
"""

import argparse
import json
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import tinker
from common import BASE_MODEL, Message, Tokens, decode, prompt_tokens, report
from tinker import types

A, B = 3, 4
MAX_TURNS, MAX_TOKENS = 3, 40
NUMBER = {"type": "integer"}
ADD = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "Add two numbers.",
        "parameters": {"type": "object", "properties": {"a": NUMBER, "b": NUMBER}, "required": ["a", "b"]},
    },
}
CALL = re.compile(r"<tool_call>\s*(\{.*\})\s*</tool_call>", re.DOTALL)


@dataclass
class Episode:
    tokens: Tokens
    """All tokens so far; it begins with the question's. `logprobs` and `is_sampled` have a value for each of them."""
    logprobs: list[float] = field(default_factory=list)
    is_sampled: list[bool] = field(default_factory=list)
    sums: list[int] = field(default_factory=list)
    """The results of the tool."""
    answer: str = ""

    def __post_init__(self) -> None:
        self.logprobs = [0.0] * len(self.tokens)
        self.is_sampled = [False] * len(self.tokens)

    def extend(self, tokens: Tokens, logprobs: list[float] | None = None) -> None:
        self.tokens += tokens
        self.logprobs += logprobs or [0.0] * len(tokens)
        self.is_sampled += [logprobs is not None] * len(tokens)

    @property
    def reward(self) -> float:
        """A quarter for the right call, and one for each right number of `3 plus 4 is 7` after it."""
        if A + B not in self.sums:
            return 0.0
        numbers = [int(number) for number in re.findall(r"\d+", self.answer)]
        pairs = zip(numbers, (A, B, A + B), strict=True) if len(numbers) == 3 else ()
        return 0.25 + 0.25 * sum(said == wanted for said, wanted in pairs)

    def datum(self, advantage: float) -> types.Datum:
        inputs: dict[str, Any] = {
            "target_tokens": self.tokens[1:],
            "logprobs": self.logprobs[1:],
            "advantages": [advantage * is_sampled for is_sampled in self.is_sampled[1:]],
        }
        return types.Datum(types.ModelInput.from_ints(self.tokens[:-1]), inputs)


def run(
    service: tinker.ServiceClient,
    steps: int = 10,
    num_groups: int = 4,
    group_size: int = 8,
    learning_rate: float = 2e-3,
) -> list[float]:
    """Return the mean reward of each step."""
    client = service.create_lora_training_client(BASE_MODEL, rank=16, seed=0).result()
    tokenizer = client.get_tokenizer()
    mean_rewards: list[float] = []
    for step in range(steps):
        sampler = client.save_weights_and_get_sampling_client().result()
        episodes = play_at_once(sampler, tokenizer, num_groups * group_size)
        rewards = [episode.reward for episode in episodes]
        mean_rewards.append(sum(rewards) / len(rewards))
        batch = [
            episode.datum(advantage)
            for start in range(0, len(episodes), group_size)
            for episode, advantage in with_advantages(episodes[start : start + group_size])
            if advantage
        ]
        if batch:
            backward = client.forward_backward(batch, "importance_sampling")
            client.optim_step(types.AdamParams(learning_rate=learning_rate, grad_clip_norm=1.0)).result()
            backward.result()
        report(step, reward=mean_rewards[-1], turns=sum(len(e.sums) + 1 for e in episodes) / len(episodes))
    return mean_rewards


def with_advantages(episodes_G: list[Episode]) -> list[tuple[Episode, float]]:
    mean = sum(episode.reward for episode in episodes_G) / len(episodes_G)
    return [(episode, episode.reward - mean) for episode in episodes_G]


def play_at_once(sampler: tinker.SamplingClient, tokenizer: Any, count: int) -> list[Episode]:
    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(lambda _: play(sampler, tokenizer), range(count)))


def play(sampler: tinker.SamplingClient, tokenizer: Any) -> Episode:
    """Play an episode: let the model call the tool until it answers, or until it has had its turns."""
    question = [{"role": "user", "content": f"What is {A} plus {B}?"}]
    episode = Episode(prompt_tokens(tokenizer, question, tools=[ADD]))
    params = types.SamplingParams(max_tokens=MAX_TOKENS, temperature=1.0)
    for _ in range(MAX_TURNS):
        prompt = types.ModelInput.from_ints(episode.tokens)
        [sequence] = sampler.sample(prompt, 1, params).result().sequences
        episode.extend(sequence.tokens, sequence.logprobs)
        episode.answer = decode(tokenizer, sequence.tokens)
        call = CALL.search(episode.answer)
        if call is None or sequence.stop_reason != "stop":
            break
        episode.extend(tokens_after_turn(tokenizer, use_tool(episode, call[1])))
    return episode


def use_tool(episode: Episode, call: str) -> Message:
    """Return the tool's message for a call: its result, or a sentence about the fault."""
    try:
        arguments = json.loads(call)["arguments"]
        episode.sums.append(int(arguments["a"]) + int(arguments["b"]))
    except (ValueError, TypeError, KeyError) as error:
        return {"role": "tool", "content": f"Error: {error}"}
    return {"role": "tool", "content": str(episode.sums[-1])}


def tokens_after_turn(tokenizer: Any, message: Message) -> Tokens:
    """Return what stands between a turn that the model has ended and its next one, if `message` comes between."""
    turn = {"role": "assistant", "content": "x"}
    until_turn = tokenizer.apply_chat_template([turn], tokenize=False)
    with_message = tokenizer.apply_chat_template([turn, message], tokenize=False, add_generation_prompt=True)
    end = tokenizer.eos_token  # sampled already
    after: Tokens = tokenizer.encode(with_message[until_turn.index(end) + len(end) :], add_special_tokens=False)
    return after


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=10)
    with tinker.ServiceClient() as service:
        rewards = run(service, parser.parse_args().steps)
    print(f"Mean reward rose from {rewards[0]:.2f} to {rewards[-1]:.2f}.")


if __name__ == "__main__":
    main()
