"""Pictures of a job's packed sequences."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from torch import Tensor

    from tandem.rl.packing import PackedSequence

WIDTH_IN, PANEL_HEIGHT_IN, DPI = 10, 1.3, 100


def plot_batch(sequences: Sequence[PackedSequence]) -> dict[str, bytes]:
    """Return a PNG of each packed sequence by file name: sequence_000.png, ... in the order of the batch.

    It shows segments, trained tokens, advantages, weights and all known logprobs over the tokens of the row.
    """
    digits = max(3, len(str(len(sequences) - 1)))
    return {f"sequence_{index:0{digits}d}.png": _plot(row, index) for index, row in enumerate(sequences)}


def _plot(row: PackedSequence, index: int) -> bytes:
    from matplotlib.figure import Figure  # without pyplot: no global state, so any thread may draw

    figure = Figure(figsize=(WIDTH_IN, 4 * PANEL_HEIGHT_IN), layout="constrained")
    segments, advantages, weights, logprobs = figure.subplots(4, 1, sharex=True)
    _draw_segments(segments, row)
    _draw_line(advantages, "advantage", {"": row.advantages})
    _draw_line(weights, "weight", {"": row.weights})
    known = {"sampling": row.sampling_logprobs, "old": row.old_logprobs, "reference": row.ref_logprobs}
    _draw_line(logprobs, "logprob", {name: values for name, values in known.items() if values is not None})
    logprobs.set_xlabel("token")
    figure.suptitle(
        f"packed sequence {index}: {row.num_tokens} tokens, {row.num_trained_tokens} trained, "
        f"{int(row.segment_ids.max()) + 1} segments",
        fontsize=10,
    )
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=DPI)
    return png.getvalue()


def _draw_segments(axes: Axes, row: PackedSequence) -> None:
    """Draw each token at the height of its segment, context in gray and trained tokens in colour."""
    tokens = torch.arange(row.num_tokens)
    for mask, color, label in ((~row.is_trained, "0.6", "context"), (row.is_trained, "tab:orange", "trained")):
        axes.scatter(tokens[mask].numpy(), row.segment_ids[mask].numpy(), s=4, marker="s", color=color, label=label)
    axes.invert_yaxis()
    axes.set_ylabel("segment")
    axes.legend(fontsize=7, loc="upper right")


def _draw_line(axes: Axes, label: str, values: dict[str, Tensor]) -> None:
    """Draw tensors [T], with gaps at NaN."""
    for name, tensor in values.items():
        axes.plot(tensor.float().numpy(), drawstyle="steps-mid", linewidth=0.8, marker=".", markersize=2, label=name)
    axes.set_ylabel(label)
    if len(values) > 1:
        axes.legend(fontsize=7, loc="lower right")
