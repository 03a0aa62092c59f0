"""The figure of an imbalance: who owns the losses, and how probabilities are distributed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from resobj_d2.process import replacing

from .imbalance_tables import GROUPS, Imbalance
from .tables import Row

__all__ = ["plot_imbalance"]

_COLORS = dict(zip(GROUPS, ("#009e73", "#d55e00", "#9aa0a6"), strict=True))
_PANELS = 3  # in a row


def plot_imbalance(found: Imbalance, path: Path) -> None:
    """Draw the shares of loss and gradient, and a histogram for each value.

    Args:
        found: what was measured.
        path: of the picture; its ending is the format.
    """
    histograms = found.histogram_table()
    values = list(dict.fromkeys((row["stream"], row["value"]) for row in histograms))
    panels = 2 + len(values)
    rows = -(-panels // _PANELS)
    figure = Figure(figsize=(4.4 * _PANELS, 3.4 * rows), layout="constrained")
    axes = figure.subplots(rows, _PANELS, squeeze=False).ravel()
    shares = found.share_table()
    _draw_shares(axes[0], shares, "loss share")
    _draw_shares(axes[1], shares, "gradient share")
    axes[1].legend(fontsize=8, loc="lower left")
    for axis, (stream, value) in zip(axes[2:], values, strict=False):
        own = [row for row in histograms if (row["stream"], row["value"]) == (stream, value)]
        _draw_histogram(axis, own)
        axis.set_title(value if len(found.streams) == 1 else f"{stream}: {value}", fontsize=9)
    for axis in axes[panels:]:
        axis.set_axis_off()
    with replacing(path, binary=True) as file:
        figure.savefig(file, format=path.suffix[1:], dpi=130)


def _draw_shares(axis: Axes, rows: Sequence[Row], key: str) -> None:
    losses = list(dict.fromkeys((row["stream"], row["loss"]) for row in rows))
    left = np.zeros(len(losses))
    for group in GROUPS:
        own = {(r["stream"], r["loss"]): r[key] or 0.0 for r in rows if r["anchors"] == group}
        widths = np.array([own[loss] for loss in losses])
        axis.barh(range(len(losses)), widths, left=left, color=_COLORS[group], label=group)
        left += widths
    axis.set_yticks(range(len(losses)), [loss.removeprefix("loss_") for _, loss in losses])
    axis.invert_yaxis()
    axis.set(xlim=(0, 100), xlabel="%")
    axis.set_title(key, fontsize=9)


def _draw_histogram(axis: Axes, rows: Sequence[Row]) -> None:
    edges = [*(row["from"] for row in rows), 1.0]
    for name, color in (("negatives", "#d55e00"), ("positives", "#009e73")):
        axis.stairs(
            [row[name] for row in rows], edges, fill=True, alpha=0.55, color=color, label=name
        )
    axis.set_yscale("symlog", linthresh=1)
    axis.set(xlim=(0, 1), xlabel="probability", ylabel="anchors of an image")
    axis.legend(fontsize=8)
