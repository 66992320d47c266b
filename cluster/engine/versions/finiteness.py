"""Policy versions whose numbers aren't finite: found in their files, by a probe, and in the logits of requests.

Such a version gives no completion. Importing this module imports neither vLLM nor torch.
"""

from __future__ import annotations

import json
import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tandem.cluster.errors import VersionNotFiniteError

if TYPE_CHECKING:
    import torch
    from vllm.v1.engine import EngineCoreOutput
    from vllm.v1.engine.output_processor import OutputProcessor, OutputProcessorOutput, RequestState

logger = logging.getLogger(__name__)
REPORTED_S = 600.0
MAX_REPORTED = 100


class NotFiniteVersions:
    """The versions that this engine refuses, and those that lately gave a request logits that aren't finite."""

    def __init__(self) -> None:
        self._refused: dict[str, str] = {}
        self._seen: OrderedDict[str, float] = OrderedDict()  # the time of the last request, the oldest first

    def check(self, digest: str) -> None:
        """Raise VersionNotFiniteError if the version is refused."""
        if reason := self._refused.get(digest):
            self.see(digest)
            raise VersionNotFiniteError(digest, reason)

    def refuse(self, digest: str, reason: str) -> None:
        """Refuse the version from now on: weights never change, so another try would end in the same way."""
        logger.error("Policy version %s is refused: %s", digest, reason)
        self._refused[digest] = reason
        self.see(digest)

    def see(self, digest: str) -> None:
        """Record that a request to this version got no completion."""
        self._seen[digest] = time.monotonic()
        self._seen.move_to_end(digest)
        while len(self._seen) > MAX_REPORTED:
            self._seen.popitem(last=False)

    def recent(self) -> list[str]:
        """Return the digests of versions that requests were refused for in the last REPORTED_S seconds."""
        since = time.monotonic() - REPORTED_S
        return [digest for digest, seen_at in self._seen.items() if seen_at >= since]


def check_weights(directory: Path, dtype: torch.dtype) -> None:
    """Raise ValueError for an adapter with a weight that isn't finite in `dtype`, as vLLM holds it.

    vLLM multiplies the B matrices by alpha / r. On a CPU, infinite weights would also spoil other versions in the
    same batch.
    """
    from safetensors.torch import load_file

    config = json.loads((directory / "adapter_config.json").read_text())
    scaling = float(config["lora_alpha"]) / float(config["r"])
    for name, weight in load_file(directory / "adapter_model.safetensors").items():
        if not weight.isfinite().all():
            raise ValueError(f"its weight {name} isn't finite")
        held = weight.to(dtype) * (scaling if "lora_B" in name else 1)
        if not held.isfinite().all():
            largest = float(weight.abs().max())
            raise ValueError(f"its weight {name}, which is up to {largest:.3g}, isn't finite as {dtype}")


class FiniteOutputs:
    """Ends requests whose logits aren't finite, with vLLM's error for status 422, instead of sampling from them.

        FiniteOutputs(llm.output_processor, seen).install()

    vLLM would sample a meaningless token, and its response couldn't be written as JSON.
    """

    def __init__(self, processor: OutputProcessor, seen: Callable[[str], str]):
        """`seen` records the name of an adapter that gave such logits, and returns the message for the client."""
        self._processor, self._seen = processor, seen
        self._process = processor.process_outputs

    def install(self) -> None:
        self._processor.process_outputs = self._checked  # type: ignore[method-assign,assignment]

    def _checked(self, outputs: list[EngineCoreOutput], *args: Any, **options: Any) -> OutputProcessorOutput:
        finite: list[EngineCoreOutput] = []
        ended: list[str] = []
        for output in outputs:
            if _is_finite(output):
                finite.append(output)
            elif state := self._processor.request_states.get(output.request_id):
                ended += self._end(state)
        processed = self._process(finite, *args, **options)
        processed.reqs_to_abort.extend(ended)
        return processed

    def _end(self, state: RequestState) -> Iterable[str]:
        """End the request, and those beside it for other choices. Return the ids that vLLM's core has to abort."""
        from vllm.exceptions import VLLMUnprocessableEntityError

        message = self._seen(state.lora_name or "")
        if state.queue is not None:
            # Before the abort, which would put a normal end: an error in the queue stays.
            state.queue.put(VLLMUnprocessableEntityError(message, parameter="model"))
        whole = state.parent_req.request_id if state.parent_req else state.request_id
        return self._processor.abort_requests([whole], internal=True)


def _is_finite(output: EngineCoreOutput) -> bool:
    """Return False for NaN among the logits, or among the logprobs that were asked for."""
    if output.num_nans_in_logits > 0:
        return False
    for logprobs in (output.new_logprobs, output.new_prompt_logprobs_tensors):
        values: Any = None if logprobs is None else logprobs.logprobs  # of NumPy or torch
        if values is not None and bool((values != values).any()):
            return False
    return True
