"""Callers of the Tinker API, whose SDK sends `X-API-Key: tml-` and a key of Tandem."""

from __future__ import annotations

from tandem.serve.api.auth import InferCaller, TrainCaller

SdkInferCaller = InferCaller
"""May start sessions and sample."""
SdkTrainCaller = TrainCaller
"""May train."""
