"""The built-in tiny model, `builtin:tiny` in a configuration: a Qwen3 of half a million parameters.

It stands in for a real base model in the quickstart and in tests. Its files are part of the package, so every machine
has the same weights; `tandem.rl.tiny.training` is the recipe that made them. Importing this module needs no torch.
"""

from pathlib import Path

BUILTIN_PREFIX = "builtin:"
TINY_MODEL_DIR = Path(__file__).parent / "weights"
"""Model and tokenizer in Hugging Face format."""


def resolve_model(spec: str) -> str:
    """Return the directory or Hugging Face id to load for `spec`. Raises ValueError for an unknown built-in model."""
    if not spec.startswith(BUILTIN_PREFIX):
        return spec
    if spec != BUILTIN_PREFIX + "tiny":
        raise ValueError(f"Unknown built-in model {spec!r}: the only one is 'builtin:tiny'.")
    return str(TINY_MODEL_DIR)
