"""The figures of the misalignment of scores and IoUs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from resobj_d2.process import replacing

from .tables import Row

__all__ = ["plot_misalignment"]


def plot_misalignment(
    points: Sequence[Row], tables: Mapping[str, Sequence[Row]], path: Path
) -> None:
    """Draw boxes, agreement, score over IoU, and IoU after over IoU before regression.

    Args:
        points: of :func:`.misalignment.scatter_rows`.
        tables: "agreement", "scores" and "regression", as :mod:`.misalignment` gives them.
        path: of the picture; its ending is the format.
    """
    figure = Figure(figsize=(10, 8), layout="constrained")
    (scatter, agreement), (scores, regression) = figure.subplots(2, 2)
    for name in _names(points, "boxes"):
        own = [row for row in points if row["boxes"] == name]
        xy = [row["IoU"] for row in own], [row["score"] for row in own]
        scatter.plot(*xy, ".", ms=3, alpha=0.4, label=name)
    scatter.set(xlabel="IoU", ylabel="score", title="boxes on objects", xlim=(0.5, 1), ylim=(0, 1))
    for name in _names(tables["agreement"], "boxes"):
        own = [row for row in tables["agreement"] if row["boxes"] == name]
        xy = [row["threshold"] for row in own], [row["agree"] for row in own]
        agreement.plot(*(_known(*xy)), "o-", label=name)
    agreement.set(
        xlabel="threshold t", ylabel="%", ylim=(0, 100),
        title="both above t, of those with score or IoU above t",
    )  # fmt: skip
    _means(scores, tables["scores"], ("boxes",), "score")
    scores.set(xlabel="IoU", ylabel="score", title="mean and deviation", xlim=(0, 1), ylim=(0, 1))
    _means(regression, tables["regression"], ("source", "stage"), "IoU")
    regression.plot([0, 1], [0, 1], color="grey", lw=0.8)
    regression.set(
        xlabel="IoU of the anchor", ylabel="IoU of the box", title="mean and deviation",
        xlim=(0, 1), ylim=(0, 1),
    )  # fmt: skip
    for axes in (scatter, agreement, scores, regression):
        axes.grid(alpha=0.3)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize=8)
    with replacing(path, binary=True) as file:
        figure.savefig(file, format=path.suffix[1:], dpi=150)


def _means(axes: Axes, rows: Sequence[Row], keys: Sequence[str], value: str) -> None:
    for group in dict.fromkeys(tuple(row[key] for key in keys) for row in rows):
        own = [row for row in rows if tuple(row[key] for key in keys) == group and row["number"]]
        axes.errorbar(
            [(row["from"] + row["to"]) / 2 for row in own],
            [row[value] for row in own],
            yerr=[row["deviation"] for row in own],
            fmt="o-",
            capsize=2,
            label=" ".join(map(str, group)) if len(group) == 1 else f"{group[0]}, stage {group[1]}",
        )


def _names(rows: Sequence[Row], key: str) -> list:
    return list(dict.fromkeys(row[key] for row in rows))


def _known(x: Sequence, y: Sequence) -> tuple[list, list]:
    pairs = [(a, b) for a, b in zip(x, y, strict=True) if b is not None]
    return [a for a, _ in pairs], [b for _, b in pairs]
