"""The memory plan of a configuration, before anything is started: with this machine's GPUs, or with those it names."""

from __future__ import annotations

from collections.abc import Sequence

from tandem.cli.gpus import Gpu
from tandem.cluster.base_models import ResolvedBaseModel
from tandem.cluster.config import BaseModelConfig, TandemConfig
from tandem.cluster.memory.fit import LENGTHS, find_fit
from tandem.cluster.memory.plan import MemoryPlan, Tenant
from tandem.cluster.placement import place
from tandem.rl.errors import PolicyError


def memory_plan(config: TandemConfig, name: str, gpus: Sequence[Gpu]) -> str:
    """Return the plan of a base model as text. Raises PolicyError, with settings that would fit, if it doesn't.

    Without a GPU here, a base model with `gpu_memory_bytes` is planned for as many GPUs as it has learners and engines.
    """
    named = config.base_model(name).gpu_memory_bytes
    if not gpus and named is None:
        return "not planned: no GPU here; set gpu_memory_bytes to plan for another machine"
    num_gpus = len(gpus) or sum(_most_gpus(base) for base in config.base_models)
    gpu_bytes = named or min(gpu.memory_bytes for gpu in gpus)
    placement = place(config, num_gpus)
    base = ResolvedBaseModel(placement.config.base_model(name), placement)
    if not base.config.is_on_gpu:
        return "on CPUs: no GPU is needed"
    try:
        return "\n".join(dict.fromkeys(map(str, _plans(base, gpu_bytes))))
    except PolicyError as error:
        others = (other for other in placement.base_models if other.name != name and other.is_on_gpu)
        left = num_gpus - sum(map(_fewest_gpus, others))
        raise PolicyError(f"{error}{_advice(base, gpu_bytes, left) if left > 0 else ''}") from None


def _plans(base: ResolvedBaseModel, gpu_bytes: int) -> list[MemoryPlan]:
    settings = base.config
    parts = [("learner", settings.learners.num_gpus), ("engine", settings.engine.num_gpus)]
    return [base.memory_plan(gpu_bytes, part) for part, share in parts if share]  # type: ignore[arg-type]


def _advice(base: ResolvedBaseModel, gpu_bytes: int, num_gpus: int) -> str:
    """Return a sentence about settings that fit on these GPUs."""
    longest = base.max_model_len
    lengths = [longest, *(length for length in LENGTHS if length < longest)]
    fit = find_fit(Tenant(base.config, base.geometry, longest), gpu_bytes, num_gpus, lengths)
    gpus = "1 GPU" if num_gpus == 1 else f"{num_gpus} GPUs"
    if fit is None:
        return f" No division of the model over {gpus} like {'this' if num_gpus == 1 else 'these'} fits."
    return f" On {gpus} it fits with {fit}."


def _fewest_gpus(base: BaseModelConfig) -> int:
    """Return the GPUs that a base model needs if its learners and engines share them as far as they can."""
    learners = base.learners.count if base.learners.num_gpus else 0
    engines = base.engine.replicas * base.engine.tensor_parallel_size if base.engine.num_gpus else 0
    return max(learners, engines)


def _most_gpus(base: BaseModelConfig) -> int:
    return base.learners.count + base.engine.replicas * base.engine.tensor_parallel_size
