"""The peer: the same task trained by TRL's GRPOTrainer, and measured by the same ruler.

Equal are base model, LoRA rank, targets, initial weights, tasks and their order, rewards, rollouts per version, the
sampler and its random numbers, learning rate, AdamW and gradient clipping. configurations.TRL_DIFFERENCES lists the
differences. The rollouts reach TRL through its `rollout_func`, so agents of several turns train too: tokens that the
model didn't sample are left out of the loss by `env_mask`.
"""

from __future__ import annotations

import tempfile
import time
import warnings
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from loss_comparison.configurations import TRL_STEPS_PER_VERSION
from loss_comparison.measuring import sample_groups
from loss_comparison.settings import RunRequest, Settings
from loss_comparison.training_run import Bench, Progress, Stopwatch, result
from tandem.rl.models.lora.adapter import peft_config
from tandem.rl.policy import resolve_device, resolve_dtype
from tandem.rl.settings import LoraSettings, OptimizerSettings
from tandem.rl.tiny.model import resolve_model
from tandem.rl.tokens.tokenizing import ChatTokenizer, tokenize_history
from tandem.rl.trajectories import Trajectory


def train(request: RunRequest, progress: Progress = lambda what: None) -> dict[str, Any]:
    """Return the result of a run, like `training_run.train`. `overrides` are fields of GRPOConfig."""
    if request.lag:
        raise ValueError("GRPOTrainer samples with the policy that it trains; it can't be run with a lag.")
    settings, seed = request.settings, request.seed
    began, bench, watch = time.monotonic(), Bench.of(settings, seed), Stopwatch()
    curve: list[dict[str, Any]] = []

    def finished(version: int, adapter: Mapping[str, Tensor], rewards: Sequence[float], norms: Sequence[float]) -> None:
        record: dict[str, Any] = {"version": version}
        if version > 0:
            record |= {"reward": fmean(rewards), "num_steps": len(norms), "loss/grad_norm": fmean(norms)}
            record["sampled_versions"] = [version - 1]
        if settings.evaluated(version):
            record["eval"] = bench.ruler.measure(version, adapter).record()
        curve.append(record)
        progress(f"version {version} of {settings.num_versions}")

    finished(0, bench.trainer.versions[0], (), ())
    with tempfile.TemporaryDirectory() as scratch:
        _Run(request, bench, watch, finished, scratch).run()
    return result(request, curve, watch.cpu_s, time.monotonic() - began)


class _Run:
    """A GRPOTrainer, watched at each version."""

    def __init__(self, request: RunRequest, bench: Bench, watch: Stopwatch, finished: Any, scratch: str) -> None:
        self._request, self._bench, self._watch, self._finished = request, bench, watch, finished
        self._scratch = scratch
        self._chat = ChatTokenizer(bench.sampler.tokenizer)
        self._rewards: list[float] = []
        self._norms: list[float] = []

    def run(self) -> None:
        trainer = self._trainer(self._request.settings)
        with torch.no_grad():
            parameters = _adapter_parameters(trainer.model)
            for name, value in self._bench.trainer.versions[0].items():
                parameters[name].copy_(value)
        self._watch.__enter__()
        trainer.train()
        self._watch.__exit__()

    def _trainer(self, settings: Settings) -> Any:
        from datasets import Dataset
        from transformers import AutoModelForCausalLM

        # An unknown version of vLLM, which isn't used here, and `rollout_func`, which may change.
        warnings.filterwarnings("ignore", message="TRL currently supports vLLM versions")
        warnings.filterwarnings("ignore", message="You are using 'rollout_func'")
        from trl import GRPOTrainer

        place = resolve_device(settings.device)
        model = AutoModelForCausalLM.from_pretrained(
            resolve_model(settings.base_model), dtype=resolve_dtype(settings.dtype, place)
        )
        # The prompts only count the tasks: `_roll_out` returns the tokens.
        rows = [{"prompt": str(index)} for index in range(settings.groups_per_version * settings.num_versions)]
        trainer = GRPOTrainer(
            model=model,
            reward_funcs=_reward,
            rollout_func=self._roll_out,
            args=self._arguments(settings, place.type),
            train_dataset=Dataset.from_list(rows),
            processing_class=self._bench.sampler.tokenizer,
            peft_config=peft_config(LoraSettings(r=settings.lora_r, alpha=settings.lora_alpha)),
            callbacks=[self._callback()],
        )
        trainer.remove_callback(_progress_printer())
        return trainer

    def _arguments(self, settings: Settings, device: str) -> Any:
        from trl import GRPOConfig

        optimizer, rollouts = OptimizerSettings(), settings.groups_per_version * settings.group_size
        if rollouts % TRL_STEPS_PER_VERSION:
            raise ValueError(
                f"{rollouts} rollouts per version can't be split over {TRL_STEPS_PER_VERSION} gradient steps."
            )
        return GRPOConfig(
            output_dir=self._scratch,
            per_device_train_batch_size=rollouts // TRL_STEPS_PER_VERSION,
            steps_per_generation=TRL_STEPS_PER_VERSION,
            gradient_accumulation_steps=1,
            max_steps=settings.num_versions * TRL_STEPS_PER_VERSION,
            num_generations=settings.group_size,
            max_completion_length=settings.max_tokens,
            temperature=1.0,
            shuffle_dataset=False,
            seed=self._request.seed,
            learning_rate=settings.learning_rate,
            lr_scheduler_type="constant",
            warmup_steps=0,
            adam_beta1=optimizer.betas[0],
            adam_beta2=optimizer.betas[1],
            adam_epsilon=optimizer.eps,
            weight_decay=optimizer.weight_decay,
            max_grad_norm=optimizer.max_grad_norm,
            beta=0.0,
            bf16=device == "cuda" and settings.dtype != "float32",
            use_cpu=device == "cpu",
            gradient_checkpointing=device == "cuda",
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            **self._request.overrides,
        )

    def _roll_out(self, prompts: Sequence[str], trainer: Any) -> dict[str, list[Any]]:
        """Roll out the version in training as Tandem's run does, and return what TRL trains on."""
        settings, seed = self._request.settings, self._request.seed
        version = trainer.state.global_step // TRL_STEPS_PER_VERSION
        indices = [int(prompt) for prompt in prompts]
        first = version * settings.groups_per_version
        expected = [first + number // settings.group_size for number in range(len(prompts))]
        if indices != expected:
            raise RuntimeError(f"TRL asks for rollouts of tasks {indices}, not of {expected}.")
        tasks = self._bench.tasks.batch(version, settings.groups_per_version)
        groups = sample_groups(
            self._bench.ruler, version, _adapter(trainer.model), tasks, settings.group_size, f"train/{seed}/{version}"
        )
        rollouts = [self._rollout(trajectory) for group in groups for trajectory in group.trajectories]
        self._rewards += [rollout["reward"] for rollout in rollouts]
        return {name: [rollout[name] for rollout in rollouts] for name in rollouts[0]}

    def _rollout(self, trajectory: Trajectory) -> dict[str, Any]:
        """Return the ids of prompt and completion, and for each completion token its logprob and if it is trained.

        Of a rollout that isn't one exact sequence, TRL trains the last one: it takes one per rollout.
        """
        sequences = [sequence for history in trajectory.histories for sequence in tokenize_history(history, self._chat)]
        ids, mask = sequences[-1].token_ids, sequences[-1].loss_mask
        trained = mask.nonzero().squeeze(1)
        prompt, end = int(trained[0]), int(trained[-1]) + 1
        return {
            "prompt_ids": ids[:prompt].tolist(),
            "completion_ids": ids[prompt:end].tolist(),
            "logprobs": sequences[-1].sampling_logprobs[prompt:end].nan_to_num(0.0).tolist(),
            "env_mask": mask[prompt:end].int().tolist(),
            "reward": trajectory.reward,
        }

    def _callback(self) -> Any:
        from transformers import TrainerCallback

        run = self

        class AtEachVersion(TrainerCallback):
            def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **more: Any) -> None:
                if "grad_norm" in (logs or {}):
                    run._norms.append(float(logs["grad_norm"]))

                if "grad_norm" in (logs or {}) and state.global_step % TRL_STEPS_PER_VERSION == 0:
                    run._at_version(state.global_step // TRL_STEPS_PER_VERSION, more["model"])

        return AtEachVersion()

    def _at_version(self, version: int, model: Any) -> None:
        """Measure the version, without counting its CPU time and without using the trainer's random numbers."""
        self._watch.__exit__()
        with torch.random.fork_rng(devices=[]):
            self._finished(version, _adapter(model), self._rewards, self._norms)
        self._rewards, self._norms = [], []
        self._watch.__enter__()


def _reward(completions: list[Any], reward: list[float], **unused: Any) -> list[float]:
    """Return the rewards that came with the rollouts."""
    return reward


def _adapter(model: Any) -> dict[str, Tensor]:
    """Return a copy of the adapter in training."""
    return {name: p.detach().float().cpu().clone() for name, p in _adapter_parameters(model).items()}


def _adapter_parameters(model: Any) -> dict[str, Tensor]:
    """Return PEFT's trained parameters under the names of its files."""
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    return {name.replace(".default", ""): trained[name] for name in sorted(trained)}


def _progress_printer() -> type:
    from transformers.trainer_callback import PrinterCallback

    return PrinterCallback
