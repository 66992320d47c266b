"""A chat in this process: transformers' generate on a policy version, many requests at a time.

Like the service, it adds to each choice the sampled token ids with their logprobs, the prompt's ids and the policy
version. So tokenising and losses see exact tokens, and a run needs neither an engine nor HTTP.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, LogitsProcessor, LogitsProcessorList

from loss_comparison.tool_calls import assistant_message
from tandem.rl.environments.base import Message, Tool, request_messages
from tandem.rl.models.lora.adapter import add_adapter
from tandem.rl.policy import check_tensors, resolve_device, resolve_dtype
from tandem.rl.settings import LoraSettings
from tandem.rl.tokens.tokenizing import ChatTokenizer

QUIET_ROUNDS = 4
"""Iterations of the event loop without a new request after which a batch is sampled."""


@dataclass(eq=False)
class _Request:
    """One answer to sample. It has its own random numbers, which don't depend on other requests of its batch."""

    prompt_ids: list[int]
    has_tools: bool
    temperature: float
    max_tokens: int
    random: random.Random
    answer: asyncio.Future[dict[str, Any]]
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)


class Sampler:
    """A copy of the base model that samples with any version's adapter; a `Chat`.

    sampler.load(version, adapter)
    sampler.reseed("train/7")     # the same numbers again for the same text
    await sampler(messages)
    """

    def __init__(
        self, path: str, lora: LoraSettings, device: str, dtype: str, max_tokens: int, max_batch: int = 256
    ) -> None:
        place = resolve_device(device)
        # SDPA everywhere: FlexAttention's masks don't support the left padding and the cache of generate.
        model = AutoModelForCausalLM.from_pretrained(
            path, dtype=resolve_dtype(dtype, place), attn_implementation="sdpa"
        )
        model.to(place)  # type: ignore[arg-type]  # transformers' decorator hides the signature
        self._parameters = add_adapter(model, lora)
        self._model = model.eval()
        self.tokenizer = AutoTokenizer.from_pretrained(path)
        self._chat = ChatTokenizer(self.tokenizer)
        self._eos = _end_ids(model.generation_config.eos_token_id, self.tokenizer.eos_token_id)
        self._max_tokens, self._max_batch = max_tokens, max_batch
        self._version, self._stream, self._count = 0, "", 0
        self._rendered = lru_cache(maxsize=1024)(self._render)
        self._waiting: list[_Request] = []
        self._flushing: asyncio.Task[None] | None = None

    @torch.no_grad()
    def load(self, version: int, adapter: Mapping[str, Tensor]) -> None:
        """Sample with this version from now on."""
        check_tensors("adapter", {name: parameter.shape for name, parameter in self._parameters.items()}, adapter)
        for name, parameter in self._parameters.items():
            parameter.copy_(adapter[name])
        self._version = version

    def reseed(self, stream: str) -> None:
        """Begin a stream of random numbers; request n of it always has the same ones."""
        self._stream, self._count = stream, 0

    async def __call__(
        self, messages: Sequence[Message], *, tools: Sequence[Tool] | None = None, **sampling: Any
    ) -> dict[str, Any]:
        temperature, max_tokens = sampling.pop("temperature", 1.0), sampling.pop("max_tokens", self._max_tokens)
        if sampling:
            raise ValueError(
                f"The sampler of this benchmark takes temperature and max_tokens only, not {', '.join(sampling)}. "
                f"Compare losses on another task."
            )
        loop = asyncio.get_running_loop()
        request = _Request(
            self._prompt_ids(messages, tools), bool(tools), temperature, max_tokens,
            random.Random(f"{self._stream}/{self._count}"), loop.create_future(),
        )  # fmt: skip
        self._count += 1
        self._waiting.append(request)
        if self._flushing is None:
            self._flushing = loop.create_task(self._flush())
        return await request.answer

    def _prompt_ids(self, messages: Sequence[Message], tools: Sequence[Tool] | None) -> list[int]:
        return list(self._rendered(json.dumps(request_messages(messages)), json.dumps(tools)))

    def _render(self, messages: str, tools: str) -> tuple[int, ...]:
        """Render a prompt once for all rollouts of a group."""
        template = self._chat.template
        prepared = [template.prepare(message) for message in json.loads(messages)]
        return tuple(self._chat.encode(template.render(prepared, json.loads(tools), None)))

    async def _flush(self) -> None:
        """Wait until no more requests arrive, then answer all of them together."""
        seen = quiet = 0
        while quiet < QUIET_ROUNDS:
            await asyncio.sleep(0)
            quiet = quiet + 1 if len(self._waiting) == seen else 0
            seen = len(self._waiting)
        requests, self._waiting, self._flushing = self._waiting, [], None
        for start in range(0, len(requests), self._max_batch):
            batch = requests[start : start + self._max_batch]
            try:
                await asyncio.to_thread(self._generate, batch)
            except Exception as error:
                for request in batch:
                    request.answer.set_exception(error)
                continue
            for request in batch:
                if not request.answer.done():  # its rollout may have been cancelled
                    request.answer.set_result(self._choice(request))

    @torch.no_grad()
    def _generate(self, batch: Sequence[_Request]) -> None:
        """Sample the tokens of each request, its end token included."""
        longest = max(len(request.prompt_ids) for request in batch)
        padding = [longest - len(request.prompt_ids) for request in batch]
        device = self._model.device
        ids = torch.tensor([[self._eos[0]] * pad + r.prompt_ids for pad, r in zip(padding, batch, strict=True)])
        mask = torch.tensor([[0] * pad + [1] * (longest - pad) for pad in padding])
        # The drawing processor leaves only one token possible, so the search is greedy.
        config = GenerationConfig(
            do_sample=False, max_new_tokens=max(request.max_tokens for request in batch), eos_token_id=self._eos,
            pad_token_id=self._eos[0],
        )  # fmt: skip
        self._model.generate(
            input_ids=ids.to(device), attention_mask=mask.to(device), generation_config=config,
            logits_processor=LogitsProcessorList([_Drawing(batch, frozenset(self._eos))]),
        )  # fmt: skip

    def _choice(self, request: _Request) -> dict[str, Any]:
        ended = request.token_ids[-1] in self._eos
        text = str(self.tokenizer.decode(request.token_ids, skip_special_tokens=True))
        message = assistant_message(text) if request.has_tools else {"role": "assistant", "content": text}
        finished = "tool_calls" if "tool_calls" in message else "stop"
        return {
            "index": 0,
            "finish_reason": finished if ended else "length",
            "message": message,
            "logprobs": {
                "content": [
                    {"token": f"token_id:{id_}", "logprob": logprob, "bytes": None, "top_logprobs": []}
                    for id_, logprob in zip(request.token_ids, request.logprobs, strict=True)
                ]
            },
            "token_ids": request.token_ids,
            "prompt_token_ids": request.prompt_ids,
            "policy_version": self._version,
        }


class _Drawing(LogitsProcessor):
    """Draws each row's next token from the model's distribution and records its logprob.

    generate's own logits would need [steps, B, V] of memory.
    """

    def __init__(self, batch: Sequence[_Request], eos: frozenset[int]) -> None:
        self._batch, self._eos = batch, eos
        self._temperatures = torch.tensor([request.temperature for request in batch])

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """`scores` are the logits [B, V]."""
        logprobs = scores.float().log_softmax(-1)
        tempered = (scores.float() / self._temperatures.to(scores.device).unsqueeze(1)).softmax(-1)
        cumulative = tempered.double().cumsum(-1)
        uniform = torch.tensor([[request.random.random()] for request in self._batch], dtype=torch.float64)
        aims = uniform.to(scores.device) * cumulative[:, -1:]
        drawn = torch.searchsorted(cumulative, aims, right=True).clamp_(max=scores.shape[1] - 1)
        self._note(drawn.squeeze(1).tolist(), logprobs.gather(1, drawn).squeeze(1).tolist())
        return torch.full_like(scores, -torch.inf).scatter_(1, drawn, 0.0)

    def _note(self, drawn: Sequence[int], logprobs: Sequence[float]) -> None:
        for request, id_, logprob in zip(self._batch, drawn, logprobs, strict=True):
            ended = request.token_ids and request.token_ids[-1] in self._eos
            if not ended and len(request.token_ids) < request.max_tokens:
                request.token_ids.append(id_)
                request.logprobs.append(logprob)


def _end_ids(*configured: int | Sequence[int] | None) -> list[int]:
    """Return every id that ends an answer, the model's own first."""
    ids: list[int] = []
    for one in configured:
        ids += [] if one is None else [one] if isinstance(one, int) else list(one)
    if not ids:
        raise ValueError("The base model has no end token in its generation config or its tokenizer. Add one.")
    return list(dict.fromkeys(ids))
