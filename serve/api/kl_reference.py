"""Which version a job's KL penalty compares the policy with, read from the job's options."""

from __future__ import annotations

import re
from dataclasses import dataclass

from tandem.rl.config import TrainingConfig
from tandem.serve.api.validation import quoted
from tandem.serve.errors import Fault, InvalidRequestError

_VERSION = re.compile(r"(?:wandb-artifact:///)?([\w.-]+)/([\w.-]+)/([\w.-]+):step(0|[1-9][0-9]{0,8})")
_CHECKPOINT = re.compile(r"checkpoints/([0-9a-f]{64})")


@dataclass(frozen=True)
class KlReference:
    """A reference as the options name it; the store finds the checkpoint.

    Exactly one of these chooses it: `lag`, `digest`, `step` of the model `path`, or `step` of the job's own model.
    """

    field: str
    """The option that chose it."""
    step: int | None = None
    lag: int | None = None
    """Versions before the one that the job starts from, which is known when the job is claimed."""
    path: tuple[str, str, str] | None = None
    """Entity, project, name."""
    digest: str | None = None


def wanted_reference(config: TrainingConfig, artifacts_root: str) -> KlReference | None:
    """The KL reference that the options ask for, None without a KL penalty. Raises InvalidRequestError."""
    if not config.kl_penalty_coef:
        return None
    if config.kl_ref_adapter_path is not None:
        return _named(config.kl_ref_adapter_path, artifacts_root)
    if config.kl_penalty_step_lag is not None:
        return KlReference("kl_penalty_step_lag", lag=config.kl_penalty_step_lag)
    if config.kl_penalty_reference_step is not None:
        return KlReference("kl_penalty_reference_step", step=config.kl_penalty_reference_step)
    return KlReference("kl_penalty_coef", step=0)  # the zero adapter: the base model


def _named(adapter: str, artifacts_root: str) -> KlReference:
    """Both forms name a version; the string is never opened as a path."""
    field = "kl_ref_adapter_path"
    if version := _VERSION.fullmatch(adapter):
        entity, project, name, step = version.groups()
        return KlReference(field, step=int(step), path=(entity, project, name))
    if checkpoint := _CHECKPOINT.fullmatch(adapter.removeprefix(f"{artifacts_root.rstrip('/')}/")):
        return KlReference(field, digest=checkpoint[1])
    raise bad_reference(
        field,
        f"{quoted(adapter)} is neither entity/project/name:stepN nor checkpoints/<digest>, a checkpoint below the "
        "artifact root; other adapters can't be the KL reference",
    )


def bad_reference(field: str, reason: str) -> InvalidRequestError:
    """A KL reference that can't be used, at the option that chose it."""
    return InvalidRequestError([Fault(("body", "experimental_config", field), reason)], "invalid_training_config")
