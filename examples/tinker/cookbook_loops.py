"""tinker-cookbook's own training loops, unmodified, on local data.

    python examples/tinker/cookbook_loops.py rl --logs DIRECTORY [--tokenizer DIRECTORY]

Only data and environments are defined here. The tiny model's chats have the form of tinker-cookbook's renderer
`qwen3_instruct`. tinker-cookbook looks for the tokenizer under the base model's name; `--tokenizer` names its place.
"""

import argparse
import asyncio
import inspect
import json
import random
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import chz
import datasets
import tinker
from common import BASE_MODEL, MAX_TOKENS, Question, questions
from tinker_cookbook import renderers
from tinker_cookbook.distillation import train_off_policy, train_on_policy
from tinker_cookbook.distillation.datasets import DistillationDatasetConfig, TeacherConfig
from tinker_cookbook.preference import train_dpo
from tinker_cookbook.preference.dpo_datasets import DPODatasetBuilderFromComparisons
from tinker_cookbook.preference.preference_datasets import ComparisonDatasetBuilder
from tinker_cookbook.preference.types import Comparison, LabeledComparison
from tinker_cookbook.rl import train as rl_train
from tinker_cookbook.rl.problem_env import ProblemEnv, ProblemGroupBuilder
from tinker_cookbook.rl.types import EnvGroupBuilder, RLDataset, RLDatasetBuilder
from tinker_cookbook.supervised import train as supervised_train
from tinker_cookbook.supervised.data import SupervisedDatasetFromHFDataset, conversation_to_datum
from tinker_cookbook.supervised.types import ChatDatasetBuilder, ChatDatasetBuilderCommonConfig, SupervisedDataset
from tinker_cookbook.tokenizer_utils import get_tokenizer, register_tokenizer
from transformers import AutoTokenizer

RENDERER = "qwen3_instruct"
RANK = 16


@chz.chz
class Answers(ChatDatasetBuilder):
    """Questions with right answers, and a few that are held out."""

    steps: int

    def __call__(self) -> tuple[SupervisedDataset, SupervisedDataset | None]:
        size = self.common_config.batch_size
        return self.dataset(self.steps * size, False, size), self.dataset(32, True, 32)

    def dataset(self, count: int, held_out: bool, batch_size: int) -> SupervisedDataset:
        asked = questions(random.Random(0), count, held_out)
        rows = [{"messages": [*q.messages, {"role": "assistant", "content": q.answer}]} for q in asked]
        renderer = self.renderer
        return SupervisedDatasetFromHFDataset(
            datasets.Dataset.from_list(rows),
            batch_size,
            map_fn=lambda row: conversation_to_datum(row["messages"], renderer, max_length=None),
        )


@chz.chz
class Preferences(ComparisonDatasetBuilder):
    """Questions with a right and a wrong answer; the right one is A."""

    count: int

    def get_train_and_test_datasets(self) -> tuple[datasets.Dataset, datasets.Dataset | None]:
        rng = random.Random(0)
        asked = questions(rng, self.count)
        rows = [{"question": q.messages[0]["content"], "A": q.answer, "B": q.wrong_answer(rng)} for q in asked]
        return datasets.Dataset.from_list(rows), None

    def example_to_labeled_comparison(self, example: dict[str, Any]) -> LabeledComparison:
        chosen, rejected = ([{"role": "assistant", "content": example[label]}] for label in "AB")
        prompt: Any = [{"role": "user", "content": example["question"]}]
        return LabeledComparison(comparison=Comparison(prompt, chosen, rejected), label="A")  # type: ignore[arg-type]


class LargestEnv(ProblemEnv):
    """One question. The reward is 1 for the right answer in a sentence."""

    def __init__(self, question: Question, renderer: renderers.Renderer) -> None:
        super().__init__(renderer, format_coef=0.0)
        self.question = question

    def get_question(self) -> str:
        text: str = self.question.messages[0]["content"]
        return text

    def check_answer(self, sample_str: str) -> bool:
        return sample_str == self.question.answer

    def check_format(self, sample_str: str) -> bool:
        return True

    def get_reference_answer(self) -> str:
        return self.question.answer


class Groups(RLDataset):
    def __init__(self, asked: list[Question], batch_size: int, group_size: int) -> None:
        self.asked, self.batch_size, self.group_size = asked, batch_size, group_size
        self.renderer = renderers.get_renderer(RENDERER, get_tokenizer(BASE_MODEL))

    def get_batch(self, index: int) -> Sequence[EnvGroupBuilder]:
        batch = self.asked[index * self.batch_size : (index + 1) * self.batch_size]
        return [
            ProblemGroupBuilder(partial(LargestEnv, question, self.renderer), self.group_size) for question in batch
        ]

    def __len__(self) -> int:
        return len(self.asked) // self.batch_size


@chz.chz
class Questions(RLDatasetBuilder):
    """Groups of questions to answer, and a few that are held out."""

    steps: int
    batch_size: int
    group_size: int

    async def __call__(self) -> tuple[RLDataset, RLDataset | None]:
        trained = questions(random.Random(0), self.steps * self.batch_size)
        held_out = questions(random.Random(1), 32, held_out=True)
        return Groups(trained, self.batch_size, self.group_size), Groups(held_out, 32, 1)


def chats(batch_size: int) -> ChatDatasetBuilderCommonConfig:
    return ChatDatasetBuilderCommonConfig(
        model_name_for_tokenizer=BASE_MODEL, renderer_name=RENDERER, max_length=None, batch_size=batch_size
    )


def options(logs: Path) -> dict[str, Any]:
    """Return what the configurations of all loops have in common."""
    return {
        "log_path": str(logs),
        "model_name": BASE_MODEL,
        "recipe_name": "tandem_examples",
        "renderer_name": RENDERER,
        "lora_rank": RANK,
        "learning_rate": 2e-3,
    }


def sft(logs: Path, steps: int) -> Any:
    data = Answers(common_config=chats(32), steps=steps)
    return supervised_train.main, supervised_train.Config(dataset_builder=data, save_every=10, **options(logs))


def rl(logs: Path, steps: int) -> Any:
    data = Questions(steps=steps, batch_size=16, group_size=8)
    return rl_train.main, rl_train.Config(
        dataset_builder=data, max_tokens=MAX_TOKENS, loss_fn="cispo", eval_every=5, save_every=5, **options(logs)
    )


def rl_async(logs: Path, steps: int) -> Any:
    """Sample ahead of training. Such runs have a loss of their own, whose default is `stable_reinforce`."""
    data = Questions(steps=steps, batch_size=16, group_size=8)
    ahead = rl_train.AsyncConfig(max_steps_off_policy=1, groups_per_batch=16, loss_fn="ppo")
    return rl_train.main, rl_train.Config(
        dataset_builder=data, max_tokens=MAX_TOKENS, async_config=ahead, eval_every=0, save_every=5, **options(logs)
    )


def dpo(logs: Path, steps: int) -> Any:
    data = DPODatasetBuilderFromComparisons(common_config=chats(16), comparison_builder=Preferences(count=16 * steps))
    return train_dpo.main, train_dpo.Config(dataset_builder=data, dpo_beta=0.5, save_every=0, **options(logs))


def on_policy(logs: Path, steps: int, teacher: str) -> Any:
    data = DistillationDatasetConfig(
        dataset_builder=Questions(steps=steps, batch_size=16, group_size=4),
        teacher_config=TeacherConfig(base_model=BASE_MODEL, load_checkpoint_path=teacher),
        groups_per_batch=16,
    )
    return train_on_policy.main, train_on_policy.Config(
        dataset_configs=[data], max_tokens=MAX_TOKENS, eval_every=0, save_every=0, **options(logs)
    )


def off_policy(logs: Path, steps: int, teacher: str) -> Any:
    data = train_off_policy.DatasetWithTeacher(
        dataset_builder=Answers(common_config=chats(32), steps=steps),
        teacher_config=TeacherConfig(base_model=BASE_MODEL, load_checkpoint_path=teacher),
    )
    return train_off_policy.main, train_off_policy.Config(
        dataset_configs=[data], n_teacher_targets=8, batch_size=32, save_every=0, **options(logs)
    )


LOOPS: dict[str, Callable[..., Any]] = {loop.__name__: loop for loop in (sft, rl, rl_async, dpo, on_policy, off_policy)}


def run(name: str, logs: Path, **arguments: Any) -> list[dict[str, Any]]:
    """Run a loop, and return the metrics that it logged, a dictionary per step."""
    main, config = LOOPS[name](logs, **arguments)
    ended = main(config)
    if inspect.iscoroutine(ended):
        asyncio.run(ended)
    return [json.loads(line) for line in (logs / "metrics.jsonl").read_text().splitlines()]


def trained_teacher() -> str:
    """Train a teacher by supervised fine-tuning, and return the path of its weights."""
    import sft as supervised

    with tinker.ServiceClient() as service:
        client = supervised.run(service).trained
        return client.save_weights_for_sampler("teacher").result().path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("loop", choices=LOOPS)
    parser.add_argument("--logs", type=Path, required=True, help="a directory; a run continues from what it has there")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--tokenizer", help="the tokenizer's directory or Hugging Face id")
    arguments = parser.parse_args()
    if arguments.tokenizer:
        tokenizer: Any = AutoTokenizer.from_pretrained(arguments.tokenizer)
        register_tokenizer(BASE_MODEL, lambda: tokenizer)
    teacher = {"teacher": trained_teacher()} if arguments.loop.endswith("policy") else {}
    run(arguments.loop, arguments.logs, steps=arguments.steps, **teacher)


if __name__ == "__main__":
    main()
