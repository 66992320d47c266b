"""The peak of known GPUs, for the model FLOP utilisation (MFU) of learners."""

from __future__ import annotations

PEAK_FLOPS = {
    "GH200": 989e12,
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "H800": 989e12,
    "B200": 2250e12,
    "B100": 1750e12,
    "A100": 312e12,
    "A800": 312e12,
    "A40": 150e12,
    "A10G": 70e12,
    "A10": 125e12,
    "A30": 165e12,
    "L40S": 362e12,
    "L40": 181e12,
    "L4": 121e12,
}
"""Dense bfloat16 operations per second by a part of the GPU's name, from NVIDIA's data sheets (SXM if no other form is
named). A more special name stands before one that is a part of it."""


def peak_flops(device: str) -> float | None:
    """Return the peak of a GPU by the name that CUDA gives; None for one that isn't in the table."""
    return next((peak for part, peak in PEAK_FLOPS.items() if part in device), None)
