"""The recipe of the built-in tiny model: tokenizer, architecture and training, half a minute on two cores.

Run `python -m tandem.rl.tiny.training DIRECTORY` to build it anew from the seed. The tokenizer's files come out the
same byte for byte; weights differ a little between machines, because floating-point sums do.
"""

import argparse
import itertools
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy
from torch.optim.lr_scheduler import LambdaLR
from transformers import GenerationConfig, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from tandem.rl.tiny.corpus import Conversation, conversations
from tandem.rl.tiny.tokenizer import render, train_tokenizer

IGNORED = -100


@dataclass(frozen=True)
class Recipe:
    """The sizes and rates that, with the corpus and the seed, determine the model."""

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


def train_tiny_model(directory: Path, recipe: Recipe | None = None, seed: int = 0) -> None:
    """Write model and tokenizer to `directory` in Hugging Face format.

    Weights are stored in half precision, which halves the files; the configuration says float32, so the model computes
    in float32 by default.
    """
    recipe = recipe or Recipe()
    with _torch_settings(recipe.num_threads, seed):
        tokenizer = _tokenizer(recipe, seed)
        model = Qwen3ForCausalLM(_config(recipe, tokenizer))
        _train(model, tokenizer, recipe, seed)
    model.generation_config = GenerationConfig(
        do_sample=True, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    model.save_pretrained(directory, state_dict={name: tensor.half() for name, tensor in model.state_dict().items()})
    tokenizer.save_pretrained(directory)


@contextmanager
def _torch_settings(num_threads: int, seed: int) -> Iterator[None]:
    """Fix threads and random numbers inside the block; restore the caller's afterwards."""
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
    """Use Muon for the matrices inside the layers, where it needs half the steps of AdamW, and AdamW for the rest."""
    matrices: list[torch.nn.Parameter] = []
    others: list[torch.nn.Parameter] = []
    for name, parameter in model.named_parameters():
        (matrices if ".layers." in name and parameter.ndim == 2 else others).append(parameter)
    return [
        torch.optim.Muon(matrices, lr=recipe.matrix_learning_rate, weight_decay=0.01),
        torch.optim.AdamW(others, lr=recipe.other_learning_rate, betas=(0.9, 0.95), weight_decay=0.01),
    ]


def _schedule(step: int, recipe: Recipe) -> float:
    """Return the factor of the learning rate: linear warm-up, then linear decay to zero."""
    return min((step + 1) / recipe.warmup_steps, (recipe.steps - step) / (recipe.steps - recipe.warmup_steps), 1.0)


def _loss(model: Qwen3ForCausalLM, input_ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return the mean cross-entropy over the trained tokens. Right padding needs no mask: attention is causal."""
    hidden = model.model(input_ids=input_ids[:, :-1]).last_hidden_state
    targets = labels[:, 1:]
    trained = targets != IGNORED
    return cross_entropy(model.lm_head(hidden[trained]), targets[trained])


def _batches(
    tokenizer: PreTrainedTokenizerFast, recipe: Recipe, seed: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield (input_ids, labels), both [batch, T]; chats of similar length share a batch to save padding."""
    stream = (_example(tokenizer, conversation) for conversation in conversations(seed + 1))
    order = torch.Generator().manual_seed(seed)
    per_pool = 16
    while True:
        pool = sorted(itertools.islice(stream, per_pool * recipe.batch_size), key=lambda example: len(example[0]))
        for k in torch.randperm(per_pool, generator=order).tolist():
            examples = pool[k * recipe.batch_size : (k + 1) * recipe.batch_size]
            ids, labels = zip(*examples, strict=True)
            yield _padded(ids, tokenizer.pad_token_id), _padded(labels, IGNORED)


def _padded(rows: Sequence[torch.Tensor], padding: int) -> torch.Tensor:
    return torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True, padding_value=padding)


def _example(tokenizer: PreTrainedTokenizerFast, conversation: Conversation) -> tuple[torch.Tensor, torch.Tensor]:
    """Return token ids [T] and labels [T] of a chat; labels are the ids where the assistant speaks, else IGNORED."""
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
    """Print one line to stderr: rewritten in place on a terminal, else only for the first and the last step."""
    if sys.stderr.isatty() or step in (1, steps):
        end = "\n" if step == steps or not sys.stderr.isatty() else ""
        print(f"\rBuilding the tiny model: step {step}/{steps}, loss {loss:.3f}", end=end, file=sys.stderr, flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Build the tiny model anew.")
    parser.add_argument("directory", type=Path, help="Receives config, tokenizer and weights.")
    train_tiny_model(parser.parse_args().directory)
