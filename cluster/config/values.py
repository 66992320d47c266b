"""Types of values in the configuration, with their bounds."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

Device = Literal["auto", "cpu", "cuda"]
Dtype = Literal["auto", "float32", "bfloat16"]
MAX_S = 31 * 86400
"""A month. Longer durations are mistakes, and far longer ones overflow the timers of libraries."""
Seconds = Annotated[float, Field(le=MAX_S)]
Amount = Annotated[float, Field(le=1e5)]
Tolerance = Annotated[float, Field(gt=0, le=100)]
