"""The built-in tiny model: a one-million-parameter Qwen3, trained from a seed in half a minute on two cores.

It is for the quickstart and for tests, where it stands in for a real base model: `builtin:tiny` in a configuration.
"""

import hashlib
import itertools
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path

import torch
from filelock import FileLock
from torch.nn.functional import cross_entropy
from torch.optim.lr_scheduler import LambdaLR
from transformers import GenerationConfig, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from tandem.rl.tiny_corpus import Conversation, conversations
from tandem.rl.tiny_tokenizer import CHAT_TEMPLATE, render, train_tokenizer

BUILTIN_PREFIX = "builtin:"
IGNORED = -100


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the weights, besides the corpus and the seed."""

    version: int = 2
    vocab_size: int = 512
    hidden_size: int = 128
    intermediate_size: int = 384
    num_layers: int = 2
    num_heads: int = 4
    num_kv_heads: int = 2
    head_dim: int = 32
    max_position_embeddings: int = 2048
    tokenizer_conversations: int = 2000
    steps: int = 450
    batch_size: int = 24
    matrix_learning_rate: float = 0.02
    other_learning_rate: float = 0.01
    warmup_steps: int = 30
    num_threads: int = 1


def resolve_model(spec: str) -> str:
    """The path or hub name to load for `spec`: `builtin:tiny` is built (once) and becomes its directory."""
    if not spec.startswith(BUILTIN_PREFIX):
        return spec
    if spec != BUILTIN_PREFIX + "tiny":
        raise ValueError(f"Unknown built-in model {spec!r}: the only one is 'builtin:tiny'.")
    return str(build_tiny_model())


def build_tiny_model(cache_dir: str | Path | None = None, seed: int = 0) -> Path:
    """Build the model unless it is cached, and return its directory in Hugging Face format.

    The cache is `cache_dir`, else $TANDEM_CACHE_DIR, else ~/.cache/tandem. Processes that ask at the same time wait
    for one of them to build. The directory appears complete or not at all.
    """
    cache = Path(cache_dir or os.environ.get("TANDEM_CACHE_DIR") or Path.home() / ".cache" / "tandem").expanduser()
    recipe = Recipe()
    target = cache / f"tiny-{_fingerprint(recipe, seed)}"
    if target.exists():
        return target
    cache.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{target}.lock"):
        if not target.exists():
            work = Path(tempfile.mkdtemp(prefix=f"{target.name}.", dir=cache))
            try:
                _build(recipe, seed, work)
                work.rename(target)
            finally:
                shutil.rmtree(work, ignore_errors=True)
    return target


@lru_cache
def _fingerprint(recipe: Recipe, seed: int) -> str:
    """A short hash of what the model is built from; the corpus is represented by its first conversations."""
    corpus = [asdict(conversation) for conversation in itertools.islice(conversations(seed), 500)]
    source = json.dumps([asdict(recipe), seed, CHAT_TEMPLATE, corpus])
    return hashlib.sha256(source.encode()).hexdigest()[:12]


def _build(recipe: Recipe, seed: int, directory: Path) -> None:
    with _torch_settings(recipe.num_threads, seed):
        tokenizer = _tokenizer(recipe, seed)
        model = Qwen3ForCausalLM(_config(recipe, tokenizer))
        _train(model, tokenizer, recipe, seed)
    model.generation_config = GenerationConfig(
        do_sample=True, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)


@contextmanager
def _torch_settings(num_threads: int, seed: int) -> Iterator[None]:
    """The same threads and random numbers for every build, and the caller's own afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            yield
    finally:
        torch.set_num_threads(before)


def _tokenizer(recipe: Recipe, seed: int) -> PreTrainedTokenizerFast:
    sample = itertools.islice(conversations(seed), recipe.tokenizer_conversations)
    texts = (render(conversation.messages, conversation.tools) for conversation in sample)
    return train_tokenizer(texts, recipe.vocab_size, recipe.max_position_embeddings)


def _config(recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> Qwen3Config:
    return Qwen3Config(
        vocab_size=recipe.vocab_size,
        hidden_size=recipe.hidden_size,
        intermediate_size=recipe.intermediate_size,
        num_hidden_layers=recipe.num_layers,
        num_attention_heads=recipe.num_heads,
        num_key_value_heads=recipe.num_kv_heads,
        head_dim=recipe.head_dim,
        max_position_embeddings=recipe.max_position_embeddings,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        dtype="float32",
    )


def _train(model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, recipe: Recipe, seed: int) -> None:
    optimizers = _optimizers(model, recipe)
    schedulers = [LambdaLR(optimizer, lambda step: _schedule(step, recipe)) for optimizer in optimizers]
    batches = _batches(tokenizer, recipe, seed)
    for step in range(recipe.steps):
        input_ids, labels = next(batches)
        loss = _loss(model, input_ids, labels)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, scheduler in zip(optimizers, schedulers, strict=True):
            optimizer.step()
            optimizer.zero_grad()
            scheduler.step()
        if step % 20 == 0 or step == recipe.steps - 1:
            _report(step + 1, recipe.steps, loss.item())


def _optimizers(model: Qwen3ForCausalLM, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the layers, which needs half the steps of AdamW here; AdamW for everything else."""
    matrices, others = [], []
    for name, parameter in model.named_parameters():
        (matrices if ".layers." in name and parameter.ndim == 2 else others).append(parameter)
    return [
        torch.optim.Muon(matrices, lr=recipe.matrix_learning_rate, weight_decay=0.01),
        torch.optim.AdamW(others, lr=recipe.other_learning_rate, betas=(0.9, 0.95), weight_decay=0.01),
    ]


def _schedule(step: int, recipe: Recipe) -> float:
    """A linear warm-up, then a linear way down to zero, as a factor of the learning rate."""
    return min((step + 1) / recipe.warmup_steps, (recipe.steps - step) / (recipe.steps - recipe.warmup_steps), 1.0)


def _loss(model: Qwen3ForCausalLM, input_ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy over the trained tokens. Right padding needs no mask: attention only looks back."""
    hidden = model.model(input_ids=input_ids[:, :-1]).last_hidden_state
    targets = labels[:, 1:]
    trained = targets != IGNORED
    return cross_entropy(model.lm_head(hidden[trained]), targets[trained])


def _batches(
    tokenizer: PreTrainedTokenizerFast, recipe: Recipe, seed: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Batches of (input_ids, labels), both [batch, T]; chats of similar length share a batch to save padding."""
    stream = (_example(tokenizer, conversation) for conversation in conversations(seed + 1))
    order = torch.Generator().manual_seed(seed)
    per_pool = 16
    while True:
        pool = sorted(itertools.islice(stream, per_pool * recipe.batch_size), key=lambda example: len(example[0]))
        for k in torch.randperm(per_pool, generator=order).tolist():
            examples = pool[k * recipe.batch_size : (k + 1) * recipe.batch_size]
            yield tuple(
                torch.nn.utils.rnn.pad_sequence([e[part] for e in examples], batch_first=True, padding_value=padding)
                for part, padding in ((0, tokenizer.pad_token_id), (1, IGNORED))
            )


def _example(tokenizer: PreTrainedTokenizerFast, conversation: Conversation) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids [T] and labels [T] of a chat: labels are the ids where the assistant speaks, else IGNORED."""
    text = render(conversation.messages, conversation.tools)
    ids, labels = [], []
    header, end = "<|im_start|>assistant\n", "<|im_end|>"
    for k, part in enumerate(text.split(header)):
        answer, stop, rest = part.partition(end) if k else ("", "", part)
        for piece, trained in ((header if k else "", False), (answer + stop, True), (rest, False)):
            tokens = tokenizer.backend_tokenizer.encode(piece).ids
            ids += tokens
            labels += tokens if trained else [IGNORED] * len(tokens)
    return torch.tensor(ids), torch.tensor(labels)


def _report(step: int, steps: int, loss: float) -> None:
    """One line on stderr, rewritten in place on a terminal; elsewhere only its first and last states."""
    if sys.stderr.isatty() or step in (1, steps):
        end = "\n" if step == steps or not sys.stderr.isatty() else ""
        print(f"\rBuilding the tiny model: step {step}/{steps}, loss {loss:.3f}", end=end, file=sys.stderr, flush=True)
