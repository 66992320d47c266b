"""The configuration of training by a loop of the client's own, through the Tinker API."""

from __future__ import annotations

from pydantic import Field

from tandem.cluster.config.values import Amount, Seconds
from tandem.rl.settings import Settings


class TinkerConfig(Settings):
    """The Tinker API: its models, how their calls are journalled, and the limits beyond which requests are rejected."""

    project: str = Field(
        "tinker", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$", description="Project of the models that clients make."
    )
    tokenizers: dict[str, str] = Field(
        {},
        description="By the name of a base model, where its clients load its tokenizer: a Hugging Face id, or a "
        "directory that they have. Unset: its path if it is an id or the client is on this machine, else its name.",
    )
    lora_alpha: Amount = Field(32, gt=0, description="LoRA's alpha of these models, whose clients set only the rank.")
    gap_s: Seconds = Field(
        60, gt=0, description="A call waits this long for one with a lower number that hasn't arrived; then it fails."
    )
    result_s: Seconds = Field(3600, gt=0, description="How long the result of a call can be retrieved.")
    hold_s: Seconds = Field(
        25, gt=0, le=40, description="How long a request for a result that isn't there yet is held open."
    )
    idle_s: Seconds = Field(
        2, ge=0, description="How long the coordinator waits for a model's next call before it gives its claim back."
    )
    runs_at_once: int = Field(32, ge=1, le=1024, description="Models of a base model whose calls run by turns.")
    kept_run_bytes: int = Field(
        4 << 30,
        ge=0,
        description="Main memory of each learner for models between two calls. The state of others, least recently "
        "used first, is made again from the journal with their next call.",
    )
    kept_run_device_bytes: int = Field(1 << 30, ge=0, description="The part of it that stays on a GPU.")
    anchor_steps: int = Field(
        20, ge=1, description="Optimizer steps after which a checkpoint shortens the journal of a model."
    )
    anchor_bytes: int = Field(256 << 20, ge=1, description="Size of the journal after which one does.")
    max_call_bytes: int = Field(64 << 20, ge=1, description="Decompressed size of a call.")
    max_waiting_calls: int = Field(256, ge=1, description="Calls of one model that wait to be run.")
    max_samples_waiting: int = Field(4096, ge=1, description="Samples that wait for one engine.")
    sample_abandoned_s: Seconds = Field(
        60, gt=0, description="A sample that isn't done, and that its client hasn't asked for so long, is aborted."
    )
    sample_s: Seconds = Field(
        300, gt=0, description="The result of a sample that its client hasn't asked for so long is dropped."
    )
    sample_grace_s: Seconds = Field(
        30, ge=0, description="How long the result of a sample can be retrieved again after it was retrieved."
    )
    max_kept_sample_bytes: int = Field(
        256 << 20,
        ge=1,
        description="Main memory of an engine for results of samples. Beyond it, the oldest are dropped.",
    )
