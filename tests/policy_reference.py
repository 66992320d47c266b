"""Reference adapters and their logprobs, computed by transformers and PEFT alone."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from tandem.rl.settings import LoraSettings


def write_adapter(model_path: Path, directory: Path, seed: int, scale: float, lora: LoraSettings | None = None) -> None:
    """A checkpoint directory with an adapter whose B matrices are normal with standard deviation `scale`."""
    import peft
    from transformers import AutoModelForCausalLM

    lora = lora or LoraSettings()
    config = peft.LoraConfig(r=lora.r, lora_alpha=lora.alpha, target_modules=list(lora.target_modules))
    torch.manual_seed(seed)
    model = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.float32), config)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            weight.data = torch.randn_like(weight) * scale
    model.save_pretrained(directory)
    (directory / "manifest.json").write_text("{}")


class PolicyReference:
    """Logprobs in float32 of any sequence under any adapter on a base model."""

    def __init__(self, model_path: Path, adapters: Mapping[str, Path]):
        from peft import PeftModel
        from transformers import AutoModelForCausalLM

        base = AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.float32)
        names = iter(adapters)
        first = next(names)
        self._model = PeftModel.from_pretrained(base, str(adapters[first]), adapter_name=first).eval()
        for name in names:
            self._model.load_adapter(str(adapters[name]), name)

    def logprobs(self, adapter: str, token_ids: Sequence[int]) -> torch.Tensor:
        """The logprob of each token but the first, given those before it: [T - 1]."""
        tokens = torch.tensor(token_ids)
        return self.all_logprobs(adapter, token_ids)[:-1].gather(1, tokens[1:, None]).squeeze(1)

    @torch.no_grad()
    def all_logprobs(self, adapter: str, token_ids: Sequence[int]) -> torch.Tensor:
        """The logprobs of all tokens after each position: [T, V]."""
        self._model.set_adapter(adapter)
        return self._model(torch.tensor([list(token_ids)])).logits[0].float().log_softmax(-1)


def sampled_tokens(choice: Mapping[str, Any]) -> tuple[list[int], torch.Tensor]:
    """Ids and logprobs [T] of what was sampled, from a chat choice's `logprobs.content` with tokens `token_id:N`."""
    content = choice["logprobs"]["content"]
    ids = [int(re.fullmatch(r"token_id:(\d+)", entry["token"])[1]) for entry in content]
    return ids, torch.tensor([entry["logprob"] for entry in content])
