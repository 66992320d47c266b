"""The frozen base weights, held by several learners together: each has a part of every layer.

    shards = Shards(process_group, device)
    with shards.collecting() as parts:             # parameters are replaced while they are loaded
        model = AutoModelForCausalLM.from_pretrained(path)
    shards.apply(model, parts)                     # FSDP2: a layer is whole only while it computes

Matrices of decoder layers are split by rows (`torch.chunk`), and gathered layer by layer in every forward and backward
pass. So all learners of a process group must run the same passes in the same order: one with fewer rows than the others
adds passes without effect (`most`, `Policy.idle_pass`). Norms, biases, embeddings and the output head stay whole on
each learner. Adapters are added after `apply`, so FSDP2 doesn't know them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.modules.module import (
    register_module_module_registration_hook,
    register_module_parameter_registration_hook,
)
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from tandem.rl.errors import PolicyError

Parts = dict[nn.Parameter, Tensor]
"""This learner's part of a parameter, by the parameter that keeps its place in the model."""


class Shards:
    """The learners that hold one copy of the base weights, as one of them sees the others."""

    def __init__(self, group: dist.ProcessGroup, device: torch.device) -> None:
        self._group, self._device = group, device
        self._mesh = DeviceMesh.from_group(group, device.type)
        self.size, self.rank = group.size(), group.rank()

    def most(self, number: int) -> int:
        """Return the largest of the numbers that these learners give. All of them must call this."""
        largest = torch.tensor(number, device=self._device)
        dist.all_reduce(largest, op=dist.ReduceOp.MAX, group=self._group)
        return int(largest)

    @contextmanager
    def collecting(self) -> Iterator[Parts]:
        """Keep only this learner's part of each layer's matrices that are loaded in the block.

        Every matrix is whole for a moment, in main memory and one at a time, so conversions of a checkpoint's layout
        see whole matrices.
        """
        parts: Parts = {}
        parents: dict[nn.Module, nn.Module] = {}

        def remember(parent: nn.Module, _name: str, child: nn.Module | None) -> None:
            if child is not None:
                parents[child] = parent

        def replace(module: nn.Module, _name: str, parameter: nn.Parameter | None) -> nn.Parameter | None:
            if parameter is None or parameter.is_meta or parameter.dim() < 2 or not _is_in_layer(module, parents):
                return None
            place = nn.Parameter(torch.empty_like(parameter, device="meta"), requires_grad=False)
            place._is_hf_initialized = True  # type: ignore[attr-defined]  # else transformers fills it with noise
            parts[place] = self._own_part(parameter)
            return place

        hooks = [
            register_module_module_registration_hook(remember),  # type: ignore[arg-type]  # a hook may return None
            register_module_parameter_registration_hook(replace),  # type: ignore[arg-type]
        ]
        try:
            yield parts
        finally:
            for hook in hooks:
                hook.remove()

    @torch.no_grad()
    def apply(self, model: PreTrainedModel, parts: Parts) -> None:
        """Make the layers of a model gather the collected parts while they compute, and move the rest to the device.

        Raises PolicyError if the model's layers have no matrices that could be split.
        """
        decoder = model.get_decoder()
        for layer in _layers(model):  # with those of an image encoder, which never run
            own = {name: parts[weight] for name, weight in layer.named_parameters() if weight in parts}
            whole = {weight for weight in layer.parameters() if weight not in parts}
            fully_shard(layer, mesh=self._mesh, reshard_after_forward=True, ignored_params=whole)
            places = dict(layer.named_parameters())
            layer.load_state_dict(
                {name: _like(places[name], part) for name, part in own.items()}, strict=False, assign=True
            )
        if not any(isinstance(weight, DTensor) for weight in decoder.parameters()):
            raise PolicyError(
                f"{type(model).__name__} has no decoder layers that can be split over learners. "
                f"Set learners.shard to 1."
            )
        # The root has no weights of its own. It makes the layers one pass, so that the next one is gathered in time.
        outside = {weight for weight in decoder.parameters() if not isinstance(weight, DTensor)}
        fully_shard(decoder, mesh=self._mesh, ignored_params=outside)
        model.to(self._device)  # type: ignore[arg-type]  # transformers' decorator hides the signature

    def _own_part(self, parameter: nn.Parameter) -> Tensor:
        chunks = parameter.detach().chunk(self.size)
        own = chunks[self.rank] if self.rank < len(chunks) else chunks[0][:0]
        return own.to(self._device, copy=True)  # a copy, so that the whole one is freed


def reset_after_error(decoder: nn.Module) -> None:
    """Let the next pass of a split model begin anew after an exception in the middle of one, on all its learners."""
    if isinstance(decoder, FSDPModule):
        decoder.reset_iter_state()


def _layers(model: nn.Module) -> list[nn.Module]:
    """Return the outermost layers, the units that are gathered at once."""
    found: list[nn.Module] = []
    inside: set[nn.Module] = set()
    for module in model.modules():  # parents come before their children
        if isinstance(module, GradientCheckpointingLayer) and module not in inside:
            found.append(module)
            inside.update(module.modules())
    return found


def _is_in_layer(module: nn.Module, parents: dict[nn.Module, nn.Module]) -> bool:
    at: nn.Module | None = module
    while at is not None:
        if isinstance(at, GradientCheckpointingLayer):
            return True
        at = parents.get(at)
    return False


def _like(place: nn.Parameter, part: Tensor) -> nn.Parameter:
    """Return the parameter of FSDP2 at `place` with its local part."""
    assert isinstance(place, DTensor), "FSDP2 has replaced the parameters that it manages"
    whole: Any = DTensor.from_local(
        part, place.device_mesh, place.placements, run_check=False, shape=place.shape, stride=place.stride()
    )
    return nn.Parameter(whole, requires_grad=False)
