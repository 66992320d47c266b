"""Read the reference version of the KL penalty from a job's options."""

from __future__ import annotations

import re

from tandem.rl.config import TrainingConfig
from tandem.rl.errors import ConfigError
from tandem.serve.names import quoted
from tandem.serve.store.policies.references import Checkpoint, KlReference, Lag, Step

_VERSION = re.compile(r"(?:wandb-artifact:///)?([\w.-]+)/([\w.-]+)/([\w.-]+):step(0|[1-9][0-9]{0,8})")
_CHECKPOINT = re.compile(r"checkpoints/([0-9a-f]{64})")


def kl_reference(config: TrainingConfig, artifacts_root: str) -> KlReference | None:
    """Return the KL reference that the options name, None without a KL penalty. Raises ConfigError."""
    if not config.kl_penalty_coef:
        return None
    if config.kl_ref_adapter_path is not None:
        return KlReference("kl_ref_adapter_path", _named(config.kl_ref_adapter_path, artifacts_root))
    if config.kl_penalty_step_lag is not None:
        return KlReference("kl_penalty_step_lag", Lag(config.kl_penalty_step_lag))
    if config.kl_penalty_reference_step is not None:
        return KlReference("kl_penalty_reference_step", Step(config.kl_penalty_reference_step))
    return KlReference("kl_penalty_coef", Step(0))  # the zero adapter: the base model


def _named(adapter: str, artifacts_root: str) -> Step | Checkpoint:
    """Parse either form of a version's name. The string is never opened as a path."""
    if version := _VERSION.fullmatch(adapter):
        entity, project, name, step = version.groups()
        return Step(int(step), (entity, project, name))
    if checkpoint := _CHECKPOINT.fullmatch(adapter.removeprefix(f"{artifacts_root.rstrip('/')}/")):
        return Checkpoint(checkpoint[1])
    raise ConfigError(
        "kl_ref_adapter_path",
        f"{quoted(adapter)} is neither entity/project/name:stepN nor checkpoints/<digest>, a checkpoint below the "
        "artifact root; other adapters can't be the KL reference",
    )
