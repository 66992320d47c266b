"""The built-in tiny model: a one-million-parameter Qwen3, trained from a seed in half a minute on two cores.

It is for the quickstart and for tests, where it stands in for a real base model: `builtin:tiny` in a configuration.
Importing this needs no torch: every process of a service asks where the model is, and one may have to make it.
"""

import hashlib
import itertools
import json
import os
import shutil
import tempfile
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path

from filelock import FileLock

from tandem.rl.tiny.chat_template import CHAT_TEMPLATE
from tandem.rl.tiny.corpus import conversations

BUILTIN_PREFIX = "builtin:"


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
    from tandem.rl.tiny.training import train_tiny_model

    cache.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{target}.lock"):
        if not target.exists():
            work = Path(tempfile.mkdtemp(prefix=f"{target.name}.", dir=cache))
            try:
                train_tiny_model(recipe, seed, work)
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
